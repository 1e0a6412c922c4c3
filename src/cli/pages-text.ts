// What people read of `pages`.

import type { Snapshot } from '../format/snapshot.js';
import { type Align, formatBytes, formatCount, formatTable } from './format.js';
import { plural } from './inspect-text.js';
import { type PageMapLook, pageMapText } from './page-map.js';
import type { ContentFigures, Survey } from './page-survey.js';
import { oneLine } from './safe-text.js';

/** Cells of the longest bar. */
const BAR = 20;

export interface PagesLook extends PageMapLook {
  readonly withMap: boolean;
}

export const pagesText = (file: string, snapshot: Snapshot, survey: Survey, look: PagesLook): string => {
  const { blocks, targetPageSize, totalBytes } = snapshot.setup;
  const head =
    `${look.colors.bold(file)}: ${formatBytes(totalBytes)} in ${plural(blocks.length, 'block')}, ` +
    `pages of ${targetPageSize} bytes\n`;
  const hasContent = survey.whole.distinctPages > 0;
  return [
    head,
    blockTable(snapshot, survey, look),
    ...(hasContent
      ? [entropyTable(survey, look), repeatedText(snapshot, survey, look), compressionText(survey, look)]
      : ['No page has content.\n']),
    ...(look.withMap ? [pageMapText(survey.map, look, 'entropy')] : []),
  ].join('\n');
};

/** With a heading that stands out; figures are right-aligned. */
const table = (rows: readonly (readonly string[])[], align: readonly Align[], { colors }: PagesLook): string => {
  const [heading, ...lines] = formatTable(rows, align).split('\n');
  return [colors.bold(heading!), ...lines].join('\n');
};

const blockTable = (snapshot: Snapshot, survey: Survey, look: PagesLook): string => {
  const approximate = survey.isExact ? '' : '~';
  const figures = ({ zeroContentPages, repeatedPages }: ContentFigures): string[] => [
    formatCount(zeroContentPages),
    `${approximate}${formatCount(repeatedPages)}`,
  ];
  const { blocks } = snapshot.setup;
  const counts = blocks.map(({ index }) => snapshot.counts(index));
  const rows = blocks.map(({ name, index }) => {
    const { presentPages, zeroPages, absentPages } = counts[index]!;
    const content = snapshot.elsewhere.has(index) ? ['elsewhere', ''] : figures(survey.blocks[index]!);
    return [name, ...[presentPages, zeroPages, absentPages].map(formatCount), ...content];
  });
  const sum = (field: 'presentPages' | 'zeroPages' | 'absentPages'): string =>
    formatCount(counts.reduce((total, block) => total + block[field], 0));
  const whole = ['all', sum('presentPages'), sum('zeroPages'), sum('absentPages'), ...figures(survey.whole)];
  return table(
    [
      ['RAM block', 'present', 'zero', 'absent', 'zero inside', 'repeated'],
      ...rows,
      ...(rows.length > 1 ? [whole] : []),
    ],
    ['left', ...whole.slice(1).map(() => 'right' as const)],
    look,
  );
};

const percent = (part: number, whole: number): string => `${whole === 0 ? 0 : ((100 * part) / whole).toFixed(1)} %`;

/** By entropy: how many pages, and what single ones of them compress to. */
const entropyTable = ({ whole, compression }: Survey, look: PagesLook): string => {
  const { entropyPages } = whole;
  const contentPages = entropyPages.reduce((sum, pages) => sum + pages, 0);
  const most = Math.max(...entropyPages);
  const methods = Object.keys(compression.classes[0]!.compressedBytes);
  const pageBytes = compression.bytes / compression.pages;
  const rows = entropyPages.map((pages, bits) => {
    const { pages: compressed, compressedBytes } = compression.classes[bits]!;
    return [
      `${bits} to ${bits + 1}`,
      (look.unicode ? '█' : '#').repeat(Math.ceil((BAR * pages) / most)),
      formatCount(pages),
      percent(pages, contentPages),
      ...methods.map((method) => (compressed === 0 ? '' : percent(compressedBytes[method]!, compressed * pageBytes))),
    ];
  });
  const figures = ['pages', 'share', ...methods.map((method) => `${method} to`)];
  return table(
    [['bits a byte', '', ...figures], ...rows.reverse()],
    ['left', 'left', ...figures.map(() => 'right' as const)],
    look,
  );
};

const repeatedText = (snapshot: Snapshot, { whole, isExact, mostRepeated }: Survey, look: PagesLook): string => {
  const { blocks, targetPageSize } = snapshot.setup;
  const { repeatedPages, distinctPages } = whole;
  const counted = isExact ? '' : 'About ';
  const verdict =
    `${counted}${plural(repeatedPages, 'page')} of ${formatCount(repeatedPages + distinctPages)} with content ` +
    `hold what an earlier one holds (${formatBytes(repeatedPages * targetPageSize)}).\n`;
  if (mostRepeated.length === 0) {
    return verdict;
  }
  const rows = mostRepeated.map(({ block, offset, pages, byte }) => [
    formatCount(pages),
    oneLine(`${blocks[block]!.name}+0x${offset.toString(16)}`),
    byte === undefined ? '' : `all bytes 0x${byte.toString(16).padStart(2, '0')}`,
  ]);
  return `${verdict}\n${table([['copies', 'first', 'content'], ...rows], ['right', 'left', 'left'], look)}`;
};

const compressionText = ({ compression, whole }: Survey, look: PagesLook): string => {
  const { isSample, pages, bytes, methods } = compression;
  const contentPages = whole.repeatedPages + whole.distinctPages;
  if (pages === 0) {
    return 'No page of the sample has content: how far pages compress is not known without --all.\n';
  }
  const rows = methods.map(({ method, level, pagesAtOnce, estimatedBytes }) => [
    `${method} -${level}`,
    pagesAtOnce === 1 ? 'page by page' : `${pagesAtOnce} pages at once`,
    percent(estimatedBytes, (contentPages * bytes) / pages),
    formatBytes(estimatedBytes),
  ]);
  const of = formatCount(contentPages);
  const source = isSample ? `sample: ${formatCount(pages)} of ${of} pages` : `all ${of} pages`;
  return table(
    [['compressed', source, 'to', isSample ? 'about' : ''], ...rows],
    ['left', 'left', 'right', 'right'],
    look,
  );
};
