// A picture of where a guest's memory is: one character for so many pages, one line for so many MiB.
//
//   pc.ram, 1.00 GiB
//          0 B  ██▓▒░····██████████▓▓▓▓··
//       64 MiB  ████
//
//   pc.bios               █
//   /rom@etc/acpi/tables  ▒

import { MOST_ENTROPY_BITS } from '../format/page-content.js';
import type { PageCounts, Snapshot } from '../format/snapshot.js';
import { formatBytes } from './format.js';
import { plural } from './inspect-text.js';
import type { Colors } from './terminal.js';

/** Lines of the largest block, so that the map of any guest fits a terminal. */
const LINES = 16;

const CELLS_OF_LINE = { narrow: 32, usual: 64, wide: 128 } as const;

const OFFSET_WIDTH = 10;

/** What a line has besides its cells: the offset, two spaces, the last column. */
const MARGIN = OFFSET_WIDTH + 3;

/** By how much of a cell is present, from little to all; then zero marks, then nothing; then nothing that counts. */
const characters = {
  unicode: { present: ['░', '▒', '▓', '█'], zero: '·', absent: ' ', stale: '×' },
  ascii: { present: ['-', '+', 'x', '#'], zero: '.', absent: ' ', stale: '!' },
} as const;

/** The pages behind a character. */
export interface PageMapCell extends PageCounts {
  /** Of the absent pages, those of which the file still holds an earlier state; unset where there are none by design. */
  readonly stalePages?: number;
  /** Mean entropy of the present pages, in bits a byte; unset where nobody looked, 0 where none is present. */
  readonly entropyBits?: number;
}

export interface PageMap {
  readonly pagesPerCell: number;
  readonly cellBytes: number;
  readonly cellsPerLine: number;
  readonly blocks: readonly {
    readonly name: string;
    readonly usedLength: number;
    readonly cells: readonly PageMapCell[];
  }[];
}

/** Counts the pages behind every character, for a terminal so many columns wide. */
export const pageMap = (snapshot: Snapshot, columns: number): PageMap => {
  const { blocks, targetPageSize } = snapshot.setup;
  const { narrow, usual, wide } = CELLS_OF_LINE;
  const cellsPerLine = columns >= wide + MARGIN ? wide : columns >= usual + MARGIN ? usual : narrow;
  const largest = Math.max(...blocks.map(({ usedLength }) => usedLength / targetPageSize));
  // Powers of two, so that lines begin at round offsets.
  const pagesPerCell = 2 ** Math.max(0, Math.ceil(Math.log2(largest / (LINES * cellsPerLine))));
  return {
    pagesPerCell,
    cellBytes: pagesPerCell * targetPageSize,
    cellsPerLine,
    blocks: blocks.map(({ name, usedLength, index }) => ({
      name,
      usedLength,
      cells: snapshot.cells(index, pagesPerCell),
    })),
  };
};

/** The map with the numbers of stale pages, by block and cell. */
export const withStalePages = (map: PageMap, stale: readonly ArrayLike<number>[]): PageMap => ({
  ...map,
  blocks: map.blocks.map((block, index) => ({
    ...block,
    cells: block.cells.map((counts, cell) => ({ ...counts, stalePages: stale[index]![cell]! })),
  })),
});

/** The map with the entropy of the cells: `bits` is the sum of that of their present pages, by block and cell. */
export const withEntropy = (map: PageMap, bits: readonly ArrayLike<number>[]): PageMap => ({
  ...map,
  blocks: map.blocks.map((block, index) => ({
    ...block,
    cells: block.cells.map((counts, cell) => ({
      ...counts,
      entropyBits: bits[index]![cell]! / Math.max(1, counts.presentPages),
    })),
  })),
});

/** What a character says of present pages: how many of them there are, or how random they are. */
export type Shade = 'share' | 'entropy';

const shades: Readonly<Record<Shade, { readonly of: (cell: PageMapCell) => number; readonly legend: string }>> = {
  share: {
    of: ({ presentPages, zeroPages, absentPages }) => presentPages / (presentPages + zeroPages + absentPages),
    legend: 'present, by share',
  },
  entropy: { of: ({ entropyBits = 0 }) => entropyBits / MOST_ENTROPY_BITS, legend: 'present, by entropy' },
};

export interface PageMapLook {
  readonly unicode: boolean;
  readonly colors: Colors;
}

export const pageMapText = (map: PageMap, { unicode, colors }: PageMapLook, by: Shade = 'share'): string => {
  const { blocks, cellBytes, cellsPerLine: perLine } = map;
  const marks = unicode ? characters.unicode : characters.ascii;
  const zeroRun = new RegExp(`[${marks.zero}]+`, 'g');

  const shade = shades[by];

  const mark = (cell: PageMapCell): string => {
    const { presentPages, zeroPages, absentPages, stalePages = 0 } = cell;
    if (presentPages === 0) {
      if (stalePages > 0) {
        return marks.stale;
      }
      return absentPages > zeroPages ? marks.absent : marks.zero;
    }
    return marks.present[Math.max(0, Math.ceil(shade.of(cell) * marks.present.length) - 1)]!;
  };
  const line = (cells: readonly PageMapCell[]): string =>
    colors.cyan(cells.map(mark).join('').trimEnd().replaceAll(zeroRun, colors.dim));

  /** For a block that would be a picture of nothing. */
  const inWords = (cells: readonly PageMapCell[]): string | undefined => {
    const [first, ...others] = new Set(cells.map(mark));
    const words = { [marks.absent]: 'nothing in the file', [marks.zero]: 'zero marks only' };
    return others.length === 0 && cells.length > 1 ? words[first!] : undefined;
  };
  const isLarge = (cells: readonly PageMapCell[]): boolean =>
    cells.length > perLine / 4 && inWords(cells) === undefined;

  const large = blocks.filter(({ cells }) => isLarge(cells));
  const small = blocks.filter(({ cells }) => !isLarge(cells));
  const parts = large.map(({ name, usedLength, cells }) => {
    const lines = Array.from({ length: Math.ceil(cells.length / perLine) }, (_, index) => {
      const offset = formatBytes(index * perLine * cellBytes).padStart(OFFSET_WIDTH);
      return `${colors.dim(offset)}  ${line(cells.slice(index * perLine, (index + 1) * perLine))}\n`;
    });
    return `${colors.bold(name)}, ${formatBytes(usedLength)}\n${lines.join('')}`;
  });
  if (small.length > 0) {
    const width = Math.max(...small.map(({ name }) => name.length));
    parts.push(small.map(({ name, cells }) => `${name.padEnd(width)}  ${inWords(cells) ?? line(cells)}\n`).join(''));
  }
  const legend =
    `A character is ${formatBytes(cellBytes)}: ${colors.cyan(marks.present.join(''))} ${shade.legend}; ` +
    `${colors.dim(marks.zero)} zero marks; blank: not in the file.${staleLegend(blocks, marks.stale)}`;
  return `${parts.join('\n')}\n${legend}\n`;
};

const staleLegend = (blocks: PageMap['blocks'], mark: string): string => {
  const stale = blocks.flatMap(({ cells }) => cells).reduce((sum, { stalePages = 0 }) => sum + stalePages, 0);
  return stale === 0
    ? ''
    : ` ${plural(stale, 'page')} stale (${mark} where nothing is present): absent, but the file still holds earlier bytes.`;
};
