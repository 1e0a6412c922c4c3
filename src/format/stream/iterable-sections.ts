// Sections of other devices that iterate as RAM does: START, PARTs and END, each with a footer. They have no length, and the
// VM description says nothing of them. Two kinds are sized by their own records, as QEMU's analyze-migration.py sizes them;
// of any other the end is searched for. Their bytes are kept and never interpreted.
//
//   spapr/htab      START  be32(shift)                        PART, END  0 { be32(index) be16(valid) be16(invalid) valid × 16 bytes }* 0
//   s390-storage_attributes  each  { be64(address|MORE) be64(n) n bytes }* be64(EOS) or be64(DONE), or DONE and EOS

import { ByteWriter } from '../byte-writer.js';
import { be16, be32, be64 } from '../bytes.js';
import { ElementType } from './constants.js';
import type { Cursor } from './cursor.js';
import { EarlyEnd, endsSection, FOOTER_BYTES, isFooter, readSectionHeader } from './device-sections.js';
import type { IterableSection } from './stream-handler.js';

/** One step through a body: so many bytes, after which it is over or not. Undefined while more bytes are needed. */
type Unit = { readonly bytes: number; readonly isLast: boolean } | undefined;

/** The next unit at the cursor; `'odd'` if what stands there is none. */
type Grammar = (cursor: Cursor, isFirst: boolean) => Unit | 'odd';

const HPTE_BYTES = 16;

const hashTable: Grammar = (cursor, isFirst) => {
  const { bytes, at } = cursor;
  if (isFirst) {
    // Not zero: the table's size, or that there is none. Zero: its entries follow.
    return cursor.has(4) ? { bytes: 4, isLast: be32(bytes, at) !== 0 } : undefined;
  }
  if (!cursor.has(8)) {
    return undefined;
  }
  const isLast = be32(bytes, at) === 0 && be32(bytes, at + 4) === 0;
  return { bytes: 8 + HPTE_BYTES * be16(bytes, at + 4), isLast };
};

const Attributes = { EOS: 1, MORE: 2, DONE: 8 } as const;

const storageAttributes: Grammar = (cursor) => {
  if (!cursor.has(9)) {
    return undefined;
  }
  const { bytes, at } = cursor;
  switch (be32(bytes, at + 4) % 0x1000) {
    case Attributes.EOS:
      return { bytes: 8, isLast: true };
    case Attributes.DONE:
      // Some versions write EOS behind it.
      if (bytes[at + 8] !== 0) {
        return { bytes: 8, isLast: true };
      }
      return cursor.has(16) ? { bytes: 8, isLast: be64(bytes, at + 8) !== Attributes.EOS } : undefined;
    case Attributes.MORE: {
      if (!cursor.has(16)) {
        return undefined;
      }
      const count = be64(bytes, at + 8);
      return Number.isNaN(count) ? 'odd' : { bytes: 16 + count, isLast: false };
    }
    default:
      return 'odd';
  }
};

const GRAMMARS: ReadonlyMap<string, { readonly version: number; readonly grammar: Grammar }> = new Map([
  ['spapr/htab', { version: 1, grammar: hashTable }],
  ['s390-storage_attributes', { version: 0, grammar: storageAttributes }],
]);

/** What is known of one of them. */
interface OpenSection extends IterableSection {
  readonly grammar: Grammar | undefined;
  /** Bytes of its bodies so far. */
  bytes: number;
  /** An end was found by its footer. */
  isGuessed: boolean;
}

export class IterableSectionReader {
  readonly #limit: number;
  readonly #isOpen: (id: number) => boolean;
  readonly #sections = new Map<number, OpenSection>();
  readonly #collected = new ByteWriter(0);
  #current: OpenSection | undefined;
  #currentId = 0;
  #isFirst = true;
  #isOver = false;
  /** Bytes of the unit that are still to come. */
  #left = 0;
  #isSearching = false;

  /**
   * @param limit most bytes of all sections
   * @param isOpen whether a section of that id has started, RAM's too
   */
  constructor(limit: number, isOpen: (id: number) => boolean) {
    this.#limit = limit;
    this.#isOpen = isOpen;
  }

  /** All sections so far, headers and footers included, in the order of the stream. */
  get bytes(): Uint8Array {
    return this.#collected.view;
  }

  has(id: number): boolean {
    return this.#sections.has(id);
  }

  get ids(): Iterable<number> {
    return this.#sections.keys();
  }

  get started(): readonly IterableSection[] {
    return Array.from(this.#sections.values(), ({ section, name, offset }) => ({ section, name, offset }));
  }

  /** What to say of them. */
  get warnings(): string[] {
    return Array.from(this.#sections.values(), ({ name, bytes, isGuessed }) => {
      const how = isGuessed ? ', and their ends were found by their footers, a heuristic' : '';
      return `"${name}" iterates as RAM does: its ${bytes} bytes are kept and not looked into${how}.`;
    });
  }

