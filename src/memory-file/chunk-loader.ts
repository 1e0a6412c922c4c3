// Pages of a mapped-ram file into guest memory. Chunk by chunk the pages that the file has are read straight to where they
// belong, neighbours in one read. Of several chunks that are loaded at once, the reads run side by side.

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { MappedRamBlockIndex } from '../format/mapped-ram/snapshot.js';
import type { ReadAt } from '../format/snapshot.js';
import type { ReadRamBlock } from '../format/stream/stream-handler.js';
import type { RamBlock } from '../memory/ram-block.js';

/**
 * The largest read, and what its place is a multiple of: 4 MiB. Beyond 1 MiB one thread gains nothing (spec/node-performance.md
 * section 4), but two threads must not meet in a huge page that is not there yet: both would make one, and zero it.
 */
const CHUNK_PAGES = 1024;

/** A read of fewer pages takes no longer than to hand it to another thread. */
const LATER_PAGES = 8;

export interface ChunkReader {
  readonly readAt: ReadAt;
  /** Reads in another thread. */
  readLater(position: number, target: Uint8Array): Promise<void>;
}

export class ChunkLoader {
  readonly #reader: ChunkReader;
  readonly #blocks: readonly { readonly block: RamBlock; readonly index: MappedRamBlockIndex }[];
  /** What comes next. */
  #current = 0;
  #page = 0;

  /**
   * @param setup the blocks of the file, whose bitmaps are read now
   * @param blocks of the same names, as long as those
   */
  constructor(reader: ChunkReader, setup: readonly ReadRamBlock[], blocks: readonly RamBlock[]) {
    this.#reader = reader;
    this.#blocks = setup.map((announced) => ({
      block: blocks.find(({ name }) => name === announced.name)!,
      index: new MappedRamBlockIndex(reader.readAt, announced, GUEST_PAGE_SIZE),
    }));
  }

  /**
   * Takes the next chunk and loads it; undefined if none is left. Settles when nothing of it is being read any more;
   * rejects with what the reader throws.
   */
  loadNext(): Promise<void> | undefined {
    for (; this.#current < this.#blocks.length; this.#current += 1, this.#page = 0) {
      const { block, index } = this.#blocks[this.#current]!;
      const from = index.bitmap.nextSet(this.#page, index.mappedPages);
      if (from < index.mappedPages) {
        this.#page = Math.min(from - (from % CHUNK_PAGES) + CHUNK_PAGES, index.mappedPages);
        return this.#load(block, index, from, this.#page);
      }
    }
    return undefined;
  }

  async #load(block: RamBlock, { bitmap, layout }: MappedRamBlockIndex, from: number, end: number): Promise<void> {
    const later: Promise<void>[] = [];
    try {
      for (let page = from; page < end; ) {
        const run = bitmap.nextSet(page, end);
        page = bitmap.nextClear(run, end);
        if (run < end) {
          block.forEachRange(run, page - run, ({ segment, address, firstPage }, first, count) => {
            const at = address + (first - firstPage) * GUEST_PAGE_SIZE;
            const target = segment.bytes.subarray(at, at + count * GUEST_PAGE_SIZE);
            // MR-1
            const position = layout.pagesOffset + first * GUEST_PAGE_SIZE;
            if (count < LATER_PAGES) {
              this.#reader.readAt(position, target);
            } else {
              later.push(this.#reader.readLater(position, target));
            }
            segment.markWritten(at, target.length);
          });
        }
      }
    } finally {
      await Promise.allSettled(later);
    }
    await Promise.all(later);
  }
}
