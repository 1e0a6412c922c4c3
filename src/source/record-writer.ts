// One connection of a stream as it is written: what is appended, and the pages' records in staging slots of their own segment,
// each full slot one write (spec/node-performance.md section 3: one write per MiB is what C does too).

import type { ByteChannel, WriteDone } from '../channel/channel.js';
import type { Extent, RamBlock } from '../memory/ram-block.js';
import { type Segment, SLOT_COUNT } from '../memory/segment.js';
import type { PageBatch } from './page-sink.js';
import { CopiedRecords, GatheredRecords, type RecordSlot } from './record-slot.js';

/** The staging slots that a writer takes turns with, of each segment. Writers of one guest share none. */
export interface SlotRange {
  readonly first: number;
  readonly count: number;
}

/** The one of the stream has what the one of the preempt channel leaves. */
export const URGENT_SLOTS: SlotRange = { first: SLOT_COUNT - 2, count: 2 };
export const MAIN_SLOTS: SlotRange = { first: 0, count: URGENT_SLOTS.first };

/** Called for each write that has ended, with how much the system has taken, or why it has not. */
export type Written = (byteCount: number, error: Error | undefined) => void;

export class RecordWriter {
  readonly channel: ByteChannel;
  /** Whether pages may be written from where they lie, which the guest decides. */
  mayGather = false;
  /** Writes under way; at most one less than there are slots, so that the next slot's write has ended (they end in order). */
  writes = 0;
  /** Bytes accepted so far. */
  queued = 0;
  /** Takes nothing any more: the connection is of no use. */
  isBroken = false;
  readonly #slots: SlotRange;
  readonly #written: Written;
  /** Slot to use next, by segment. */
  readonly #nextSlot = new Map<Segment, number>();
  #slot: RecordSlot | undefined;
  /** Block of the last record: the next one of it does not name it again. */
  #lastBlock: RamBlock | undefined;

  constructor(channel: ByteChannel, slots: SlotRange, written: Written) {
    this.channel = channel;
    this.#slots = slots;
    this.#written = written;
  }

  /** The most pages of this extent that the next batch may hold, at least 1. */
  batchLimit(extent: Extent): number {
    if (this.#slot !== undefined && this.#slot.segment !== extent.segment) {
      this.writeSlot();
    }
    const { room } = (this.#slot ??= this.#openSlot(extent.segment));
    if (room > 0) {
      return room;
    }
    this.writeSlot();
    return this.batchLimit(extent);
  }

  /** Records of the batch, for which there is room; returns how many of its pages were zero. */
  add(batch: PageBatch): number {
    const { block, pages, count } = batch;
    const slot = this.#slot as RecordSlot;
    const { segment } = slot;
    segment.words.set(pages.subarray(0, count), segment.listSlot(0) / 4);
    let nameBytes = 0;
    if (block !== this.#lastBlock) {
      nameBytes = placeName(segment, block.name);
      this.#lastBlock = block;
    }
    const before = slot.byteCount;
    const zeroPages = slot.add(batch, nameBytes);
    this.queued += slot.byteCount - before;
    return zeroPages;
  }

  /** Bytes that are not page records: into the open slot where they fit, else written on their own. */
  append(bytes: Uint8Array): void {
    this.queued += bytes.length;
    if (this.#slot?.append(bytes) === true) {
      return;
    }
    this.writeSlot();
    this.#write(bytes.length, (done) => this.channel.write(bytes, done));
  }

  /** @param taken called when the system has taken all of it */
  writeSlot(taken?: () => void): void {
    const slot = this.#slot;
    this.#slot = undefined;
    if (slot !== undefined) {
      this.#write(slot.byteCount, (done) => slot.write(this.channel, done), taken);
    }
  }

  #openSlot(segment: Segment): RecordSlot {
    const { first, count } = this.#slots;
    const index = this.#nextSlot.get(segment) ?? 0;
    this.#nextSlot.set(segment, (index + 1) % count);
    const base = this.mayGather ? this.channel.addressOf?.(segment.bytes) : undefined;
    const slot = first + index;
    return base === undefined ? new CopiedRecords(segment, slot) : new GatheredRecords(segment, slot, base);
  }

  #write(byteCount: number, write: (done: WriteDone) => void, taken?: () => void): void {
    if (byteCount === 0 || this.isBroken) {
      return;
    }
    this.writes += 1;
    write((error) => {
      this.writes -= 1;
      if (error === undefined) {
        taken?.();
      }
      this.#written(byteCount, error);
    });
  }
}

/** Puts the block id where the kernel of this segment finds it; returns its length with the length byte. */
const placeName = (segment: Segment, name: string): number => {
  const at = segment.listSlot(1);
  segment.bytes[at] = name.length;
  for (let index = 0; index < name.length; index += 1) {
    segment.bytes[at + 1 + index] = name.charCodeAt(index);
  }
  return name.length + 1;
};
