// `ramferry diff A B`: which pages of two memory files differ, whatever their formats.
//
// Content is compared, not how it is stored: a page that is absent equals a zero mark and a page of stored zeros. So a
// stream equals the mapped-ram file that was made of it.

import type { Snapshot } from '../format/index.js';
import type { ReadRamBlock } from '../format/stream/stream-handler.js';
import { RamferryError } from '../memory/errors.js';
import { pageIndex } from '../memory/units.js';
import { type DeviceDifference, differingDevices } from './diff-devices.js';
import { formatBytes, formatCount, formatTable } from './format.js';
import { plural } from './inspect-text.js';
import {
  type FileOptions,
  INDEX_HELP,
  inSlices,
  pageSizeOption,
  readWholeMemoryFile,
  type Surroundings,
} from './read-memory-file.js';
import { oneLine } from './safe-text.js';
import { terminalColors } from './terminal.js';
import type { Verb } from './verb.js';

/** Bytes compared at a time; with pages of up to 64 KiB, whole pages. */
const READ_BYTES = 1024 * 1024;

/** Ranges of a block that are listed; their number is bounded only by half the pages. */
const MOST_RANGES = 1000;

/** Ranges of a block that people read. */
const SHOWN_RANGES = 6;

/** Two blocks of the same name. */
export interface BlockDifference {
  readonly name: string;
  /** Of the longer one. */
  readonly pages: number;
  /** Pages that only the longer one has are among them. */
  readonly differing: number;
  /** First and last page of each run of differing pages, in order: the first 1000 of them. */
  readonly ranges: readonly (readonly [first: number, last: number])[];
  /** Runs there are, listed or not. */
  readonly rangeCount: number;
}

export const diff: Verb<FileOptions> = {
  configure: (command) =>
    command
      .addOption(pageSizeOption())
      .addHelpText(
        'after',
        `\nStatus 0 also means that the two are equal, and 1 that they differ: machine, RAM and device state count.${INDEX_HELP}`,
      ),
  examples: [
    ['before.mig after.mig', 'which pages the guest wrote in between'],
    ['guest.mig guest.mapped --quiet', 'are they the same guest? status 0 if so, 1 if not'],
    ['before.mig after.mig --json', 'with up to 1000 ranges of pages for each block'],
  ],

  async run({ operands, options, signal, progress }) {
    const surroundings = { signal, progress };
    const [a, b] = operands as [string, string];
    if (a === '-' && b === '-') {
      throw new RamferryError('usage', 'STDIN_TWICE', 'Only one of the two can come from stdin.', {
        hint: 'give the name of a file for the other one',
      });
    }
    const first = await readWholeMemoryFile(a, surroundings, options);
    try {
      const second = await readWholeMemoryFile(b, surroundings, options);
      try {
        const difference = await compare(first.snapshot, second.snapshot, surroundings);
        return {
          document: { a, b, ...difference },
          text: text(a, b, difference),
          failure: difference.equal ? undefined : filesDiffer(a, b, difference),
        };
      } finally {
        second.close();
      }
    } finally {
      first.close();
    }
  },
};

interface Difference {
  readonly equal: boolean;
  /** Set if they are not the same. */
  readonly machine?: { readonly a: string; readonly b: string } | undefined;
  readonly blocks: readonly BlockDifference[];
  /** Names of blocks. */
  readonly onlyInA: readonly string[];
  readonly onlyInB: readonly string[];
  /** Names of blocks that cannot be compared: a file leaves their content out. */
  readonly elsewhere: readonly string[];
  readonly devices: readonly DeviceDifference[];
}

