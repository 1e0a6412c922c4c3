// The page allocator of the workload guest: a buddy allocator, one for each region of a writer, as Linux has one for each
// zone. All it knows is in guest RAM, so that it migrates with the guest:
//
//   | counters, where to search | order 0: 1 bit a page | order 1: 1 bit for 2 pages | … | order 10 | held | in flight |
//
// A bit of order n is set if those 2^n pages, naturally aligned in the RAM block, are free and not part of a larger free
// block. Two free halves become one block at once, and the lowest block that fits is taken, so that what is free stays in
// large pieces: the balloon driver reports blocks of the highest order and no others.
//
//   free ──allocate──▶ in use ──free──▶ free
//     └───allocate, report, hold───▶ held by the balloon ──takeBack (memory is short, or the migration is over)──▶ free
//
// Used by the writer that owns the region and by the balloon driver, each in its thread, under a lock.

import type { StoreBarrierWriter } from '../../dirty-log/index.js';
import type { RamBlock } from '../../memory/index.js';
import { GuestWords } from './guest-words.js';
import type { Mutex } from './mutex.js';
import { countUnpoisoned, poisonPages, zeroPages } from './page-content.js';

/** Blocks of 4 MiB, as in Linux on x86. */
export const MAX_ORDER = 10;
export const MAX_ORDER_PAGES = 2 ** MAX_ORDER;

/** Words in front of the bitmaps. */
const Header = {
  /** From here on, for each order: how many free blocks there are … */
  freeBlocks: 0,
  /** … and a word of its bitmap before which there are none. */
  searchFrom: 16,
  freePages: 32,
  heldBlocks: 33,
  words: 64,
} as const;

/** Bitmaps in front of those two: one for each order. */
const HELD = MAX_ORDER + 1;
const IN_FLIGHT = MAX_ORDER + 2;
const BITMAPS = MAX_ORDER + 3;

const orderOfBitmap = (bitmap: number): number => Math.min(bitmap, MAX_ORDER);

const bitmapWords = (pages: number, bitmap: number): number => Math.ceil(pages / 2 ** orderOfBitmap(bitmap) / 32);

/** The most words that the allocator of `pages` pages needs, wherever they begin. */
export const allocatorWords = (pages: number): number => layOut(pages + MAX_ORDER_PAGES - 1).words;

const layOut = (pages: number): { readonly starts: readonly number[]; readonly words: number } => {
  const starts: number[] = [];
  let words: number = Header.words;
  for (let bitmap = 0; bitmap < BITMAPS; bitmap += 1) {
    starts.push(words);
    words += bitmapWords(pages, bitmap);
  }
  return { starts, words };
};

/** Pages of a RAM block that an allocator hands out, and where it keeps what it knows (`Region`). */
export interface AllocatorPlace {
  readonly block: RamBlock;
  readonly firstDataPage: number;
  readonly dataPages: number;
  readonly allocatorPage: number;
}

/** What a guest does to pages that it takes and gives back. */
export interface PageOptions {
  /** Zero them when they are taken. */
  readonly initOnAlloc: boolean;
  /** Poison them when they are given back, and look whether they still are when they are taken. */
  readonly pagePoison: boolean;
}

/** What a page is used for. */
export const PageUse = { inUse: 0, free: 1, held: 2 } as const;

/** Pages below are data pages of the region, counted from 0. */
export class PageAllocator {
  /** Free pages that were taken and no longer held the poison: each is a page that was lost. */
  spoiled = 0;
  readonly #place: AllocatorPlace;
  readonly #options: PageOptions;
  readonly #mutex: Mutex;
  readonly #barrier: StoreBarrierWriter | undefined;
  readonly #words: GuestWords;
  readonly #starts: readonly number[];
  /** Pages from the aligned page where the bitmaps begin to data page 0, and to the end. */
  readonly #offset: number;
  readonly #span: number;

  /** `barrier`: of the calling thread; undefined if its stores are not marked. */
  constructor(place: AllocatorPlace, options: PageOptions, mutex: Mutex, barrier: StoreBarrierWriter | undefined) {
    this.#place = place;
    this.#options = options;
    this.#mutex = mutex;
    this.#barrier = barrier;
    this.#words = new GuestWords(place.block, place.allocatorPage, barrier);
    this.#offset = place.firstDataPage % MAX_ORDER_PAGES;
    this.#span = this.#offset + place.dataPages;
    this.#starts = layOut(this.#span).starts;
  }

