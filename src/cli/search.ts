// `ramferry search FILE PATTERN`: where in a guest's memory something is.

import { Option } from 'commander';
import type { Snapshot } from '../format/index.js';
import { LiteralMatcher } from '../format/search/literal-matcher.js';
import type { Matcher } from '../format/search/matcher.js';
import { type Match, MemorySearch } from '../format/search/memory-search.js';
import { hexNeedle, TEXT_ENCODINGS, type TextEncoding, textNeedles } from '../format/search/needle.js';
import { RegexMatcher } from '../format/search/regex-matcher.js';
import { SearchMemory } from '../format/search/search-memory.js';
import { RamferryError } from '../memory/errors.js';
import { parseInteger } from './arguments.js';
import { placesOption } from './block-places.js';
import { formatBytes, formatCount, formatTable } from './format.js';
import { type FileOptions, INDEX_HELP, inSlices, pageSizeOption, readWholeMemoryFile } from './read-memory-file.js';
import { oneLine } from './safe-text.js';
import {
  addressText,
  offsetText,
  type SearchedMemory,
  type SearchedOptions,
  searchedMemory,
} from './searched-memory.js';
import { type Colors, terminalColors } from './terminal.js';
import type { Verb } from './verb.js';

interface SearchOptions extends FileOptions, SearchedOptions {
  readonly hex?: true;
  readonly regex?: true;
  readonly ignoreCase?: boolean;
  readonly encoding?: readonly TextEncoding[];
  readonly limit: number;
}

/** Matches that are listed, unless somebody wants more; all are counted. */
const LISTED = 1000;
const MOST_LISTED = 1_000_000;

/** Bytes that people are shown before a match, of it, and behind it. */
const SHOWN = { before: 16, match: 80, after: 32 } as const;

export const search: Verb<SearchOptions> = {
  configure: (command) =>
    command
      .option('--hex', 'PATTERN is bytes in hexadecimal digits; ? stands for any digit')
      .option('-e, --regex', 'PATTERN is a regular expression over bytes; what it means is in docs/search.md')
      .option('-i, --ignore-case', 'letters of either case')
      .addOption(
        new Option('--encoding <name...>', 'encodings of the text; all of them by default').choices(TEXT_ENCODINGS),
      )
      .option('--block <name>', 'only this RAM block')
      .addOption(placesOption())
      .option('--limit <n>', 'matches to list; all are counted', parseInteger(0, MOST_LISTED), LISTED)
      .addOption(pageSizeOption())
      .addHelpText(
        'after',
        '\nEvery match is given with its guest-physical address, where that is known, its RAM block and the offset in it.\n' +
          `Pages that are zero or absent cost nothing. Status 0 also means that nothing was found.${INDEX_HELP}`,
      ),
  examples: [
    ["guest.mig 'Linux version'", 'text, in UTF-8, Latin-1 and UTF-16 of either byte order'],
    ['guest.mig password -i --encoding utf-16le', 'in one encoding, letters of either case'],
    ["guest.mig --hex '7f 45 4c 46 ?? 01'", 'bytes, one of which may be any'],
    ["guest.mig -e '[0-9]{1,3}(\\.[0-9]{1,3}){3}'", 'what looks like an IPv4 address'],
    ['guest.mig root: --block pc.ram --limit 10 --json', 'the first ten in a RAM block, for a program'],
  ],

  async run({ operands, options, signal, progress }) {
    const [file, pattern] = operands as [string, string];
    const memory = new SearchMemory();
    const matcher = matcherOf(memory, pattern, options);
    const surroundings = { signal, progress };
    const opened = await readWholeMemoryFile(file, surroundings, { ...options, memoryOnly: true });
    try {
      const { snapshot } = opened;
      const searched = searchedMemory(snapshot, file, options);
      const matches: Match[] = [];
      const task = new MemorySearch(snapshot, searched.stretches, memory, matcher, {
        limit: options.limit,
        visit: (match) => matches.push(match),
      });
      // A byte more: the last step finds that nothing is left.
      await inSlices(surroundings, 'searching', searched.presentBytes + 1, () => task.step());
      const { noAddresses, notSearched, presentBytes } = searched;
      return {
        document: {
          file,
          pattern,
          count: task.count,
          matches: matches.map((match) => matchDocument(match, snapshot)),
          searchedBytes: presentBytes,
          notSearched,
          ...(isCut(matcher) && { cut: true }),
          ...(noAddresses !== undefined && { noAddresses }),
        },
        text: searchText(task.count, matches, snapshot, searched, terminalColors(process.stdout)) + cutText(matcher),
        failure: searched.failure,
      };
    } catch (error) {
      throw error instanceof RamferryError && error.kind !== 'usage' ? error.with({ file }) : error;
    } finally {
      opened.close();
    }
  },
};

