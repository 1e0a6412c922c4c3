// 32-bit words in consecutive pages of a RAM block: what a kernel keeps about itself in guest RAM. A store is marked like
// every other one, so the words migrate with the guest.

import { GUEST_PAGE_SIZE } from '../../../kernels/kernels.js';
import type { StoreBarrierWriter } from '../../dirty-log/index.js';
import type { Extent, RamBlock } from '../../memory/index.js';

export const WORDS_PER_PAGE = GUEST_PAGE_SIZE / 4;

export class GuestWords {
  readonly #block: RamBlock;
  readonly #firstPage: number;
  readonly #barrier: StoreBarrierWriter | undefined;
  #extent: Extent;

  /** Word 0 is the first one of page `firstPage`. `barrier`: the calling thread's; undefined if accesses are not reported. */
  constructor(block: RamBlock, firstPage: number, barrier?: StoreBarrierWriter) {
    this.#block = block;
    this.#firstPage = firstPage;
    this.#barrier = barrier;
    this.#extent = block.extents[0]!;
  }

  /** Unsigned. */
  load(index: number): number {
    const page = this.#firstPage + Math.floor(index / WORDS_PER_PAGE);
    this.#barrier?.beforeLoad(this.#block, page);
    const { segment, address, firstPage } = this.#locate(page);
    return segment.words[address / 4 + (page - firstPage) * WORDS_PER_PAGE + (index % WORDS_PER_PAGE)]! >>> 0;
  }

  store(index: number, value: number): void {
    const page = this.#firstPage + Math.floor(index / WORDS_PER_PAGE);
    const { segment, address, firstPage } = this.#locate(page);
    this.#barrier?.beforeStore(this.#block, page);
    segment.words[address / 4 + (page - firstPage) * WORDS_PER_PAGE + (index % WORDS_PER_PAGE)] = value;
    this.#barrier?.mark(this.#block, page);
  }

  /** Most words lie in the extent of the one before, so that is tried first. */
  #locate(page: number): Extent {
    const { firstPage, pageCount } = this.#extent;
    if (page < firstPage || page >= firstPage + pageCount) {
      this.#extent = this.#block.extentOf(page);
    }
    return this.#extent;
  }
}
