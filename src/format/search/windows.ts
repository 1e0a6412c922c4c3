// Guest memory passed before a matcher's eyes: windows over the pages that are stored, each with the end of the one before it.
//
//   zero │ present │ zero │ present │ present │ zero …        pages of a stretch
//      ▕▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▏                      one run: with a margin of zero bytes around it
//      ├── window ──┤
//               ├── window ──┤ …                              the next one begins with what a match may have begun in
//
// Pages that are zero or absent cost nothing, and are nonetheless seen where what is looked for lies across their borders: a run
// goes on over a short gap of them.

import { pageIndex } from '../../memory/units.js';
import { PageKind, type Snapshot } from '../snapshot.js';
import type { Stretch, StretchPart } from './stretches.js';

/** Bytes before a place that a matcher may look at, and that people are shown. */
export const HISTORY_BYTES = 32;

/** Bytes behind a match that people are shown. */
export const SHOWN_BYTES = 64;

export interface Reach {
  /** Most bytes from the start of a match that decide whether it is one. */
  readonly overlap: number;
  /** How far into zero pages a match may reach. */
  readonly margin: number;
}

/** A piece of a stretch: its bytes are the first `length` bytes of the search memory. */
export interface Window {
  readonly stretch: Stretch;
  /** Of its first byte. */
  readonly position: number;
  readonly length: number;
  /** Matches that begin in [from, to) are this window's. */
  readonly from: number;
  readonly to: number;
}

/** The end of a window, with which the next one begins. */
interface Carry {
  readonly keepFrom: number;
  readonly to: number;
}

export class MemoryWindows {
  readonly #snapshot: Snapshot;
  readonly #stretches: readonly Stretch[];
  readonly #buffer: Uint8Array;
  readonly #overlap: number;
  readonly #margin: number;
  /** The stretch that is looked through, and its next byte that was not. */
  #stretch = 0;
  #position = 0;
  /** Bytes in the buffer, and the first of them at which a match of the next window may begin. */
  #length = 0;
  #from = 0;
  #carry: Carry | undefined;
  #readBytes = 0;

  /** @param buffer of a `SearchMemory` */
  constructor(snapshot: Snapshot, stretches: readonly Stretch[], buffer: Uint8Array, { overlap, margin }: Reach) {
    this.#snapshot = snapshot;
    this.#stretches = stretches;
    this.#buffer = buffer;
    this.#overlap = overlap + SHOWN_BYTES;
    this.#margin = margin;
  }

  /** Bytes of pages that were read so far. */
  get readBytes(): number {
    return this.#readBytes;
  }

  /** The next window, whose bytes are good until the next call; undefined at the end. */
  next(): Window | undefined {
    this.#keepCarry();
    for (; this.#stretch < this.#stretches.length; this.#stretch += 1, this.#position = 0) {
      const window = this.#fill(this.#stretches[this.#stretch]!);
      if (window !== undefined) {
        return window;
      }
    }
    return undefined;
  }

  #keepCarry(): void {
    if (this.#carry === undefined) {
      this.#length = 0;
      this.#from = 0;
      return;
    }
    const { keepFrom, to } = this.#carry;
    this.#buffer.copyWithin(0, keepFrom, this.#length);
    this.#length -= keepFrom;
    this.#from = to - keepFrom;
    this.#carry = undefined;
  }

  /** The next window of a stretch; undefined if no present page of it is left. */
  #fill(stretch: Stretch): Window | undefined {
    const { targetPageSize: pageSize } = this.#snapshot.setup;
    while (this.#buffer.length - this.#length >= pageSize + 2 * this.#margin) {
      const start = this.#nextPresent(stretch);
      const gap = start - this.#position;
      if (this.#length === 0) {
        if (start === stretch.bytes) {
          return undefined;
        }
        this.#addZeros(Math.min(gap, this.#margin));
      } else if (gap > 2 * this.#margin || start === stretch.bytes) {
        const position = this.#position - this.#length;
        this.#addZeros(Math.min(gap, this.#margin));
        this.#position = start === stretch.bytes ? start : start - this.#margin;
        return { stretch, position, length: this.#length, from: this.#from, to: this.#length };
      } else {
        this.#addZeros(gap);
      }
      this.#position = start;
      this.#read(stretch);
    }
    const to = this.#length - this.#overlap;
    this.#carry = { keepFrom: Math.max(0, to - HISTORY_BYTES), to };
    return { stretch, position: this.#position - this.#length, length: this.#length, from: this.#from, to };
  }

  #addZeros(bytes: number): void {
    this.#buffer.fill(0, this.#length, this.#length + bytes);
    this.#length += bytes;
  }

  /** Position of the first present page that was not read; the length of the stretch if there is none. */
  #nextPresent({ bytes, parts }: Stretch): number {
    const { targetPageSize: pageSize } = this.#snapshot.setup;
    for (const part of parts) {
      const from = Math.max(0, this.#position - part.position);
      if (from < part.bytes) {
        const end = (part.offset + part.bytes) / pageSize;
        const page = this.#snapshot.nextPresent(
          part.block,
          pageIndex(Math.ceil((part.offset + from) / pageSize)),
          pageIndex(end),
        );
        if (page < end) {
          return part.position + page * pageSize - part.offset;
        }
      }
    }
    return bytes;
  }

  /** Reads the present pages that begin at `#position`, as many as there is room for in front of a margin. */
  #read(stretch: Stretch): void {
    const { targetPageSize: pageSize } = this.#snapshot.setup;
    const part: StretchPart = stretch.parts.findLast(({ position }) => position <= this.#position)!;
    const first = (part.offset + this.#position - part.position) / pageSize;
    const room = Math.floor((this.#buffer.length - this.#margin - this.#length) / pageSize);
    const end = Math.min((part.offset + part.bytes) / pageSize, first + room);
    let page = first;
    while (page < end && this.#snapshot.kindOf(part.block, pageIndex(page)) === PageKind.present) {
      page += 1;
    }
    const bytes = (page - first) * pageSize;
    const target = this.#buffer.subarray(this.#length, this.#length + bytes);
    this.#snapshot.readPages(part.block, pageIndex(first), page - first, target);
    this.#length += bytes;
    this.#position += bytes;
    this.#readBytes += bytes;
  }
}
