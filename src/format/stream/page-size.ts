// The size of a target page, which a stream carries only where it is not the smallest that the architecture has
// (spec/qemu-wire-format.md 1.2). Elsewhere it is found: by the machine type, by the first page records, which lie one page
// apart, and at the end of the stream by the VM description, which says it and has the last word.

import { RamferryError } from '../../memory/errors.js';
import { be64, latin1 } from '../bytes.js';
import type { StreamConfiguration } from './configuration.js';
import { DEFAULT_TARGET_PAGE_SIZE, ElementType, RecordFlag, TARGET_PAGE_BITS } from './constants.js';
import type { Cursor } from './cursor.js';
import type { ReadRamBlock } from './stream-handler.js';

const KIB = 1024;

/** Machine types of architectures with one page size. Names such as `virt`, which several have, are left to the records. */
const MACHINES: readonly (readonly [name: RegExp, pageSize: number])[] = [
  [/^(pc|isapc|q35|microvm|xenfv|xenpv|x-remote)(-|$)/, 4 * KIB],
  [/^(pseries|powernv|s390-ccw-virtio)/, 4 * KIB],
  [/^(clipper|sun4[uv]|niagara|or1k-sim|axis-dev88)$/, 8 * KIB],
];

/** Page size of a machine type; undefined where its name does not tell. */
export const pageSizeOfMachine = (machine: string): number | undefined =>
  MACHINES.find(([name]) => name.test(machine))?.[1];

/** Low bits of every record head that are flags whatever the page size. */
const FLAGS = 2 ** TARGET_PAGE_BITS.smallest;

export const isPageSize = (bytes: number): boolean =>
  bytes >= FLAGS && bytes <= 2 ** TARGET_PAGE_BITS.largest && Number.isInteger(Math.log2(bytes));

/** What a wrong page size ends with. */
const CODES: ReadonlySet<string> = new Set([
  'RECORD_FLAGS',
  'PAGE_OUTSIDE_BLOCK',
  'RAM_BLOCK_LENGTH',
  'UNKNOWN_RAM_BLOCK',
  'NAME_NOT_PRINTABLE',
  'NO_CURRENT_BLOCK',
  'ZERO_PAGE_FILL',
  'UNKNOWN_ELEMENT',
]);

/** Who has given the page size. */
type Origin = 'asked' | 'carried' | 'machine' | 'records' | 'assumed';

export class PageSize {
  #bytes: number | undefined;
  #origin: Origin = 'assumed';
  readonly #asked: number | undefined;
  readonly #expected: number | undefined;

  /**
   * @param asked what the caller says, for streams that do not
   * @param expected what is assumed without a look at the records, where neither the stream nor its machine type tells
   */
  constructor(asked: number | undefined, expected?: number) {
    if (asked !== undefined && !isPageSize(asked)) {
      const statement = `${asked} is not a page size: that is a power of two from ${FLAGS} to ${2 ** TARGET_PAGE_BITS.largest}.`;
      throw new RamferryError('usage', 'USAGE_PAGE_SIZE', statement, { value: asked });
    }
    this.#asked = asked;
    this.#expected = expected;
  }

  /** Undefined as long as it is not known. */
  get bytes(): number | undefined {
    return this.#bytes;
  }

  /** Whether nothing in the stream has given it so far. */
  get isAssumed(): boolean {
    return this.#origin === 'asked' || this.#origin === 'assumed';
  }

  /** The configuration has been read; `cursor` stands behind it. */
  configured({ machine, targetPageBits }: StreamConfiguration, cursor: Cursor): void {
    const carried = targetPageBits === undefined ? undefined : 2 ** targetPageBits;
    if (carried !== undefined && this.#asked !== undefined && carried !== this.#asked) {
      const statement = `The stream says that its pages have ${carried} bytes, not ${this.#asked}`;
      throw cursor.invalid('PAGE_SIZE', statement, 0, carried, 'Leave --page-size out.');
    }
    this.#set(carried, 'carried');
    this.#set(this.#asked, 'asked');
    this.#set(pageSizeOfMachine(machine), 'machine');
    this.#set(this.#expected, 'assumed');
  }

  /** A mapped-ram file gives it in each of its blocks. */
  mapped(bytes: number): void {
    this.#set(bytes, 'carried');
  }

  /**
   * Looks at the first page records.
   * @returns false while more bytes are needed
   */
  probe(cursor: Cursor, blocks: readonly ReadRamBlock[]): boolean {
    const found = probePageSize(cursor, new Set(blocks.map(({ name }) => name)));
    if (found === 'more') {
      return false;
    }
    this.#set(found, 'records');
    this.assume();
    return true;
  }

  /** Nothing has told: it is that of most machines. */
  assume(): number {
    this.#set(DEFAULT_TARGET_PAGE_SIZE, 'assumed');
    return this.#bytes!;
  }

