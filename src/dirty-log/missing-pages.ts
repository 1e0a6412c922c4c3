// Who keeps guest threads from pages that have not arrived, while the guest runs (spec/algorithms.md 8.5), as the destination
// engine wants it. Kinds differ in how a thread is held up (by itself, by the kernel); the engine knows only this. Which
// pages are there is what the received bitmaps (RECV) say.
//
//   guest stopped: arm │ guest runs
//
//   guest thread  touches a page ── missing ─▶ waits ──────────────────┐                   ┌─▶ goes on
//   engine                          onFault ─▶ nextFault ─▶ asks source │ ◀── pages ── place ┘   content first, bit second

import type { Extent, RamBlock } from '../memory/ram-block.js';
import { maskOfBits } from '../memory/words.js';

/** A page that a guest thread waits for. */
export interface MissingPage {
  readonly block: RamBlock;
  readonly page: number;
}

/** Pages of one extent that were missing and have come; the first `count` are valid. */
export interface ArrivedPages {
  readonly block: RamBlock;
  readonly extent: Extent;
  readonly pages: Int32Array;
  /** Where the content of each begins in `bytes`; ZERO_PAGE for one without. */
  readonly contents: Int32Array;
  readonly count: number;
  readonly bytes: Uint8Array;
}

export const ZERO_PAGE = -1;

export interface MissingPages {
  /**
   * With the guest stopped: from now on a thread that touches a page whose received bit is clear waits for it. `onFault` is called in
   * the calling thread when there is something for `nextFault`.
   */
  arm(onFault: () => void): void;

  /** A page that a guest thread waits for, each wait once; undefined when there is none. */
  nextFault(): MissingPage | undefined;

  /** Stores the pages, so that no thread ever sees a part of one, sets their received bits and wakes who waits for them. */
  place(pages: ArrivedPages): void;

  /** Nothing more will come: pages that are still missing are zero. Sets all received bits. */
  finish(): void;

  /** Nothing more will come, and what is missing is lost: a thread that needs it ends, and the guest with it. Never throws. */
  abandon(): void;
}

/** Sets the received bits of pages; sequentially consistent, so that whoever sees a bit sees what was stored before. */
export function noteReceived(words: Int32Array, { block, pages, count }: ArrivedPages): void {
  for (let index = 0; index < count; ) {
    const word = pages[index]! >>> 5;
    let mask = 0;
    for (; index < count && pages[index]! >>> 5 === word; index += 1) {
      mask |= 1 << (pages[index]! & 31);
    }
    Atomics.or(words, (block.bitmaps.received >>> 2) + word, mask);
  }
}

/** The same for all pages of a block. */
export function noteAllReceived(words: Int32Array, { bitmaps, usedPages }: RamBlock): void {
  for (let page = 0; page < usedPages; page += 32) {
    Atomics.or(words, (bitmaps.received >>> 2) + (page >>> 5), maskOfBits(page, Math.min(page + 32, usedPages)));
  }
}
