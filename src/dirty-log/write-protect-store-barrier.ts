// The write protector of a guest whose threads ask before they store (spec/algorithms.md 14.5, kind 1): the engine's end.
// Protecting costs the stopped guest two words, however large it is: what grows with the guest is done by `arm`.

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { RamBlock } from '../memory/ram-block.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import { Segment } from '../memory/segment.js';
import { pageIndex } from '../memory/units.js';
import { Handshake, type WaitWhile } from './handshake.js';
import type { StoreBarrierShared } from './store-barrier.js';
import {
  drainedWord,
  entryWord,
  ProtectControl,
  protectionOf,
  pushedWord,
  slotAddress,
  type WriteProtectShared,
} from './write-protect.js';
import type { PagesToSave, UrgentPages, WriteProtector } from './write-protector.js';

/** As for the store barrier's log. */
const TIMEOUT_MS = 10_000;

/** A store barrier whose writers ask. */
export type AskingStoreBarrier = StoreBarrierShared & { readonly protection: WriteProtectShared };

export class StoreBarrierProtector implements WriteProtector {
  readonly #shared: WriteProtectShared;
  readonly #blocks: RamBlockList;
  readonly #handshake: Handshake;
  readonly #control: Int32Array;
  readonly #words: Int32Array;
  readonly #pool: Segment;
  /** The blocks that were armed, by id. */
  readonly #armed = new Map<number, RamBlock>();
  /** The writer whose ring is looked at next, so that none starves. */
  #turn = 0;

  /** The protector as the calling thread uses it; one thread at a time does. `blocks`: that thread's view of the blocks. */
  constructor(shared: AskingStoreBarrier, blocks: RamBlockList, wait?: WaitWhile) {
    this.#shared = shared.protection;
    this.#blocks = blocks;
    this.#handshake = new Handshake(shared.handshake, TIMEOUT_MS, wait);
    this.#control = new Int32Array(shared.protection.control);
    this.#words = blocks.bitmaps.words;
    this.#pool = Segment.attach(shared.protection.pool);
  }

  arm(): void {
    // A writer may still be setting a page aside for an earlier snapshot; after a safepoint it is not.
    this.#handshake.advance(0, Number.POSITIVE_INFINITY);
    for (let writer = 0; writer < this.#shared.writerCount; writer += 1) {
      Atomics.store(this.#control, pushedWord(writer), 0);
      Atomics.store(this.#control, drainedWord(writer), 0);
    }
    const { kernels } = this.#blocks.bitmaps;
    for (const block of this.#blocks.blocks.filter(({ migrated }) => migrated)) {
      const wordCount = Math.ceil(block.maxPages / 64);
      this.#clearBitmaps(block);
      for (const bitmap of Object.values(protectionOf(block.bitmaps))) {
        kernels.merge(block.bitmaps.send, bitmap, wordCount);
      }
      this.#armed.set(block.id, block);
    }
  }

  protect(): void {
    Atomics.store(this.#control, ProtectControl.active, 1);
    // All are parked: this returns at once, and is what makes them ask when they leave.
    this.#handshake.advance(0, Number.POSITIVE_INFINITY);
  }

  nextUrgent(): UrgentPages | undefined {
    const { writerCount } = this.#shared;
    for (let looked = 0; looked < writerCount; looked += 1) {
      const writer = this.#turn;
      this.#turn = (writer + 1) % writerCount;
      const drained = Atomics.load(this.#control, drainedWord(writer));
      const count = (Atomics.load(this.#control, pushedWord(writer)) - drained) | 0;
      if (count > 0) {
        return this.#neighbours(writer, drained, count);
      }
    }
    return undefined;
  }

  claim({ block, pages, count }: PagesToSave): number {
    const { unclaimed } = protectionOf(block.bitmaps);
    let kept = 0;
    for (let index = 0; index < count; ) {
      const word = pages[index]! >>> 5;
      const first = index;
      let mask = 0;
      for (; index < count && pages[index]! >>> 5 === word; index += 1) {
        mask |= 1 << (pages[index]! & 31);
      }
      const won = Atomics.and(this.#words, (unclaimed >>> 2) + word, ~mask);
      for (let at = first; at < index; at += 1) {
        const page = pages[at]!;
        if ((won & (1 << (page & 31))) !== 0) {
          pages[kept] = page;
          kept += 1;
        }
      }
    }
    return kept;
  }

  release({ block, extent, pages, count }: PagesToSave): void {
    if (extent.segment === this.#pool) {
      const writer = Math.floor(extent.address / GUEST_PAGE_SIZE / this.#shared.ringPages);
      Atomics.add(this.#control, drainedWord(writer), count);
    } else {
      const { isProtected } = protectionOf(block.bitmaps);
      for (let index = 0; index < count; ) {
        const word = pages[index]! >>> 5;
        let mask = 0;
        for (; index < count && pages[index]! >>> 5 === word; index += 1) {
          mask |= 1 << (pages[index]! & 31);
        }
        Atomics.and(this.#words, (isProtected >>> 2) + word, ~mask);
      }
    }
    if (Atomics.load(this.#control, ProtectControl.waiting) > 0) {
      wakeWriters(this.#control);
    }
  }

  stop(): void {
    liftProtection(this.#shared);
    // Nobody waits: a writer that asks a little longer finds that the protection has ended.
    this.#handshake.announce(0, Number.POSITIVE_INFINITY);
    for (const block of this.#armed.values()) {
      this.#clearBitmaps(block);
    }
    this.#armed.clear();
  }

  /** The first pages of a ring that are neighbours in their block, and thereby one write. */
  #neighbours(writer: number, drained: number, count: number): UrgentPages {
    const { ringPages } = this.#shared;
    const slot = drained & (ringPages - 1);
    const entry = entryWord(this.#shared, writer, slot);
    const id = this.#control[entry]!;
    const firstPage = this.#control[entry + 1]!;
    const most = Math.min(count, ringPages - slot);
    let pageCount = 1;
    while (
      pageCount < most &&
      this.#control[entry + 2 * pageCount] === id &&
      this.#control[entry + 2 * pageCount + 1] === firstPage + pageCount
    ) {
      pageCount += 1;
    }
    const address = slotAddress(ringPages, writer, slot);
    const extent = { segment: this.#pool, address, firstPage: pageIndex(firstPage), pageCount };
    return { block: this.#armed.get(id)!, extent, firstPage, pageCount };
  }

  #clearBitmaps(block: RamBlock): void {
    for (const bitmap of Object.values(protectionOf(block.bitmaps))) {
      this.#blocks.bitmaps.kernels.testAndClearRange(bitmap, 0, block.maxPages);
    }
  }
}

/** Lets every writer store, in whatever thread: for when that of the engine is gone (TS-35). */
export function liftProtection({ control }: WriteProtectShared): void {
  const words = new Int32Array(control);
  Atomics.store(words, ProtectControl.active, 0);
  wakeWriters(words);
}

function wakeWriters(control: Int32Array): void {
  Atomics.add(control, ProtectControl.progress, 1);
  Atomics.notify(control, ProtectControl.progress);
}
