// release-ram (spec/algorithms.md 8.2, PC-16): the source's memory goes back to the system as it is sent, once the guest is at the
// destination. A page under way is not released: a gathered write reads it where it lies, up to the moment at which it is done.
//
//   sent before the switch ── some at a time, while nobody waits ──┐
//   batch ── the system has taken all of it ───────────────────────┴──▶ released
//
// What is released while it is still on the line is nowhere if the line breaks: a recovery is refused (RC-8).

import type { BitmapKernels } from '../../kernels/kernels.js';
import type { RamBlock } from '../memory/ram-block.js';
import type { PageBatch } from './page-sink.js';

/** Gives pages back to the system; they may read as zero from then on. */
export type ReleasePages = (block: RamBlock, firstPage: number, pageCount: number) => void;

/** 16 MiB: the system takes a millisecond or two for them, and a page that is asked for meanwhile waits. */
const SWEEP_PAGES = 4096;

export class SentPagesRelease {
  readonly #blocks: readonly RamBlock[];
  readonly #kernels: BitmapKernels;
  readonly #release: ReleasePages;
  // Where the sweep is.
  #blockIndex = 0;
  #page = 0;

  constructor(blocks: readonly RamBlock[], kernels: BitmapKernels, release: ReleasePages) {
    this.#blocks = blocks;
    this.#kernels = kernels;
    this.#release = release;
  }

  /** Releases what is not to be sent any more, in the next piece of memory; false once all of it was looked at. */
  sweep(): boolean {
    const block = this.#blocks[this.#blockIndex];
    if (block === undefined) {
      return false;
    }
    const { send } = block.bitmaps;
    const end = Math.min(this.#page + SWEEP_PAGES, block.usedPages);
    for (let page = this.#kernels.findNextClear(send, this.#page, end); page < end; ) {
      const next = this.#kernels.findNextSet(send, page, end);
      this.#release(block, page, next - page);
      page = this.#kernels.findNextClear(send, next, end);
    }
    this.#page = end;
    if (end === block.usedPages) {
      this.#blockIndex += 1;
      this.#page = 0;
    }
    return true;
  }

  /** Releases all: everything was sent, and has left. Also what was still under way when its turn came. */
  finish(): void {
    this.#blockIndex = 0;
    this.#page = 0;
    while (this.sweep()) {}
  }

  /** Releases the batch's pages, in runs. */
  batch({ block, pages, count }: PageBatch): void {
    for (let index = 0; index < count; ) {
      const first = index;
      do {
        index += 1;
      } while (index < count && pages[index] === pages[index - 1] + 1);
      this.#release(block, pages[first], index - first);
    }
  }
}