  /** The error if the VM description says something else. */
  contradiction(described: number | undefined): { statement: string; hint: string } | undefined {
    if (described === undefined || described === this.#bytes || this.#origin === 'carried') {
      return undefined;
    }
    const statement = `The VM description says that pages have ${described} bytes, not ${this.#bytes}`;
    return { statement, hint: this.#origin === 'asked' ? 'Leave --page-size out.' : `Try --page-size ${described}.` };
  }

  /** The error about what makes no sense, with a hint where a wrong page size may be why. */
  explain(error: unknown): unknown {
    const isExplained = !(error instanceof RamferryError && this.#mayCause(error.code)) || error.hint !== undefined;
    if (this.#bytes === undefined || !this.isAssumed || isExplained) {
      return error;
    }
    const hint =
      this.#origin === 'asked'
        ? `Pages of ${this.#bytes} bytes were asked for. Leave --page-size out, or give another.`
        : `Pages of ${this.#bytes} bytes were assumed, as the stream does not say: --page-size gives another size.`;
    return error.with({ hint });
  }

  /** A stream that only seems to end early has been given a size, or it is a stream that was cut. */
  #mayCause(code: string): boolean {
    return CODES.has(code) || (this.#origin === 'asked' && code === 'STREAM_INCOMPLETE');
  }

  #set(bytes: number | undefined, origin: Origin): void {
    if (this.#bytes === undefined && bytes !== undefined) {
      this.#bytes = bytes;
      this.#origin = origin;
    }
  }
}

/** Zero pages to look through until the content of one shows its size. */
const PROBED_RECORDS = 64;

/** Bytes that may be in front of that content: much less than a page of the largest size. */
const PROBED_BYTES = 1024;

/** Type and number of a section, at its start as in its footer. */
const SECTION_ID_BYTES = 5;

/**
 * The page size that the records from the cursor on have. Behind a page's content the next record stands one page further in
 * the stream. Zero pages have none; but a source goes through a block from its first page to its last, and though it leaves out
 * pages that are free or discarded, the smallest distance of many is that of neighbours.
 * @returns undefined if they do not tell
 */
const probePageSize = (cursor: Cursor, names: ReadonlySet<string>): number | 'more' | undefined => {
  const { bytes, limit } = cursor;
  let at = cursor.at;
  let last: number | undefined;
  let name = '';
  let distance: number | undefined;
  for (let count = 0; count < PROBED_RECORDS && at - cursor.at < PROBED_BYTES; count += 1) {
    if (limit - at < 9) {
      return 'more';
    }
    const flags = bytes[at + 7];
    const kind = flags & ~RecordFlag.CONTINUE;
    if (be64(bytes, at) === RecordFlag.EOS) {
      // A source that has taken long for its first page ends the section behind it.
      const next = nextPart(bytes, at + 8, limit);
      if (next === undefined) {
        break;
      }
      at = next;
      continue;
    }
    if (kind !== RecordFlag.ZERO && kind !== RecordFlag.PAGE) {
      break;
    }
    const offset = be64(bytes, at) - flags;
    const isContinued = (flags & RecordFlag.CONTINUE) !== 0;
    const payload = at + (isContinued ? 8 : 9 + bytes[at + 8]);
    if (kind === RecordFlag.PAGE) {
      return sizeOfPage(bytes, payload, limit, offset, names);
    }
    const block = isContinued ? name : latin1(bytes, at + 9, Math.min(payload, limit));
    if (block === name && last !== undefined && isPageSize(offset - last)) {
      distance = Math.min(offset - last, distance ?? Number.POSITIVE_INFINITY);
    }
    last = offset;
    name = block;
    at = payload + 1;
  }
  return distance;
};

/**
 * Where the records go on, if a part of the same section follows one whose records end at `at`; where it would, if there are
 * too few bytes to say.
 */
const nextPart = (bytes: Uint8Array, at: number, limit: number): number | undefined => {
  const end = at + 2 * SECTION_ID_BYTES;
  if (end > limit) {
    return end;
  }
  const next = at + SECTION_ID_BYTES;
  const isSame = [1, 2, 3, 4].every((byte) => bytes[at + byte] === bytes[next + byte]);
  const isPart = bytes[next] === ElementType.SECTION_PART || bytes[next] === ElementType.SECTION_END;
  return bytes[at] === ElementType.SECTION_FOOTER && isPart && isSame ? end : undefined;
};

/** The size of the page that starts at `start`, by the record behind it. */
const sizeOfPage = (
  bytes: Uint8Array,
  start: number,
  limit: number,
  offset: number,
  names: ReadonlySet<string>,
): number | 'more' | undefined => {
  for (let bits = TARGET_PAGE_BITS.smallest; bits <= TARGET_PAGE_BITS.largest; bits += 1) {
    const size = 2 ** bits;
    const at = start + size;
    // The smallest that fits is taken without waiting for more: nothing more may come.
    if (limit - at < 9) {
      return 'more';
    }
    const flags = bytes[at + 7];
    const kind = flags & ~RecordFlag.CONTINUE;
    const head = be64(bytes, at);
    if (
      head === RecordFlag.EOS &&
      (bytes[at + 8] === ElementType.SECTION_FOOTER || bytes[at + 8] <= ElementType.COMMAND)
    ) {
      return size;
    }
    if (kind !== RecordFlag.ZERO && kind !== RecordFlag.PAGE) {
      continue;
    }
    const isNext = (flags & RecordFlag.CONTINUE) !== 0 && head - flags === offset + size;
    const nameEnd = at + 9 + bytes[at + 8];
    if (isNext || (flags === kind && head === flags && names.has(latin1(bytes, at + 9, Math.min(nameEnd, limit))))) {
      return size;
    }
  }
  return undefined;
};
