// What the display gets to look at while it redraws: bits that were taken out of dirty memory, in a private copy.

import type { RamPage } from './units.js';

export class DirtySnapshot {
  /** First page covered, a multiple of 64. */
  readonly firstPage: RamPage;
  readonly pageCount: number;
  readonly #words: Int32Array;

  /** `words`: one bit per page from `firstPage` on. */
  constructor(firstPage: RamPage, words: Int32Array) {
    this.firstPage = firstPage;
    this.pageCount = words.length * 32;
    this.#words = words;
  }

  /** Whether the page was dirty. Throws RangeError for a page that the snapshot does not cover (DM-24). */
  isDirty(page: RamPage): boolean {
    const bit = page - this.firstPage;
    if (!(bit >= 0 && bit < this.pageCount)) {
      throw new RangeError(
        `Ram page ${page} is not among the ${this.pageCount} from ${this.firstPage} of this snapshot`,
      );
    }
    return (this.#words[bit >>> 5]! & (1 << (bit & 31))) !== 0;
  }
}
