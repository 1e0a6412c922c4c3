// Missing pages of a guest whose threads ask before they touch memory (load-barrier.ts): the engine's end, in a thread that has
// an event loop. Needs nothing of the system.

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { Extent, RamBlock } from '../memory/ram-block.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import { Handshake } from './handshake.js';
import {
  Arrival,
  abandonMissingPages,
  type LoadBarrierShared,
  LoadControl,
  slotWord,
  wakeReaders,
} from './load-barrier.js';
import {
  type ArrivedPages,
  type MissingPage,
  type MissingPages,
  noteAllReceived,
  noteReceived,
  ZERO_PAGE,
} from './missing-pages.js';
import type { StoreBarrierShared } from './store-barrier.js';

/** A store barrier whose writers ask before they touch memory. */
export type AskingLoadBarrier = StoreBarrierShared & { readonly loads: LoadBarrierShared };

/** ES2024, in every engine for longer. */
interface AsyncAtomics {
  waitAsync(
    words: Int32Array,
    index: number,
    value: number,
  ): { readonly async: false } | { readonly async: true; readonly value: Promise<unknown> };
}
const { waitAsync } = Atomics as unknown as AsyncAtomics;

export class LoadBarrier implements MissingPages {
  readonly #shared: LoadBarrierShared;
  readonly #handshake: Handshake;
  readonly #blocks: RamBlockList;
  readonly #control: Int32Array;
  #onFault: (() => void) | undefined;

  /** `blocks`: the calling thread's view of the guest's blocks. */
  constructor(shared: AskingLoadBarrier, blocks: RamBlockList) {
    this.#shared = shared.loads;
    this.#handshake = new Handshake(shared.handshake, 0);
    this.#blocks = blocks;
    this.#control = new Int32Array(shared.loads.control);
  }

  arm(onFault: () => void): void {
    Atomics.store(this.#control, LoadControl.state, Arrival.expected);
    // All are parked, and look when they leave.
    this.#handshake.advance(0, Number.POSITIVE_INFINITY);
    this.#onFault = onFault;
    this.#listen();
  }

  /** Calls `onFault` for every wait, from the event loop. */
  #listen(): void {
    while (this.#onFault !== undefined) {
      const asked = Atomics.load(this.#control, LoadControl.asked);
      this.#onFault();
      const waiting = waitAsync(this.#control, LoadControl.asked, asked);
      if (waiting.async) {
        void waiting.value.then(() => this.#listen());
        return;
      }
    }
  }

  nextFault(): MissingPage | undefined {
    const control = this.#control;
    for (let writer = 0; writer < this.#shared.writerCount; writer += 1) {
      const slot = slotWord(writer);
      if (Atomics.exchange(control, slot, 0) !== 0) {
        const id = control[slot + 1];
        return { block: this.#blocks.blocks.find((block) => block.id === id)!, page: control[slot + 2]! };
      }
    }
    return undefined;
  }

  place(pages: ArrivedPages): void {
    const { extent, contents, count, bytes } = pages;
    const { segment } = extent;
    const isStaged = bytes === segment.bytes;
    for (let index = 0; index < count; index += 1) {
      const page = pages.pages[index]!;
      const from = contents[index]!;
      const address = extent.address + (page - extent.firstPage) * GUEST_PAGE_SIZE;
      if (from === ZERO_PAGE) {
        fillZero(extent, page);
        continue;
      }
      if (isStaged) {
        segment.kernels.copy(address, from, GUEST_PAGE_SIZE);
      } else {
        segment.bytes.set(bytes.subarray(from, from + GUEST_PAGE_SIZE), address);
      }
      segment.markWritten(address, GUEST_PAGE_SIZE);
    }
    noteReceived(this.#blocks.bitmaps.words, pages);
    if (Atomics.load(this.#control, LoadControl.waiting) > 0) {
      wakeReaders(this.#control);
    }
  }

  finish(): void {
    const { kernels, words } = this.#blocks.bitmaps;
    for (const block of this.#blocks.blocks.filter(({ migrated }) => migrated)) {
      forEachMissing(block, kernels, (page) => fillZero(block.extentOf(page), page));
      noteAllReceived(words, block);
    }
    this.#stop();
    Atomics.store(this.#control, LoadControl.state, Arrival.none);
    wakeReaders(this.#control);
    // Nobody waits: a thread that asks a little longer finds every page there.
    this.#handshake.announce(0, Number.POSITIVE_INFINITY);
  }

  abandon(): void {
    this.#stop();
    abandonMissingPages(this.#shared);
  }

  #stop(): void {
    this.#onFault = undefined;
    Atomics.notify(this.#control, LoadControl.asked);
  }
}

/** Memory that nothing was stored to reads as zero; filling it would only commit it. */
const fillZero = ({ segment, address, firstPage }: Extent, page: number): void => {
  const at = address + (page - firstPage) * GUEST_PAGE_SIZE;
  const word = segment.words[(segment.writtenBitmap >>> 2) + (at >>> 17)]!;
  if ((word & (1 << (at >>> 12))) !== 0) {
    segment.kernels.zeroFill(at, GUEST_PAGE_SIZE);
  }
};

const forEachMissing = (
  { bitmaps: { received }, usedPages }: RamBlock,
  kernels: RamBlockList['bitmaps']['kernels'],
  visit: (page: number) => void,
): void => {
  for (let page = kernels.findNextClear(received, 0, usedPages); page < usedPages; ) {
    visit(page);
    page = kernels.findNextClear(received, page + 1, usedPages);
  }
};
