// Which blocks of pages belong to whom: what page tables and a file cache's index are to a kernel. The lists lie in pages
// that the writer takes from its allocator, so that they migrate, and shrink what there is for others, like everything else.
//
//   | blocks of the running process, a stack | blocks of the file cache, a ring, oldest first |
//
// An entry is a block's first frame and its order in one word, so there may be 2^28 frames: 1 TiB.

import { type GuestWords, WORDS_PER_PAGE } from './guest-words.js';
import { Register } from './registers.js';

const ORDERS = 16;

export interface PageBlock {
  readonly frame: number;
  readonly order: number;
}

/** The most pages of lists: enough for a file cache of 1 GiB. */
const ORDER_LIMIT = 6;

/** log2 of the pages for lists of `entries` entries each, or for as many as there may be. */
export const orderOfLists = (entries: number): number =>
  Math.min(ORDER_LIMIT, Math.max(0, Math.ceil(Math.log2((2 * entries) / WORDS_PER_PAGE))));

/** The most entries of each of two lists in 2^order pages. */
export const capacityOfLists = (order: number): number => (2 ** order * WORDS_PER_PAGE) / 2;

export class BlockLists {
  /** The most entries of either list. */
  readonly capacity: number;
  readonly #words: GuestWords;
  readonly #registers: Float64Array;

  /** `words`: twice as many as the capacity. */
  constructor(words: GuestWords, capacity: number, registers: Float64Array) {
    this.#words = words;
    this.capacity = capacity;
    this.#registers = registers;
  }

  get processLength(): number {
    return this.#registers[Register.processLength]!;
  }

  get cacheLength(): number {
    return this.#registers[Register.cacheLength]!;
  }

  pushProcess(block: PageBlock): void {
    this.#store(this.#registers[Register.processLength]!++, block);
  }

  popProcess(): PageBlock {
    return this.#load(--this.#registers[Register.processLength]!);
  }

  /** The block that the process got last. */
  lastOfProcess(): PageBlock {
    return this.#load(this.processLength - 1);
  }

  appendCache(block: PageBlock): void {
    this.#store(this.#cacheEntry(this.cacheLength), block);
    this.#registers[Register.cacheLength]! += 1;
  }

  /** The oldest entry leaves. */
  takeCache(): PageBlock {
    const block = this.cached(0);
    const { cacheFirst, cacheLength } = Register;
    this.#registers[cacheFirst] = (this.#registers[cacheFirst]! + 1) % this.capacity;
    this.#registers[cacheLength]! -= 1;
    return block;
  }

  /** Entry of the cache, by age, oldest first. */
  cached(index: number): PageBlock {
    return this.#load(this.#cacheEntry(index));
  }

  #cacheEntry(index: number): number {
    return this.capacity + ((this.#registers[Register.cacheFirst]! + index) % this.capacity);
  }

  #load(index: number): PageBlock {
    const entry = this.#words.load(index);
    return { frame: Math.floor(entry / ORDERS), order: entry % ORDERS };
  }

  #store(index: number, { frame, order }: PageBlock): void {
    this.#words.store(index, frame * ORDERS + order);
  }
}
