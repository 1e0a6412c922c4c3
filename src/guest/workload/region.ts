// The pages of a RAM block that belong to one writer. The generation of each page is kept in guest RAM as well, in pages
// that are written and marked like all others, so that it migrates with what it describes.
//
//   block   | writer 0's region                 | writer 1's region                 |
//           | table | data page 0, 1, 2 …       | table | data …                    |
//               └ one 32-bit word for each data page: its generation, 0 if it is free

import { GUEST_PAGE_SIZE } from '../../../kernels/kernels.js';
import type { Extent, RamBlock } from '../../memory/index.js';
import { pageKey } from './pattern.js';

/** Words of a table page. */
const TABLE_WORDS = GUEST_PAGE_SIZE / 4;

export class Region {
  readonly block: RamBlock;
  readonly dataPages: number;
  readonly #firstPage: number;
  readonly #firstDataPage: number;
  /** Key of the block's page 0; those of the others follow. */
  readonly #key: number;
  #extent: Extent;

  /** The region of writer number `writer` of `writerCount`. Empty if the block is too small. */
  constructor(block: RamBlock, writer: number, writerCount: number) {
    const first = Math.floor((block.usedPages * writer) / writerCount);
    const pages = Math.floor((block.usedPages * (writer + 1)) / writerCount) - first;
    const tablePages = Math.ceil(pages / (TABLE_WORDS + 1));
    this.block = block;
    this.dataPages = pages - tablePages;
    this.#firstPage = first;
    this.#firstDataPage = first + tablePages;
    this.#key = pageKey(block, 0);
    this.#extent = block.extents[0]!;
  }

  /** Page of the block that holds data page `index`. */
  dataPage(index: number): number {
    return this.#firstDataPage + index;
  }

  /** Page of the block that holds the generation of data page `index`. */
  tablePage(index: number): number {
    return this.#firstPage + Math.floor(index / TABLE_WORDS);
  }

  /** Generation of a data page; 0 if it is free. */
  generation(index: number): number {
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

  /** Whether a data page holds the pattern of its place and the generation. */
  check(index: number, generation: number): boolean {
    const page = this.dataPage(index);
    const { segment } = this.#locate(page);
    return segment.kernels.checkPattern(this.#address(page), (this.#key + page) | 0, generation) === 1;
  }

  /** Word index in the segment of a data page's generation. */
  #tableWord(index: number): number {
    return (this.#address(this.tablePage(index)) >>> 2) + (index % TABLE_WORDS);
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
