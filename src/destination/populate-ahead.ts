// The first store to a page costs a destination more than all the rest it does with it: the system has to find and zero
// the memory. A helper in another thread does that for pages that will probably be loaded next, and this decides which.
//
//   loaded                              probably next        not yet
//   |███████████████████████████████████|▒▒▒▒|                        a dense run populates 1/8 of its length ahead
//   |██░░░░█░░░░░░░░░░░░░|                                             zero pages end a run: nothing is populated

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { Segment } from '../memory/segment.js';

/** Touches memory in the background, so that the thread that loads it finds it there. Must not change what the memory holds. */
export interface Populator {
  /** `at` is where loading has got, `end` how far memory of this segment is worth populating; both are addresses in it. */
  populate(segment: Segment, at: number, end: number): void;
}

/**
 * What is populated in vain, because the run ends, stays resident without need. So it is a small share of what was
 * loaded, and never much: memory in proportion to what the source has is a promise (spec/algorithms.md 6(a)).
 */
const RUN_SHARE = 1 / 8;
const AHEAD_BYTES_MAX = 8 * 2 ** 20;

/** A huge page: less is not worth a word to the other thread. */
const STEP_BYTES = 2 * 2 ** 20;

export class PopulateAhead {
  readonly #populator: Populator;
  #segment: Segment | undefined;
  /** Where the next records continue the run. */
  #next = 0;
  #runBytes = 0;
  /** How far was asked for. */
  #asked = 0;

  constructor(populator: Populator) {
    this.#populator = populator;
  }

  /** Records of `pageCount` pages were loaded from `address` on, in an extent that ends at `extentEnd`. */
  loaded(segment: Segment, address: number, pageCount: number, normalPages: number, extentEnd: number): void {
    if (segment !== this.#segment || address !== this.#next) {
      this.#segment = segment;
      this.#runBytes = 0;
      this.#asked = 0;
    }
    const bytes = pageCount * GUEST_PAGE_SIZE;
    this.#next = address + bytes;
    this.#runBytes = normalPages * 2 < pageCount ? 0 : this.#runBytes + bytes;
    const end = Math.min(extentEnd, this.#next + Math.min(AHEAD_BYTES_MAX, this.#runBytes * RUN_SHARE));
    if (end >= Math.max(this.#asked, this.#next) + STEP_BYTES) {
      this.#asked = end;
      this.#populator.populate(segment, this.#next, end);
    }
  }
}
