// The urgent queue of postcopy: pages that the destination's guest waits for, in the order in which they were asked for
// (spec/algorithms.md 8.3). What a destination asks is checked here against our own blocks; how much it asks is bounded
// by the queue, whose owner stops reading from a destination that fills it.

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { RamferryError } from '../memory/errors.js';
import type { RamBlock } from '../memory/ram-block.js';

/** Requests that may wait: far more than a guest has threads, and two reads' worth beyond what `isFull` calls full. */
const CAPACITY = 4096;
const FULL = CAPACITY / 2;

/** What is asked for: whole host pages of one block. */
export interface PageRequest {
  readonly block: RamBlock;
  readonly firstPage: number;
  readonly pageCount: number;
  /** When it was read, on the engine's clock. */
  readonly at: number;
}

export class PageRequests {
  /** Messages, not pages, and also those for pages that were sent already (PC-17). */
  received = 0;
  /** Called after each that was added. */
  onArrival: () => void = () => {};
  readonly #blocks: readonly RamBlock[];
  readonly #byName: ReadonlyMap<string, number>;
  readonly #peer: string;
  // A ring; one entry is a block's number, its first page, a page count and a time.
  readonly #ring = new Float64Array(CAPACITY * 4);
  #head = 0;
  #length = 0;

  constructor(blocks: readonly RamBlock[], peer: string) {
    this.#blocks = blocks;
    this.#byName = new Map(blocks.map(({ name }, index) => [name, index]));
    this.#peer = peer;
  }

  get isEmpty(): boolean {
    return this.#length === 0;
  }

  get isFull(): boolean {
    return this.#length >= FULL;
  }

  /** @throws RamferryError `invalid` for what no destination that has our blocks can ask (PC-9) */
  add(blockName: string, start: number, length: number, at: number): void {
    const index = this.#byName.get(blockName);
    if (index === undefined) {
      throw this.#refused(`RAM block "${blockName}", which there is not`, start);
    }
    const { hostPageSize, usedLength } = this.#blocks[index];
    if (start % hostPageSize !== 0 || length % hostPageSize !== 0 || length === 0) {
      throw this.#refused(
        `${length} bytes from byte ${start} of RAM block "${blockName}", whose pages have ${hostPageSize} bytes`,
        start,
      );
    }
    if (start + length > usedLength) {
      throw this.#refused(
        `${length} bytes from byte ${start} of RAM block "${blockName}", which has ${usedLength} bytes`,
        start,
      );
    }
    if (this.#length === CAPACITY) {
      throw this.#refused(`more than ${CAPACITY} pages that it has not got yet`, start);
    }
    this.received += 1;
    const entry = [index, start / GUEST_PAGE_SIZE, length / GUEST_PAGE_SIZE, at];
    this.#ring.set(entry, ((this.#head + this.#length) % CAPACITY) * 4);
    this.#length += 1;
    this.onArrival();
  }

  /** The request that waits longest, which is the caller's from now on. */
  take(): PageRequest | undefined {
    if (this.#length === 0) {
      return undefined;
    }
    const [index, firstPage, pageCount, at] = this.#ring.subarray(this.#head * 4, this.#head * 4 + 4);
    this.#head = (this.#head + 1) % CAPACITY;
    this.#length -= 1;
    return { block: this.#blocks[index], firstPage, pageCount, at };
  }

  /** Drops what waits; after a recovery the destination asks again (RC-7, PC-13). */
  clear(): void {
    this.#length = 0;
  }

  #refused(what: string, value: number): RamferryError {
    return new RamferryError('failed', 'PAGE_REQUEST', `The destination ${this.#peer} asks for ${what}.`, {
      file: this.#peer,
      value,
    });
  }
}
