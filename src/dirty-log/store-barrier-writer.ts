// What a guest thread calls after its stores (kind 1 of spec/algorithms.md 14.5). Store first, mark second, in the same
// thread (TS-1); a bulk store marks after the last byte of each page (TS-4). Two variants, measured in 14.2:
//
//   unconditional (1a)   store page · Atomics.or(REMOTE)                        ~12 ns, a clear asks nobody
//   filtered (1b)        store page · known? · else Atomics.or(REMOTE), know it ~3 ns, a clear needs a handshake
//
// What must not be done is to look at the shared bitmap and skip the mark if the bit is set: the store may still sit in the
// CPU's store buffer while the engine clears the bit and reads the old page. The filter therefore is this thread's
// own, and only a safepoint, which orders the stores before it, takes bits out of it (TS-2).

import type { BitmapMemory } from '../memory/bitmap-memory.js';
import type { RamBlock } from '../memory/ram-block.js';
import { maskOfBits } from '../memory/words.js';
import { HandshakeWriter } from './handshake.js';
import { LoadBarrierReader } from './load-barrier-reader.js';
import type { StoreBarrierShared } from './store-barrier.js';
import { WriteProtectWriter } from './write-protect-writer.js';

/** The barrier of writer number `writer`, in the thread that is that writer. Starts parked. */
export function attachStoreBarrier(
  shared: StoreBarrierShared,
  writer: number,
  bitmaps: BitmapMemory,
): StoreBarrierWriter {
  return shared.variant === 'filtered'
    ? new FilteredWriter(shared, writer, bitmaps)
    : new UnconditionalWriter(shared, writer, bitmaps);
}

export abstract class StoreBarrierWriter {
  protected readonly words: Int32Array;
  readonly #handshake: HandshakeWriter;
  readonly #recordingWord: Int32Array;
  /** This thread's copy of whether anybody records: a mark costs nothing outside of migrations. */
  protected recording = false;
  readonly #protection: WriteProtectWriter | undefined;
  /** This thread's copy of whether pages are protected; it changes only while this thread is parked. */
  #isProtecting = false;
  readonly #loads: LoadBarrierReader | undefined;
  /** The same of whether pages are still to come. */
  #isArriving = false;

  constructor(shared: StoreBarrierShared, writer: number, bitmaps: BitmapMemory) {
    this.words = bitmaps.words;
    this.#handshake = new HandshakeWriter(shared.handshake, writer);
    this.#recordingWord = new Int32Array(shared.recording);
    this.#protection = shared.protection && new WriteProtectWriter(shared.protection, writer, bitmaps);
    this.#loads = shared.loads && new LoadBarrierReader(shared.loads, writer, bitmaps);
  }

  /**
   * Before a load from a page of the block: while the guest arrives by postcopy the page may have to be waited for. Throws
   * GUEST_MEMORY_LOST if it will never come.
   */
  beforeLoad(block: RamBlock, page: number): void {
    if (this.#isArriving) {
      this.#loads?.beforeAccess(block, page);
    }
  }

  /**
   * Before a store to a page of the block: while a background snapshot is taken the page may have to be saved first, and as
   * with a load it may have to come first, even if all of it is overwritten. From here to the store no safepoint is passed.
   */
  beforeStore(block: RamBlock, page: number): void {
    this.beforeLoad(block, page);
    if (this.#isProtecting) {
      this.#protection?.beforeStore(block, page);
    }
  }

  /** Reports that a page of the block was stored to, after the store. */
  abstract mark(block: RamBlock, page: number): void;

  /** The same for pages [firstPage, firstPage + pageCount). */
  markRange(block: RamBlock, firstPage: number, pageCount: number): void {
    for (let page = firstPage; page < firstPage + pageCount; page += 1) {
      this.mark(block, page);
    }
  }

  /**
   * To be passed often (microseconds apart), never between a store and its mark's page being needed again: at a loop's
   * back edge, before a call into the host. One atomic load if nothing is asked.
   */
  safepoint(): void {
    if (this.#handshake.poll()) {
      this.#renew();
    }
  }

  /** Before anything that may block: from here to `unpark` no guest memory is touched (TS-15). Orders all marks before it (TS-3). */
  park(): void {
    this.#handshake.park();
  }

  /** After blocking. Whoever was told to stop must look at that word after this and before the first store. */
  unpark(): void {
    if (this.#handshake.unpark()) {
      this.#renew();
    }
  }

  /** Drops local knowledge about pages of the flat ram address space. */
  protected abstract forget(firstRamPage: number, pageCount: number): void;

  #renew(): void {
    this.recording = Atomics.load(this.#recordingWord, 0) !== 0;
    this.#isProtecting = this.#protection?.isActive === true;
    this.#isArriving = this.#loads?.isActive === true;
    this.forget(this.#handshake.firstPage, this.#handshake.pageCount);
  }
}

class UnconditionalWriter extends StoreBarrierWriter {
  mark(block: RamBlock, page: number): void {
    if (this.recording) {
      Atomics.or(this.words, (block.bitmaps.remote >>> 2) + (page >>> 5), 1 << (page & 31));
    }
  }

  /** 32 pages a step: a guest that zeroes 4 MiB at once marks as much at once. */
  override markRange(block: RamBlock, firstPage: number, pageCount: number): void {
    const end = firstPage + pageCount;
    for (let page = firstPage; this.recording && page < end; ) {
      const next = Math.min(end, (page | 31) + 1);
      Atomics.or(this.words, (block.bitmaps.remote >>> 2) + (page >>> 5), maskOfBits(page, next));
      page = next;
    }
  }

  protected forget(): void {}
}

class FilteredWriter extends StoreBarrierWriter {
  /**
   * One bit per page: this thread marked it, and REMOTE has kept the mark since. By block object, not by flat address: a
   * block plugged where another was unplugged starts with an empty log and must start with an empty filter.
   */
  readonly #filters = new Map<RamBlock, Int32Array>();
  // The filter of the block of the last mark; guests rarely change blocks.
  #block: RamBlock | undefined;
  #filter: Int32Array = new Int32Array(0);

  mark(block: RamBlock, page: number): void {
    if (!this.recording) {
      return;
    }
    if (block !== this.#block) {
      this.#select(block);
    }
    const word = page >>> 5;
    const bit = 1 << (page & 31);
    if ((this.#filter[word]! & bit) === 0) {
      Atomics.or(this.words, (block.bitmaps.remote >>> 2) + word, bit);
      this.#filter[word]! |= bit;
    }
  }

  protected forget(firstRamPage: number, pageCount: number): void {
    if (pageCount === Number.POSITIVE_INFINITY) {
      this.#filters.clear();
      this.#block = undefined;
      return;
    }
    for (const [block, filter] of this.#filters) {
      const from = Math.max(0, firstRamPage - block.ramPage);
      const to = Math.min(block.maxPages, firstRamPage + pageCount - block.ramPage);
      if (from < to) {
        // Whole words: to forget more than asked costs a mark, never loses one (G-3).
        filter.fill(0, Math.floor(from / 32), Math.ceil(to / 32));
      }
    }
  }

  #select(block: RamBlock): void {
    let filter = this.#filters.get(block);
    if (filter === undefined) {
      filter = new Int32Array(Math.ceil(block.maxPages / 32));
      this.#filters.set(block, filter);
    }
    this.#block = block;
    this.#filter = filter;
  }
}
