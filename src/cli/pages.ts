// `ramferry pages FILE`: what the pages of a guest hold. All present pages are read once, and some of them compressed.

import type { Snapshot } from '../format/index.js';
import type { PageCounts } from '../format/snapshot.js';
import { pageIndex } from '../memory/units.js';
import { PageSurvey, type Survey } from './page-survey.js';
import { pagesText } from './pages-text.js';
import { type FileOptions, INDEX_HELP, inSlices, pageSizeOption, readWholeMemoryFile } from './read-memory-file.js';
import { hasUnicode, terminalColors, terminalColumns } from './terminal.js';
import type { Verb } from './verb.js';

interface PagesOptions extends FileOptions {
  readonly all?: true;
  readonly map?: true;
}

/** Bytes of one read; with pages of up to 64 KiB, whole pages. */
const READ_BYTES = 1024 * 1024;

export const pages: Verb<PagesOptions> = {
  configure: (command) =>
    command
      .option('--all', 'compress every page instead of a sample: 20 MiB/s')
      .option('--map', 'a picture of where the pages are, by entropy')
      .addOption(pageSizeOption())
      .addHelpText(
        'after',
        '\nPages are the same if a digest of 128 bits is; with more than 3 million different pages it is an estimate, and\n' +
          `says so. Compression is zlib's, and zstd's where Node has it, at level 1.${INDEX_HELP}`,
      ),
  examples: [
    ['guest.mig', 'how random the pages are, how many hold the same, and how far they compress'],
    ['guest.mig --map', 'and where they are'],
    ['guest.mig --all --json', 'every page compressed, for a program'],
  ],

  async run({ operands, options, signal, progress }) {
    const [file] = operands as [string];
    const opened = await readWholeMemoryFile(file, { signal, progress }, { ...options, memoryOnly: true });
    try {
      const { snapshot } = opened;
      const columns = terminalColumns(process.stdout);
      const survey = new PageSurvey(snapshot, { columns, compressAll: options.all === true });
      await inSlices({ signal, progress }, 'reading pages', survey.presentBytes, stepThrough(snapshot, survey));
      const result = survey.result();
      return {
        document: pagesDocument(file, snapshot, result, options),
        text: pagesText(file, snapshot, result, {
          colors: terminalColors(process.stdout),
          unicode: hasUnicode(),
          withMap: options.map === true,
        }),
      };
    } finally {
      opened.close();
    }
  },
};

/** Shows the survey all present pages, a piece at each call; returns how many bytes of them there were. */
const stepThrough = (snapshot: Snapshot, survey: PageSurvey): (() => number) => {
  const { blocks, targetPageSize: pageSize } = snapshot.setup;
  const words = new Int32Array(READ_BYTES / 4);
  const bytes = new Uint8Array(words.buffer);
  let block = 0;
  let page = 0;
  return () => {
    for (; block < blocks.length; block += 1, page = 0) {
      const pageCount = blocks[block].usedLength / pageSize;
      const first = page < pageCount ? snapshot.nextPresent(block, pageIndex(page)) : pageCount;
      if (first < pageCount) {
        const pages = Math.min(READ_BYTES / pageSize, pageCount - first);
        snapshot.readPages(block, pageIndex(first), pages, bytes.subarray(0, pages * pageSize));
        page = first + pages;
        return survey.add(block, first, pages, words) * pageSize;
      }
    }
    return 0;
  };
};

const sumOf = (snapshot: Snapshot, field: keyof PageCounts): number =>
  snapshot.setup.blocks.reduce((sum, { index }) => sum + snapshot.counts(index)[field], 0);

const pagesDocument = (file: string, snapshot: Snapshot, survey: Survey, options: PagesOptions): object => {
  const { blocks, targetPageSize: pageSize, totalBytes } = snapshot.setup;
  const { map } = survey;
  return {
    file,
    machine: snapshot.configuration.machine,
    warnings: snapshot.summary.warnings,
    ram: {
      totalBytes,
      pageSize,
      presentPages: sumOf(snapshot, 'presentPages'),
      zeroPages: sumOf(snapshot, 'zeroPages'),
      absentPages: sumOf(snapshot, 'absentPages'),
      ...survey.whole,
    },
    repeated: {
      isExact: survey.isExact,
      most: survey.mostRepeated.map(({ block, ...rest }) => ({ block: blocks[block].name, ...rest })),
    },
    compression: survey.compression,
    blocks: blocks.map(({ name, usedLength, index }) => ({
      name,
      usedLength,
      pageSize,
      ...snapshot.counts(index),
      ...(snapshot.elsewhere.has(index) && { elsewhere: true as const }),
      ...survey.blocks[index],
      ...(options.map && {
        map: {
          pagesPerCell: map.pagesPerCell,
          presentPages: map.blocks[index].cells.map(({ presentPages }) => presentPages),
          entropyBits: map.blocks[index].cells.map(({ entropyBits }) => entropyBits),
        },
      }),
    })),
  };
};