  get freePages(): number {
    return this.#words.load(Header.freePages);
  }

  /** Blocks of the highest order that are the balloon's. */
  get heldBlocks(): number {
    return this.#words.load(Header.heldBlocks);
  }

  freeBlocks(order: number): number {
    return this.#words.load(Header.freeBlocks + order);
  }

  /** Takes the pages into use that nobody uses: all but the first `reserved`. Once, when the guest gets the memory. */
  initialize(reserved: number): void {
    this.free(reserved, this.#place.dataPages - reserved);
  }

  /** The first page of 2^order that were free, or undefined if there are none in a row. */
  allocate(order: number): number | undefined {
    this.#mutex.lock();
    const page = this.#take(order);
    this.#mutex.unlock();
    if (page === undefined) {
      return undefined;
    }
    const { block, firstDataPage } = this.#place;
    if (this.#options.pagePoison) {
      this.spoiled += countUnpoisoned(block, firstDataPage + page, 2 ** order, this.#barrier);
    }
    if (this.#options.initOnAlloc) {
      zeroPages(block, firstDataPage + page, 2 ** order, this.#barrier);
    }
    return page;
  }

  /** Gives back `count` pages in use. */
  free(page: number, count: number): void {
    if (this.#options.pagePoison) {
      poisonPages(this.#place.block, this.#place.firstDataPage + page, count, this.#barrier);
    }
    const end = this.#offset + page + count;
    this.#mutex.lock();
    for (let at = this.#offset + page; at < end; ) {
      // The largest aligned block that begins here and does not go too far.
      let order = 0;
      while (order < MAX_ORDER && at % 2 ** (order + 1) === 0 && at + 2 ** (order + 1) <= end) {
        order += 1;
      }
      this.#give(at, order);
      at += 2 ** order;
    }
    this.#mutex.unlock();
  }

  /**
   * From now on the balloon holds the block that was allocated at `page`. One in flight, which the device has not returned yet,
   * stays with it until it has.
   */
  hold(page: number, inFlight: boolean): void {
    const bit = (this.#offset + page) / MAX_ORDER_PAGES;
    this.#mutex.lock();
    this.#setBit(HELD, bit);
    if (inFlight) {
      this.#setBit(IN_FLIGHT, bit);
    }
    this.#add(Header.heldBlocks, 1);
    this.#mutex.unlock();
  }

  /** The device has returned the held block at `page`. */
  landed(page: number): void {
    this.#mutex.lock();
    this.#clearBit(IN_FLIGHT, (this.#offset + page) / MAX_ORDER_PAGES);
    this.#mutex.unlock();
  }

  /** Frees a block that the balloon holds, one that was reported late, as Linux does. False if there is none to be had. */
  takeBack(): boolean {
    this.#mutex.lock();
    const block = this.#words.load(Header.heldBlocks) === 0 ? undefined : this.#lastHeld();
    if (block !== undefined) {
      this.#clearBit(HELD, block);
      this.#add(Header.heldBlocks, -1);
    }
    this.#mutex.unlock();
    if (block === undefined) {
      return false;
    }
    this.free(block * MAX_ORDER_PAGES - this.#offset, MAX_ORDER_PAGES);
    return true;
  }

  /** The device will not look at any block any more, whether it has returned it or not: all can be taken back. */
  landAll(): void {
    this.#mutex.lock();
    for (let word = 0; word < bitmapWords(this.#span, IN_FLIGHT); word += 1) {
      this.#words.store(this.#starts[IN_FLIGHT]! + word, 0);
    }
    this.#mutex.unlock();
  }

  /**
   * For the verifier: the `PageUse` of each data page. Undefined if the allocator contradicts itself: that is how it looks
   * when some of its pages went back in time.
   */
  classify(): Uint8Array | undefined {
    const pages = new Uint8Array(this.#span);
    let contradictions = 0;
    const counted = { free: 0, held: 0 };
    for (let bitmap = 0; bitmap < IN_FLIGHT; bitmap += 1) {
      const order = orderOfBitmap(bitmap);
      let blocks = 0;
      this.#forEachSet(bitmap, (bit) => {
        const start = bit * 2 ** order;
        const block = pages.subarray(start, start + 2 ** order);
        contradictions +=
          start < this.#offset || block.length < 2 ** order || block.some((use) => use !== PageUse.inUse) ? 1 : 0;
        block.fill(bitmap === HELD ? PageUse.held : PageUse.free);
        blocks += 1;
      });
      if (bitmap === HELD) {
        counted.held = blocks;
      } else {
        counted.free += blocks * 2 ** order;
        contradictions += blocks === this.freeBlocks(order) ? 0 : 1;
      }
    }
    const counters = counted.free === this.freePages && counted.held === this.heldBlocks;
    return contradictions === 0 && counters ? pages.subarray(this.#offset) : undefined;
  }

  // What follows is called under the lock. `at`: pages from where the bitmaps begin.

  #take(order: number): number | undefined {
    let from = order;
    while (from <= MAX_ORDER && this.freeBlocks(from) === 0) {
      from += 1;
    }
    if (from > MAX_ORDER) {
      return undefined;
    }
    const bit = this.#firstFree(from);
    this.#removeFree(from, bit);
    const at = bit * 2 ** from;
    // The upper halves stay free.
    while (from > order) {
      from -= 1;
      this.#addFree(from, at / 2 ** from + 1);
    }
    this.#add(Header.freePages, -(2 ** order));
    return at - this.#offset;
  }

  #give(at: number, order: number): void {
    this.#add(Header.freePages, 2 ** order);
    let bit = at / 2 ** order;
    let merged = order;
    // A block at an edge of the region has a buddy that is never free.
    while (merged < MAX_ORDER && this.#isSet(merged, bit ^ 1)) {
      this.#removeFree(merged, bit ^ 1);
      bit >>>= 1;
      merged += 1;
    }
    this.#addFree(merged, bit);
  }

  #addFree(order: number, bit: number): void {
    this.#setBit(order, bit);
    this.#add(Header.freeBlocks + order, 1);
    if (bit >>> 5 < this.#words.load(Header.searchFrom + order)) {
      this.#words.store(Header.searchFrom + order, bit >>> 5);
    }
  }

  #removeFree(order: number, bit: number): void {
    this.#clearBit(order, bit);
    this.#add(Header.freeBlocks + order, -1);
  }

  /** Lowest free block of an order that has one. */
  #firstFree(order: number): number {
    const searchFrom = this.#words.load(Header.searchFrom + order);
    let index = searchFrom;
    let bits = this.#words.load(this.#starts[order]! + index);
    while (bits === 0) {
      index += 1;
      bits = this.#words.load(this.#starts[order]! + index);
    }
    if (index !== searchFrom) {
      this.#words.store(Header.searchFrom + order, index);
    }
    return index * 32 + (31 - Math.clz32(bits & -bits));
  }

  /** Last held block that is not in flight. */
  #lastHeld(): number | undefined {
    for (let word = bitmapWords(this.#span, HELD) - 1; word >= 0; word -= 1) {
      const bits = this.#words.load(this.#starts[HELD]! + word) & ~this.#words.load(this.#starts[IN_FLIGHT]! + word);
      if (bits !== 0) {
        return word * 32 + 31 - Math.clz32(bits);
      }
    }
    return undefined;
  }

  #forEachSet(bitmap: number, visit: (bit: number) => void): void {
    for (let word = 0; word < bitmapWords(this.#span, bitmap); word += 1) {
      for (let bits = this.#words.load(this.#starts[bitmap]! + word); bits !== 0; bits &= bits - 1) {
        visit(word * 32 + 31 - Math.clz32(bits & -bits));
      }
    }
  }

  #isSet(bitmap: number, bit: number): boolean {
    // The buddy of the last block may lie beyond the bitmap.
    return bit >>> 5 < bitmapWords(this.#span, bitmap) && ((this.#wordOf(bitmap, bit) >>> (bit & 31)) & 1) === 1;
  }

  #setBit(bitmap: number, bit: number): void {
    this.#words.store(this.#starts[bitmap]! + (bit >>> 5), this.#wordOf(bitmap, bit) | (1 << (bit & 31)));
  }

  #clearBit(bitmap: number, bit: number): void {
    this.#words.store(this.#starts[bitmap]! + (bit >>> 5), this.#wordOf(bitmap, bit) & ~(1 << (bit & 31)));
  }

  #wordOf(bitmap: number, bit: number): number {
    return this.#words.load(this.#starts[bitmap]! + (bit >>> 5));
  }

  #add(word: number, difference: number): void {
    this.#words.store(word, this.#words.load(word) + difference);
  }
}
