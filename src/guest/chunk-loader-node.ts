// Pages of a mapped-ram file into guest memory, by any number of threads. Each takes the next MiB of guest memory that
// nobody has taken, and reads the pages that the file has of it straight to where they belong, neighbours in one read.
//
//   counters   NEXT ──▶ chunk 0 │ chunk 1 │ chunk 2 │ …     ACTIVE: threads at work     FAILED: chunks to read again
//                       thread a  thread b  thread a

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { MappedRamBlockIndex } from '../format/mapped-ram/snapshot.js';
import type { ReadAt } from '../format/snapshot.js';
import type { ReadRamBlock } from '../format/stream/stream-handler.js';
import type { RamBlock } from '../memory/ram-block.js';

/** The largest read: 1 MiB, beyond which nothing is gained (spec/node-performance.md section 4). */
const CHUNK_PAGES = 256;

/** Words that the threads share; from FAILED on one for each helper, with the number of a chunk and 1. */
const NEXT = 0;
const ACTIVE = 1;
const FAILED = 2;

/** Behind the last chunk of any memory: 2^30 of them are a PiB. */
const NO_CHUNK = 2 ** 30;

export const allocateChunkCounters = (helpers: number): SharedArrayBuffer =>
  new SharedArrayBuffer(4 * (FAILED + helpers));

/** One thread's part in the work. Whoever makes one counts as at work, until it leaves. */
export class ChunkLoader {
  readonly #readAt: ReadAt;
  readonly #blocks: readonly { readonly block: RamBlock; readonly index: MappedRamBlockIndex }[];
  readonly #words: Int32Array;
  /** The block that the last chunk was in, and the number of its first chunk. Chunks only rise. */
  #current = 0;
  #firstChunk = 0;

  /**
   * @param setup the blocks of the file, whose bitmaps are read now
   * @param blocks of the same names, as long as those
   */
  constructor(
    readAt: ReadAt,
    setup: readonly ReadRamBlock[],
    blocks: readonly RamBlock[],
    counters: SharedArrayBuffer,
  ) {
    this.#readAt = readAt;
    this.#words = new Int32Array(counters);
    this.#blocks = setup.map((announced) => ({
      block: blocks.find(({ name }) => name === announced.name)!,
      index: new MappedRamBlockIndex(readAt, announced, GUEST_PAGE_SIZE),
    }));
    Atomics.add(this.#words, ACTIVE, 1);
  }

  /** Takes the next chunk and loads it; returns how many bytes of guest memory it is, 0 if none is left. */
  loadNext(): number {
    return this.#load(Atomics.add(this.#words, NEXT, 1));
  }

  #load(chunk: number): number {
    if (chunk < this.#firstChunk) {
      this.#current = 0;
      this.#firstChunk = 0;
    }
    for (; this.#current < this.#blocks.length; this.#current += 1) {
      const { block, index } = this.#blocks[this.#current]!;
      const chunks = Math.ceil(index.pageCount / CHUNK_PAGES);
      const first = (chunk - this.#firstChunk) * CHUNK_PAGES;
      if (chunk < this.#firstChunk + chunks) {
        const pageCount = Math.min(CHUNK_PAGES, index.pageCount - first);
        this.#loadPages(block, index, first, first + pageCount);
        return pageCount * GUEST_PAGE_SIZE;
      }
      this.#firstChunk += chunks;
    }
    return 0;
  }

  #loadPages(block: RamBlock, { bitmap, layout, mappedPages }: MappedRamBlockIndex, from: number, end: number): void {
    const last = Math.min(end, mappedPages);
    for (let page = from; page < last; ) {
      const run = bitmap.nextSet(page, last);
      page = bitmap.nextClear(run, last);
      if (run < last) {
        block.forEachRange(run, page - run, ({ segment, address, firstPage }, first, count) => {
          const at = address + (first - firstPage) * GUEST_PAGE_SIZE;
          const bytes = count * GUEST_PAGE_SIZE;
          // MR-1
          this.#readAt(layout.pagesOffset + first * GUEST_PAGE_SIZE, segment.bytes.subarray(at, at + bytes));
          segment.markWritten(at, bytes);
        });
      }
    }
  }

  /**
   * A helper's work: everything that nobody else takes. What it cannot load it leaves to the thread that it helps, which then
   * has the error as its own.
   */
  help(helper: number): void {
    let chunk = 0;
    try {
      do {
        chunk = Atomics.add(this.#words, NEXT, 1);
      } while (this.#load(chunk) > 0);
    } catch {
      Atomics.store(this.#words, FAILED + helper, chunk + 1);
    }
    this.#leave();
  }

  /**
   * The end of the work, when none is left: waits for the helpers, and loads what they could not. Blocks the calling thread,
   * for as long as a chunk takes.
   */
  finish(): void {
    this.#awaitHelpers();
    for (const failed of this.#words.subarray(FAILED)) {
      if (failed > 0) {
        this.#load(failed - 1);
      }
    }
  }

  /** Ends the work before it is done, for all threads: returns when none of them touches the memory any more. */
  abandon(): void {
    Atomics.store(this.#words, NEXT, NO_CHUNK);
    this.#awaitHelpers();
  }

  #awaitHelpers(): void {
    this.#leave();
    for (let active: number; (active = Atomics.load(this.#words, ACTIVE)) > 0; ) {
      Atomics.wait(this.#words, ACTIVE, active);
    }
  }

  #leave(): void {
    Atomics.sub(this.#words, ACTIVE, 1);
    Atomics.notify(this.#words, ACTIVE);
  }
}