const compare = async (a: Snapshot, b: Snapshot, surroundings: Surroundings): Promise<Difference> => {
  const pageSize = a.setup.targetPageSize;
  if (b.setup.targetPageSize !== pageSize) {
    throw new RamferryError(
      'failed',
      'PAGE_SIZES_DIFFER',
      `The two cannot be compared page by page: one has pages of ${pageSize} bytes, the other of ${b.setup.targetPageSize}.`,
      { value: b.setup.targetPageSize },
    );
  }
  const namesOf = ({ setup }: Snapshot): Map<string, ReadRamBlock> =>
    new Map(setup.blocks.map((block) => [block.name, block]));
  const blocksOfA = namesOf(a);
  const blocksOfB = namesOf(b);
  const elsewhere = [...blocksOfA]
    .filter(([name, { index }]) => {
      const other = blocksOfB.get(name);
      return other !== undefined && (a.elsewhere.has(index) || b.elsewhere.has(other.index));
    })
    .map(([name]) => name);
  const pairs = a.setup.blocks
    .filter(({ name }) => blocksOfB.has(name) && !elsewhere.includes(name))
    .map((block) => new BlockComparison(a, block, b, blocksOfB.get(block.name)!));
  const bytes = pairs.reduce((sum, { pages }) => sum + pages * pageSize, 0);
  const queue = [...pairs];
  await inSlices(surroundings, 'comparing', bytes, () => {
    while (queue[0]?.isDone === true) {
      queue.shift();
    }
    return (queue[0]?.step() ?? 0) * pageSize;
  });
  const blocks = pairs.map((pair) => pair.result());
  const onlyInA = [...blocksOfA.keys()].filter((name) => !blocksOfB.has(name));
  const onlyInB = [...blocksOfB.keys()].filter((name) => !blocksOfA.has(name));
  const devices = differingDevices(a.summary, b.summary);
  const machines = { a: a.configuration.machine, b: b.configuration.machine };
  const machine = machines.a === machines.b ? undefined : machines;
  const equal =
    machine === undefined &&
    blocks.every(({ differing }) => differing === 0) &&
    onlyInA.length + onlyInB.length + devices.length + elsewhere.length === 0;
  return { equal, machine, blocks, onlyInA, onlyInB, elsewhere, devices };
};

/** Compares two blocks piece by piece. */
class BlockComparison {
  readonly pages: number;
  readonly #name: string;
  readonly #pageSize: number;
  readonly #sides: readonly [Side, Side];
  /** Pages that both have. */
  readonly #common: number;
  readonly #ranges: [number, number][] = [];
  #rangeCount = 0;
  #differing = 0;
  #lastDiffering = -2;
  #page = 0;

  constructor(a: Snapshot, blockA: ReadRamBlock, b: Snapshot, blockB: ReadRamBlock) {
    this.#name = blockA.name;
    this.#pageSize = a.setup.targetPageSize;
    this.#sides = [new Side(a, blockA), new Side(b, blockB)];
    const [left, right] = this.#sides;
    this.#common = Math.min(left.pageCount, right.pageCount);
    this.pages = Math.max(left.pageCount, right.pageCount);
  }

  get isDone(): boolean {
    return this.#page === this.pages;
  }

  /** Compares some pages; returns how many are done with that. */
  step(): number {
    const from = this.#page;
    const [left, right] = this.#sides;
    // Where neither stores anything both are zero.
    const next = Math.min(left.nextPresent(from), right.nextPresent(from), this.#common);
    if (from >= this.#common) {
      this.#differ(from, this.pages);
      this.#page = this.pages;
    } else if (next > from) {
      this.#page = next;
    } else {
      const pages = Math.min(READ_BYTES / this.#pageSize, this.#common - from);
      this.#compare(from, left.read(from, pages), right.read(from, pages));
      this.#page = from + pages;
    }
    return this.#page - from;
  }

  #compare(from: number, a: Buffer, b: Buffer): void {
    if (a.equals(b)) {
      return;
    }
    const size = this.#pageSize;
    for (let at = 0; at < a.length; at += size) {
      if (a.compare(b, at, at + size, at, at + size) !== 0) {
        const page = from + at / size;
        this.#differ(page, page + 1);
      }
    }
  }

  /** The pages in [from, end) differ; called in ascending order. */
  #differ(from: number, end: number): void {
    if (from !== this.#lastDiffering + 1) {
      this.#rangeCount += 1;
      if (this.#rangeCount <= MOST_RANGES) {
        this.#ranges.push([from, end - 1]);
      }
    } else if (this.#rangeCount <= MOST_RANGES) {
      this.#ranges.at(-1)![1] = end - 1;
    }
    this.#differing += end - from;
    this.#lastDiffering = end - 1;
  }

  result(): BlockDifference {
    return {
      name: this.#name,
      pages: this.pages,
      differing: this.#differing,
      ranges: this.#ranges,
      rangeCount: this.#rangeCount,
    };
  }
}

/** A block of one of the two files. */
class Side {
  readonly pageCount: number;
  readonly #snapshot: Snapshot;
  readonly #block: number;
  readonly #buffer = Buffer.alloc(READ_BYTES);
  #next = -1;