  /** Takes the header of a START, PART or END at the cursor; false while more bytes are needed. */
  begin(cursor: Cursor, hasFooters: boolean): boolean {
    let bytes = 5;
    if (cursor.peek() === ElementType.SECTION_START) {
      const header = readSectionHeader(cursor.bytes, cursor.at, cursor.limit, cursor.position);
      if (header === undefined) {
        return false;
      }
      const { section, name, version } = header;
      const known = GRAMMARS.get(name);
      const grammar = known?.version === version ? known.grammar : undefined;
      if (grammar === undefined && !hasFooters) {
        const statement = `The stream has an iterable section "${name}", whose end only its device knows`;
        const hint = 'Migrate without that device, or with a machine type from 2.4 on.';
        throw cursor.invalid('UNKNOWN_ITERABLE', statement, 5, name, hint);
      }
      if (this.#isOpen(section)) {
        throw cursor.invalid('SECTION_ORDER', `Section ${section} ("${name}") starts a second time`, 1, section);
      }
      const offset = cursor.position + header.bytes;
      this.#sections.set(section, { section, name, offset, grammar, bytes: 0, isGuessed: false });
      bytes = header.bytes;
    } else if (!cursor.has(5)) {
      return false;
    }
    this.#currentId = be32(cursor.bytes, cursor.at + 1);
    this.#current = this.#sections.get(this.#currentId)!;
    this.#isFirst = true;
    this.#isOver = false;
    this.#isSearching = this.#current.grammar === undefined;
    this.#collect(cursor, bytes);
    return true;
  }

  /** Takes the body, and the footer if there are footers; false while more bytes are needed. */
  read(cursor: Cursor, hasFooters: boolean): boolean {
    const before = this.#collected.length;
    const isDone = (this.#isSearching || this.#readUnits(cursor)) && this.#readEnd(cursor, hasFooters);
    this.#current!.bytes += this.#collected.length - before - (isDone && hasFooters ? FOOTER_BYTES : 0);
    return isDone;
  }

  /** Steps through the body; true at its end, or where it is not what it should be. */
  #readUnits(cursor: Cursor): boolean {
    while (this.#left > 0 || !this.#isOver) {
      if (this.#left === 0) {
        const unit = this.#current!.grammar!(cursor, this.#isFirst);
        if (unit === undefined) {
          return false;
        }
        if (unit === 'odd') {
          this.#isSearching = true;
          return true;
        }
        this.#left = unit.bytes;
        this.#isOver = unit.isLast;
        this.#isFirst = false;
      }
      const taken = Math.min(this.#left, cursor.limit - cursor.at);
      this.#left -= taken;
      this.#collect(cursor, taken);
      if (this.#left > 0) {
        return false;
      }
    }
    return true;
  }

  #readEnd(cursor: Cursor, hasFooters: boolean): boolean {
    if (!hasFooters) {
      if (this.#isSearching) {
        throw cursor.invalid('SECTION_END', `The end of section "${this.#current!.name}" was not found`, 0);
      }
      return true;
    }
    if (!this.#isSearching) {
      if (!cursor.has(FOOTER_BYTES)) {
        return false;
      }
      this.#isSearching = !isFooter(cursor.bytes, cursor.at, cursor.limit, this.#currentId);
    }
    if (this.#isSearching && !this.#search(cursor)) {
      return false;
    }
    this.#collect(cursor, FOOTER_BYTES);
    return true;
  }

  /** The first footer with its id that another element follows. */
  #search(cursor: Cursor): boolean {
    this.#current!.isGuessed = true;
    for (;;) {
      const found = cursor.bytes.subarray(0, cursor.limit).indexOf(ElementType.SECTION_FOOTER, cursor.at);
      this.#collect(cursor, (found < 0 ? cursor.limit : found) - cursor.at);
      if (found < 0) {
        return false;
      }
      switch (endsSection(cursor.bytes, cursor.at, cursor.limit, this.#currentId, this.#isOpen)) {
        case EarlyEnd.yes:
          return true;
        case EarlyEnd.needMore:
          return false;
        default:
          this.#collect(cursor, 1);
      }
    }
  }

  #collect(cursor: Cursor, bytes: number): void {
    if (this.#collected.length + bytes > this.#limit) {
      const name = this.#current?.name ?? '';
      const statement = `The iterable sections, the last of them "${name}", are longer than ${this.#limit} bytes`;
      const hint = 'Raise the limit of device state if the guest really has that much.';
      throw cursor.invalid('DEVICE_STATE_TOO_LARGE', statement, 0, this.#limit, hint);
    }
    this.#collected.bytes(cursor.bytes, cursor.at, cursor.at + bytes);
    cursor.at += bytes;
  }
}