const matcherOf = (memory: SearchMemory, pattern: string, options: SearchOptions): Matcher => {
  const { hex, regex, encoding, ignoreCase = false } = options;
  const refused: readonly (readonly [boolean, string, string])[] = [
    [hex === true && regex === true, '--hex', '--regex'],
    [hex === true && ignoreCase, '--hex', '--ignore-case'],
    [hex === true && encoding !== undefined, '--hex', '--encoding'],
    [regex === true && encoding !== undefined, '--regex', '--encoding'],
  ];
  for (const [isRefused, one, other] of refused) {
    if (isRefused) {
      throw new RamferryError('usage', 'OPTION_CONFLICT', `${one} and ${other} cannot be meant together.`, {
        hint: `leave out one of ${one} and ${other}`,
      });
    }
  }
  if (regex) {
    return new RegexMatcher(memory, pattern, ignoreCase);
  }
  const encodings = encoding ?? TEXT_ENCODINGS;
  return new LiteralMatcher(memory, hex ? [hexNeedle(pattern)] : textNeedles(pattern, { encodings, ignoreCase }));
};

const isCut = (matcher: Matcher): boolean => matcher instanceof RegexMatcher && matcher.isCut;

const cutText = (matcher: Matcher): string =>
  isCut(matcher) ? 'Some matches may be longer than they are shown: to follow each of them would take too long.\n' : '';

const hexOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

const matchDocument = (
  { block, offset, address, bytes, encoding, before, after }: Match,
  { setup }: Snapshot,
): object => ({
  block: setup.blocks[block]!.name,
  offset,
  ...(address !== undefined && { address }),
  ...(encoding !== undefined && { encoding }),
  hex: hexOf(bytes),
  before: hexOf(before),
  after: hexOf(after),
});

const DECODERS = {
  'utf-8': new TextDecoder('utf-8', { ignoreBOM: true }),
  'latin-1': new TextDecoder('latin1'),
  'utf-16le': new TextDecoder('utf-16le', { ignoreBOM: true }),
  // Not every Node has a decoder for the other byte order.
  'utf-16be': undefined,
};

/** Bytes as text within a line: a dot for what shows nothing. */
export const shownText = (bytes: Uint8Array, encoding: TextEncoding | undefined): string => {
  if (encoding === undefined) {
    return Array.from(bytes, (byte) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : '.')).join('');
  }
  const decoder = DECODERS[encoding];
  const text =
    decoder === undefined
      ? DECODERS['utf-16le'].decode(
          Buffer.from(bytes)
            .subarray(0, bytes.length & ~1)
            .swap16(),
        )
      : decoder.decode(bytes);
  return text.replace(/[\p{C}\p{Zl}\p{Zp}\ufffd]/gu, '.');
};

/** A match with what is around it, on one line. */
const contextText = ({ bytes, before, after, encoding }: Match, { bold }: Colors): string => {
  const start = before.subarray(Math.max(0, before.length - SHOWN.before));
  const isWide = encoding === 'utf-16le' || encoding === 'utf-16be';
  const aligned = isWide ? start.subarray(start.length % 2) : start;
  const cut = bytes.length > SHOWN.match ? '…' : '';
  const end = cut === '' ? shownText(after.subarray(0, SHOWN.after), encoding) : '';
  return `${shownText(aligned, encoding)}${bold(shownText(bytes.subarray(0, SHOWN.match), encoding) + cut)}${end}`;
};

const searchText = (
  count: number,
  matches: readonly Match[],
  snapshot: Snapshot,
  { presentBytes, noAddresses, notSearched }: SearchedMemory,
  colors: Colors,
): string => {
  const rows = matches.map((match) => [
    addressText(match),
    offsetText(match, snapshot),
    match.encoding ?? '',
    contextText(match, colors),
  ]);
  const more = count - matches.length;
  return [
    formatTable(rows, ['left', 'left', 'left', 'left']),
    ...(more > 0 ? [`… and ${formatCount(more)} more: --limit says how many are listed\n`] : []),
    `${count === 0 ? 'Nothing' : count === 1 ? '1 match' : `${formatCount(count)} matches`} found in ${formatBytes(presentBytes)} of content.\n`,
    ...(noAddresses === undefined
      ? []
      : [`${colors.yellow('warning:')} No addresses are known: ${oneLine(noAddresses)}\n`]),
    ...notSearched.map((name) => `RAM block ${oneLine(name)}: not searched, its content is not in the file\n`),
  ].join('');
};
