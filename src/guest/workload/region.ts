// The pages of a RAM block that belong to one writer. The generation of each page is kept in guest RAM as well, and so is
// what the page allocator knows, in pages that are written and marked like all others: it migrates with what it describes.
//
//   block   | writer 0's region                             | writer 1's region                 |
//           | table | data page 0, 1, 2 …       | allocator | table | data …        | allocator |
//               └ one 32-bit word for each data page: its generation, or a `PageState`

import { GUEST_PAGE_SIZE } from '../../../kernels/kernels.js';
import type { StoreBarrierWriter } from '../../dirty-log/index.js';
import type { Extent, RamBlock } from '../../memory/index.js';
import { WORDS_PER_PAGE } from './guest-words.js';
import { allocatorWords } from './page-allocator.js';
import { pageKey } from './pattern.js';

/** What the table says of a page that holds no pattern. */
export const PageState = {
  /** Free, or of the working set but not written yet. */
  unwritten: 0,
  /** In use, and zero. */
  zeroed: 0xffffffff,
  /** In use for something that is no pattern. */
  plain: 0xfffffffe,
  /** Taken, but not written yet: it holds whatever it held when it was free. */
  raw: 0xfffffffd,
} as const;

/** Generations are 1 to this. */
export const GENERATION_MAX = 0xfffffffc;

/** Whether there is something to compare a page with. */
export const hasContent = (generation: number): boolean =>
  generation <= GENERATION_MAX ? generation !== PageState.unwritten : generation === PageState.zeroed;

export class Region {
  readonly block: RamBlock;
  readonly dataPages: number;
  /** First page of the block that holds data, and the first one after the data: the allocator's. */
  readonly firstDataPage: number;
  readonly allocatorPage: number;
  readonly allocatorPages: number;
  readonly #firstPage: number;
  /** Key of the block's page 0; those of the others follow. */
  readonly #key: number;
  #extent: Extent;

  readonly #barrier: StoreBarrierWriter | undefined;

  /**
   * The region of writer number `writer` of `writerCount`. Empty if the block is too small. `barrier`: of the calling thread,
   * if it is one of the guest's; loads are reported to it here, stores by whoever makes them.
   */
  constructor(block: RamBlock, writer: number, writerCount: number, barrier?: StoreBarrierWriter) {
    const first = Math.floor((block.usedPages * writer) / writerCount);
    const pages = Math.floor((block.usedPages * (writer + 1)) / writerCount) - first;
    this.allocatorPages = Math.min(Math.ceil(allocatorWords(pages) / WORDS_PER_PAGE), pages);
    const tablePages = Math.ceil((pages - this.allocatorPages) / (WORDS_PER_PAGE + 1));
    this.#barrier = barrier;
    this.block = block;
    this.dataPages = pages - tablePages - this.allocatorPages;
    this.#firstPage = first;
    this.firstDataPage = first + tablePages;
    this.allocatorPage = this.firstDataPage + this.dataPages;
    this.#key = pageKey(block, 0);
    this.#extent = block.extents[0]!;
  }

  /** Page of the block that holds data page `index`. */
  dataPage(index: number): number {
    return this.firstDataPage + index;
  }

  /** Page of the block that holds the generation of data page `index`. */
  tablePage(index: number): number {
    return this.#firstPage + Math.floor(index / WORDS_PER_PAGE);
  }

  /** Generation of a data page, or its `PageState`. */
  generation(index: number): number {
    this.#barrier?.beforeLoad(this.block, this.tablePage(index));
    const { words } = this.#locate(this.tablePage(index)).segment;
    return words[this.#tableWord(index)]! >>> 0;
  }

  /** Stores to the table page. Marking it is the caller's. */
  setGeneration(index: number, generation: number): void {
    const { words } = this.#locate(this.tablePage(index)).segment;
    words[this.#tableWord(index)] = generation;
  }

  /** Fills a data page with the pattern of its place and the generation. Marking it is the caller's. */
  fill(index: number, generation: number): void {
    const page = this.dataPage(index);
    const { segment } = this.#locate(page);
    segment.kernels.fillPattern(this.#address(page), (this.#key + page) | 0, generation);
  }

  /** Whether a data page that has a content holds what the table says. */
  check(index: number, generation: number): boolean {
    const page = this.dataPage(index);
    this.#barrier?.beforeLoad(this.block, page);
    const { kernels } = this.#locate(page).segment;
    if (generation === PageState.zeroed) {
      return kernels.isZeroPage(this.#address(page)) === 1;
    }
    return kernels.checkPattern(this.#address(page), (this.#key + page) | 0, generation) === 1;
  }

  /** Word index in the segment of a data page's generation. */
  #tableWord(index: number): number {
    return (this.#address(this.tablePage(index)) >>> 2) + (index % WORDS_PER_PAGE);
  }

  #address(page: number): number {
    const extent = this.#locate(page);
    return extent.address + (page - extent.firstPage) * GUEST_PAGE_SIZE;
  }

  /** The extent of a page. Most regions lie in one extent, so the last one is tried first. */
  #locate(page: number): Extent {
    const { firstPage, pageCount } = this.#extent;
    if (page < firstPage || page >= firstPage + pageCount) {
      this.#extent = this.block.extentOf(page);
    }
    return this.#extent;
  }
}
