// Who keeps the guest's pages as they are at one instant while the guest runs on (spec/algorithms.md section 10), as the
// source engine wants it. Kinds differ in how a store is held up (by the guest's own thread, by the kernel); the engine
// knows only this.
//
//   guest runs │ arm │ guest stopped: protect │ guest runs
//                                             │
//   engine        claim ─▶ read and save ─▶ release ─┐
//   guest thread  about to store to a page ──────────┴─▶ stores; a page not saved yet is saved first: `nextUrgent`

import type { Extent, RamBlock } from '../memory/ram-block.js';

/** Neighbouring pages that a guest thread waits for, or has set aside. */
export interface UrgentPages {
  readonly block: RamBlock;
  /** Where their content of the instant is; not where the block lies, if they were set aside. */
  readonly extent: Extent;
  readonly firstPage: number;
  readonly pageCount: number;
}

/** The pages of one extent that the engine saves at once, ascending; the first `count` are valid. */
export interface PagesToSave {
  readonly block: RamBlock;
  readonly extent: Extent;
  readonly pages: Int32Array;
  readonly count: number;
}

export interface WriteProtector {
  /**
   * Prepares the protection of every page whose send bit is set, and of no other: the rest is neither read nor populated
   * (BS-7). The guest runs, and whatever takes time is done here.
   */
  arm(): void;

  /** With the guest stopped: from now on an armed page keeps its content until it is released. */
  protect(): void;

  /**
   * Pages to be saved before all others, since a guest thread waits for them or has them in memory that is short. Undefined
   * when there are none, or when it is the turn of another batch: threads that come again at once wait for it (BS-4).
   */
  nextUrgent(): UrgentPages | undefined;

  /**
   * Takes pages to save them: nobody else saves these, and nobody changes them until `release`. Leaves the others out of
   * the list, which come as urgent ones, and returns how many remain.
   */
  claim(pages: PagesToSave): number;

  /**
   * The content of the pages has left (BS-3): guest threads may store to them, and those that wait go on. A protector may
   * put this off until their neighbours are saved too, which it gives as urgent if somebody waits.
   */
  release(pages: PagesToSave): void;

  /** Lifts all protection and wakes everybody (BS-6). Does nothing the second time, and never throws. */
  stop(): void;
}