  constructor(snapshot: Snapshot, { index, usedLength }: ReadRamBlock) {
    this.#snapshot = snapshot;
    this.#block = index;
    this.pageCount = usedLength / snapshot.setup.targetPageSize;
  }

  /** First present page at or after `from`. Kept, as finding one that is far away takes time. */
  nextPresent(from: number): number {
    if (this.#next < from && from < this.pageCount) {
      this.#next = this.#snapshot.nextPresent(this.#block, pageIndex(from));
    }
    return this.#next < from ? this.pageCount : this.#next;
  }

  read(firstPage: number, pages: number): Buffer {
    const bytes = this.#buffer.subarray(0, pages * this.#snapshot.setup.targetPageSize);
    this.#snapshot.readPages(this.#block, pageIndex(firstPage), pages, bytes);
    return bytes;
  }
}

const totalDiffering = (blocks: readonly BlockDifference[]): number =>
  blocks.reduce((sum, { differing }) => sum + differing, 0);

const filesDiffer = (
  a: string,
  b: string,
  { machine, blocks, onlyInA, onlyInB, elsewhere, devices }: Difference,
): RamferryError => {
  const pages = totalDiffering(blocks);
  const other = onlyInA.length + onlyInB.length;
  const parts = [
    machine !== undefined && 'the machine type',
    pages > 0 && plural(pages, 'page'),
    other > 0 && `${plural(other, 'RAM block')} of only one file`,
    devices.length > 0 && plural(devices.length, 'device section'),
  ].filter((part) => part !== false);
  if (elsewhere.length > 0) {
    const names = elsewhere.map((name) => `"${name}"`).join(', ');
    const rest = parts.length === 0 ? 'all else is equal' : `of the rest differ: ${parts.join(', ')}`;
    return new RamferryError(
      'failed',
      'MEMORY_ELSEWHERE',
      `${a} and ${b} cannot be compared as a whole: the content of RAM block ${names} is not in both files; ${rest}.`,
      { file: b, value: elsewhere[0]!, hint: 'Save the guest without x-ignore-shared.' },
    );
  }
  return new RamferryError('failed', 'FILES_DIFFER', `${a} and ${b} differ: ${parts.join(', ')}.`, { file: b });
};

const rangeText = ({ ranges, rangeCount }: BlockDifference): string => {
  const shown = ranges
    .slice(0, SHOWN_RANGES)
    .map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`));
  const more = rangeCount - shown.length;
  return [...shown, ...(more > 0 ? [`and ${plural(more, 'more range')}`] : [])].join(', ');
};

const text = (a: string, b: string, difference: Difference): string => {
  const colors = terminalColors(process.stdout);
  const { equal, machine, blocks, onlyInA, onlyInB, elsewhere, devices } = difference;
  const rows = blocks.map((block) => [
    `  ${block.name}`,
    formatCount(block.pages),
    formatCount(block.differing),
    rangeText(block),
  ]);
  const table = formatTable(
    [['  RAM block', 'pages', 'differing', 'pages from-to'], ...rows],
    ['left', 'right', 'right', 'left'],
  );
  const odd = [
    ...(machine === undefined ? [] : [`  machine: ${oneLine(`${machine.a} and ${machine.b}`)}\n`]),
    ...onlyInA.map((name) => `  RAM block ${oneLine(`${name}: only in ${a}`)}\n`),
    ...onlyInB.map((name) => `  RAM block ${oneLine(`${name}: only in ${b}`)}\n`),
    ...elsewhere.map((name) => `  RAM block ${oneLine(name)}: not compared, its content is not in both files\n`),
    ...devices.map(
      (device) => `  device ${oneLine(`${device.name}, instance ${device.instance}: ${deviceText(device, a, b)}`)}\n`,
    ),
  ];
  return [
    `${colors.bold(a)} and ${colors.bold(b)}: ${equal ? colors.green('equal') : colors.red('different')}\n`,
    ...(blocks.length > 0 ? [table] : []),
    ...(odd.length > 0 ? [odd.join('')] : []),
  ].join('\n');
};

const deviceText = ({ difference, offset, bytes }: DeviceDifference, a: string, b: string): string => {
  switch (difference) {
    case 'onlyInA':
      return `only in ${a}`;
    case 'onlyInB':
      return `only in ${b}`;
    case 'version':
      return 'another version';
    case 'content':
      return `differs from byte ${offset} of ${formatBytes(bytes)} on`;
  }
};
