// What a page allocator does to the content of pages: zeroes them when they are taken (Linux: init_on_alloc), fills them
// with a poison value when they are given back (page_poison), and looks whether free pages still hold it.

import { GUEST_PAGE_SIZE } from '../../../kernels/kernels.js';
import type { StoreBarrierWriter } from '../../dirty-log/index.js';
import type { Extent, RamBlock } from '../../memory/index.js';

/** Linux's PAGE_POISON in all four bytes; what the driver tells the balloon device. */
export const POISON_VALUE = 0xaaaaaaaa;

const addressOf = ({ address, firstPage }: Extent, page: number): number =>
  address + (page - firstPage) * GUEST_PAGE_SIZE;

function beforeStores(block: RamBlock, firstPage: number, pageCount: number, barrier?: StoreBarrierWriter): void {
  for (let page = firstPage; page < firstPage + pageCount; page += 1) {
    barrier?.beforeStore(block, page);
  }
}

/** Zeroes pages of a block. */
export function zeroPages(block: RamBlock, firstPage: number, pageCount: number, barrier?: StoreBarrierWriter): void {
  beforeStores(block, firstPage, pageCount, barrier);
  block.forEachRange(firstPage, pageCount, (extent, first, count) => {
    extent.segment.kernels.zeroFill(addressOf(extent, first), count * GUEST_PAGE_SIZE);
  });
  barrier?.markRange(block, firstPage, pageCount);
}

/** Fills pages of a block with the poison. */
export function poisonPages(block: RamBlock, firstPage: number, pageCount: number, barrier?: StoreBarrierWriter): void {
  beforeStores(block, firstPage, pageCount, barrier);
  block.forEachRange(firstPage, pageCount, ({ segment, ...extent }, first, count) => {
    const address = addressOf({ segment, ...extent }, first);
    const bytes = count * GUEST_PAGE_SIZE;
    segment.words.fill(POISON_VALUE, address / 4, (address + GUEST_PAGE_SIZE) / 4);
    for (let done = GUEST_PAGE_SIZE; done < bytes; done *= 2) {
      segment.kernels.copy(address + done, address, Math.min(done, bytes - done));
    }
  });
  barrier?.markRange(block, firstPage, pageCount);
}

/** How many of the pages do not hold the poison. */
export function countUnpoisoned(
  block: RamBlock,
  firstPage: number,
  pageCount: number,
  barrier?: StoreBarrierWriter,
): number {
  let spoiled = 0;
  block.forEachRange(firstPage, pageCount, (extent, first, count) => {
    const { words } = extent.segment;
    for (let page: number = first; page < first + count; page += 1) {
      barrier?.beforeLoad(block, page);
      const start = addressOf(extent, page) / 4;
      let difference = 0;
      for (let word = start; word < start + GUEST_PAGE_SIZE / 4; word += 1) {
        difference |= words[word]! ^ POISON_VALUE;
      }
      spoiled += difference === 0 ? 0 : 1;
    }
  });
  return spoiled;
}
