// A guest thread's end of the load barrier (load-barrier.ts): before it touches a page that has not come, it asks and waits.

import type { BitmapMemory } from '../memory/bitmap-memory.js';
import { RamferryError } from '../memory/errors.js';
import type { RamBlock } from '../memory/ram-block.js';
import { Arrival, type LoadBarrierShared, LoadControl, slotWord } from './load-barrier.js';

export class LoadBarrierReader {
  readonly #bitmaps: Int32Array;
  readonly #control: Int32Array;
  readonly #slot: number;

  constructor({ control }: LoadBarrierShared, writer: number, bitmaps: BitmapMemory) {
    this.#bitmaps = bitmaps.words;
    this.#control = new Int32Array(control);
    this.#slot = slotWord(writer);
  }

  /** Whether pages are to be asked about at all. */
  get isActive(): boolean {
    return Atomics.load(this.#control, LoadControl.state) !== Arrival.none;
  }

  /** Returns when the page is there. Throws GUEST_MEMORY_LOST if it will never be: the thread must end. */
  beforeAccess(block: RamBlock, page: number): void {
    if (this.isThere(block, page)) {
      return;
    }
    const control = this.#control;
    this.announce(block, page);
    for (;;) {
      // Read first: what comes after the look has changed it.
      const arrived = Atomics.load(control, LoadControl.arrived);
      if (this.isThere(block, page)) {
        break;
      }
      this.sleep(arrived);
    }
    Atomics.sub(control, LoadControl.waiting, 1);
  }

  // The steps, apart, so that a test can let others come between them.

  /** Whether the page can be touched. Throws GUEST_MEMORY_LOST. */
  protected isThere({ name, bitmaps, migrated }: RamBlock, page: number): boolean {
    if (
      !migrated ||
      (Atomics.load(this.#bitmaps, (bitmaps.received >>> 2) + (page >>> 5)) & (1 << (page & 31))) !== 0
    ) {
      return true;
    }
    const state = Atomics.load(this.#control, LoadControl.state);
    if (state === Arrival.abandoned) {
      const message = `Page ${page} of RAM block "${name}" never came: its source is gone`;
      throw new RamferryError('failed', 'GUEST_MEMORY_LOST', message, { value: page });
    }
    return state === Arrival.none;
  }

  protected announce(block: RamBlock, page: number): void {
    const control = this.#control;
    Atomics.add(control, LoadControl.waiting, 1);
    control[this.#slot + 1] = block.id;
    control[this.#slot + 2] = page;
    Atomics.store(control, this.#slot, 1);
    Atomics.add(control, LoadControl.asked, 1);
    Atomics.notify(control, LoadControl.asked);
  }

  protected sleep(arrived: number): void {
    Atomics.wait(this.#control, LoadControl.arrived, arrived);
  }
}
