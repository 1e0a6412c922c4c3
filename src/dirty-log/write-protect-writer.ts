// A guest thread's end of the store barrier's write protection: before its first store to a page since the instant, the
// page is saved, by this thread or by whoever was faster.
//
//   PROTECTED? ── no ──────────────────────────────────────────────────────────────────────▶ store
//       └─ yes ─▶ room in the ring? ─ yes ─▶ UNCLAIMED? ─ won ─▶ copy ─▶ unprotect ─▶ push ─▶ store
//                        └─ no ─▶ wait           └─ lost ─▶ wait until it is saved
//
// A thread that holds a page never waits: it looks for room first, and room only grows, since it alone fills its ring.

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { BitmapMemory } from '../memory/bitmap-memory.js';
import type { RamBlock } from '../memory/ram-block.js';
import { Segment } from '../memory/segment.js';
import {
  drainedWord,
  entryWord,
  ProtectControl,
  protectionOf,
  pushedWord,
  slotAddress,
  type WriteProtectShared,
} from './write-protect.js';

export class WriteProtectWriter {
  readonly #shared: WriteProtectShared;
  readonly #writer: number;
  readonly #bitmaps: Int32Array;
  readonly #control: Int32Array;
  readonly #pool: Uint8Array;

  constructor(shared: WriteProtectShared, writer: number, bitmaps: BitmapMemory) {
    this.#shared = shared;
    this.#writer = writer;
    this.#bitmaps = bitmaps.words;
    this.#control = new Int32Array(shared.control);
    this.#pool = Segment.attach(shared.pool).bytes;
  }

  get isActive(): boolean {
    return Atomics.load(this.#control, ProtectControl.active) !== 0;
  }

  /** Returns when the page may be stored to: at once, unless the engine is saving it or the ring is full. */
  beforeStore(block: RamBlock, page: number): void {
    if (this.attempt(block, page)) {
      return;
    }
    Atomics.add(this.#control, ProtectControl.waiting, 1);
    for (;;) {
      // Read first: what is released after the attempt has changed it, or finds this thread counted as waiting.
      const progress = Atomics.load(this.#control, ProtectControl.progress);
      if (this.attempt(block, page)) {
        break;
      }
      Atomics.wait(this.#control, ProtectControl.progress, progress);
    }
    Atomics.sub(this.#control, ProtectControl.waiting, 1);
  }

  /** What can be done without waiting; says whether the page may be stored to. */
  attempt(block: RamBlock, page: number): boolean {
    const word = page >>> 5;
    const bit = 1 << (page & 31);
    const { unclaimed, isProtected } = protectionOf(block.bitmaps);
    if ((Atomics.load(this.#bitmaps, (isProtected >>> 2) + word) & bit) === 0 || !this.isActive) {
      return true;
    }
    if (!this.hasRoom() || !this.claim((unclaimed >>> 2) + word, bit)) {
      return false;
    }
    this.copy(block, page);
    this.unprotect((isProtected >>> 2) + word, bit);
    this.push(block, page);
    return true;
  }

  // The steps, apart, so that a test can let others come between them.

  protected hasRoom(): boolean {
    const drained = Atomics.load(this.#control, drainedWord(this.#writer));
    return ((this.#control[pushedWord(this.#writer)]! - drained) | 0) < this.#shared.ringPages;
  }

  /** True if this thread is to save the page: the one atomic that decides between writers and engine. */
  protected claim(word: number, bit: number): boolean {
    return (Atomics.and(this.#bitmaps, word, ~bit) & bit) !== 0;
  }

  protected copy(block: RamBlock, page: number): void {
    const { segment, address, firstPage } = block.extentOf(page);
    const from = address + (page - firstPage) * GUEST_PAGE_SIZE;
    this.#pool.set(
      segment.bytes.subarray(from, from + GUEST_PAGE_SIZE),
      slotAddress(this.#shared.ringPages, this.#writer, this.#slot),
    );
  }

  /** Other writers may store to the page now (BS-3: or were copied). Those that wait for it are woken by the drain. */
  protected unprotect(word: number, bit: number): void {
    Atomics.and(this.#bitmaps, word, ~bit);
  }

  protected push(block: RamBlock, page: number): void {
    const entry = entryWord(this.#shared, this.#writer, this.#slot);
    this.#control[entry] = block.id;
    this.#control[entry + 1] = page;
    Atomics.add(this.#control, pushedWord(this.#writer), 1);
  }

  get #slot(): number {
    return this.#control[pushedWord(this.#writer)]! & (this.#shared.ringPages - 1);
  }
}
