// Where stream records wait for their write: a staging slot of the segment whose pages they carry, in one of two forms.
//
//   copied     | head page head page head … |                        one piece, the pages' bytes copied in
//
//   gathered   | head head head … | entries | ── entries point at ──▶ heads and pages where they lie
//
// Gathering saves the copy, which costs as much as the write itself. The system then reads the pages later than the
// engine tested them; that is the same race as reading them while the guest writes: the log was cleared before, so a
// later store is in the next sync. Pages that are only lent (a snapshot's window) must be copied.

import { GUEST_PAGE_SIZE, NORMAL_RECORD_BYTES, ZERO_RECORD_BYTES } from '../../kernels/kernels.js';
import type { ByteChannel, WriteDone } from '../channel/channel.js';
import type { Segment } from '../memory/segment.js';
import { STAGING_SLOT_BYTES } from '../memory/segment.js';
import type { PageBatch } from './page-sink.js';

/** A block id takes at most this much, its length byte included. */
const NAME_BYTES = 256;

/** Room a slot keeps behind its records for the end of the section. */
const SECTION_END_BYTES = 13;

/** What a slot's owner needs of it; `used` slots are written and forgotten. */
export interface RecordSlot {
  readonly segment: Segment;
  /** Bytes of stream in it. */
  readonly byteCount: number;
  /** Pages whose records surely fit. */
  readonly room: number;
  /** Bytes that are not page records; false if they do not fit. */
  append(bytes: Uint8Array): boolean;
  /** Records of the batch, whose pages are listed at list slot 0 and the block id at list slot 1; returns how many were zero. */
  add(batch: PageBatch, nameBytes: number): number;
  write(channel: ByteChannel, done: WriteDone): void;
}

export class CopiedRecords implements RecordSlot {
  readonly segment: Segment;
  readonly #address: number;
  byteCount = 0;

  constructor(segment: Segment, slot: number) {
    this.segment = segment;
    this.#address = segment.stagingSlot(slot);
  }

  get room(): number {
    const free = STAGING_SLOT_BYTES - SECTION_END_BYTES - NAME_BYTES - this.byteCount;
    return Math.max(0, Math.floor(free / NORMAL_RECORD_BYTES));
  }

  append(bytes: Uint8Array): boolean {
    if (this.byteCount + bytes.length > STAGING_SLOT_BYTES) {
      return false;
    }
    this.segment.bytes.set(bytes, this.#address + this.byteCount);
    this.byteCount += bytes.length;
    return true;
  }

  add({ extent, count }: PageBatch, nameBytes: number): number {
    const { segment } = this;
    const zeroPages = segment.kernels.emitRecords(
      segment.listSlot(0),
      count,
      extent.address,
      extent.firstPage,
      segment.listSlot(1),
      nameBytes,
      this.#address + this.byteCount,
    );
    this.byteCount += recordBytes(count, zeroPages, nameBytes);
    return zeroPages;
  }

  write(channel: ByteChannel, done: WriteDone): void {
    channel.write(this.segment.bytes.subarray(this.#address, this.#address + this.byteCount), done);
  }
}

/** Bytes of a `struct iovec` on every 64-bit system. */
const ENTRY_BYTES = 16;

/** What Linux takes in one call (IOV_MAX). */
const ENTRIES_MAX = 1024;

/** The heads of as many pages, a block id and the end of a section, rounded up. */
const HEADS_BYTES = 4 * GUEST_PAGE_SIZE;

export class GatheredRecords implements RecordSlot {
  readonly segment: Segment;
  /** Address of the segment's memory in the process. */
  readonly #base: number;
  readonly #heads: number;
  readonly #vector: number;
  #headBytes = 0;
  #entries = 0;
  byteCount = 0;

  constructor(segment: Segment, slot: number, base: number) {
    this.segment = segment;
    this.#base = base;
    this.#heads = segment.stagingSlot(slot);
    this.#vector = this.#heads + HEADS_BYTES;
  }

  get room(): number {
    // Two entries a page, one for zero pages behind the last, one for the end of the section.
    const byEntries = Math.floor((ENTRIES_MAX - 2 - this.#entries) / 2);
    const byHeads = Math.floor((HEADS_BYTES - SECTION_END_BYTES - NAME_BYTES - this.#headBytes) / ZERO_RECORD_BYTES);
    return Math.max(0, Math.min(byEntries, byHeads));
  }

  append(bytes: Uint8Array): boolean {
    if (this.#headBytes + bytes.length > HEADS_BYTES || this.#entries === ENTRIES_MAX) {
      return false;
    }
    const { segment } = this;
    const address = this.#heads + this.#headBytes;
    segment.bytes.set(bytes, address);
    const entry = (this.#vector + this.#entries * ENTRY_BYTES) / 4;
    const at = this.#base + address;
    segment.words[entry] = at % 2 ** 32;
    segment.words[entry + 1] = Math.floor(at / 2 ** 32);
    segment.words[entry + 2] = bytes.length;
    segment.words[entry + 3] = 0;
    this.#entries += 1;
    this.#headBytes += bytes.length;
    this.byteCount += bytes.length;
    return true;
  }

  add({ extent, count }: PageBatch, nameBytes: number): number {
    const { segment } = this;
    const entries = segment.kernels.emitVector(
      segment.listSlot(0),
      count,
      extent.address,
      extent.firstPage,
      segment.listSlot(1),
      nameBytes,
      this.#heads + this.#headBytes,
      this.#base,
      this.#vector + this.#entries * ENTRY_BYTES,
    );
    const normalPages = entries >>> 1;
    const zeroPages = count - normalPages;
    const bytes = recordBytes(count, zeroPages, nameBytes);
    this.#entries += entries;
    this.#headBytes += bytes - normalPages * GUEST_PAGE_SIZE;
    this.byteCount += bytes;
    return zeroPages;
  }

  write(channel: ByteChannel, done: WriteDone): void {
    const { bytes } = this.segment;
    const entries = bytes.subarray(this.#vector, this.#vector + this.#entries * ENTRY_BYTES);
    channel.writeVector!({ memory: bytes, base: this.#base, entries, byteCount: this.byteCount }, done);
  }
}

const recordBytes = (count: number, zeroPages: number, nameBytes: number): number =>
  zeroPages * ZERO_RECORD_BYTES + (count - zeroPages) * NORMAL_RECORD_BYTES + nameBytes;
