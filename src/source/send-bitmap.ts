// What is still to be sent, and the one place that decides it. The engine's thread is the sole owner of the send
// bitmaps, of their counter and of the clear bitmaps, so none of this needs a lock (spec/algorithms.md 14.6); hints,
// requests and discards reach it through the engine.

import type { BitmapKernels } from '../../kernels/kernels.js';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { ClearBitmap } from '../dirty-log/clear-bitmap.js';
import type { DirtyLog } from '../dirty-log/dirty-log.js';
import { checkCount, checkHandedOn } from '../dirty-log/dirty-log-contract.js';
import { DirtyClient } from '../memory/dirty-memory.js';
import { RamferryError } from '../memory/errors.js';
import type { Extent, RamBlock } from '../memory/ram-block.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import { type PageIndex, ramPage } from '../memory/units.js';
import { PageBatch } from './page-sink.js';
import type { Trace } from './trace.js';

/** Pages per batch: one staging slot's worth of normal records, and few enough that a batch takes well under a millisecond. */
export const BATCH_PAGES = 256;

/** Log clears so far: calls, and the pages whose mark they removed. */
export interface LogClears {
  calls: number;
  pages: number;
}

export interface SendBitmapOptions {
  readonly blocks: RamBlockList;
  /** Undefined for a guest that cannot write. */
  readonly log: DirtyLog | undefined;
  /** Undefined: no clear bitmap, every sync clears at once. */
  readonly clearBitmapShift: number | undefined;
  /** Where the pages of a block can be read; by default where the block lies in memory. */
  readonly extentAt?: (block: RamBlock, page: PageIndex, pageCount: number) => Extent;
  readonly trace: Trace;
}

/** One migrated block with the engine's own state about it. */
interface MigratedBlock {
  readonly block: RamBlock;
  readonly clears: ClearBitmap | undefined;
}

export class SendBitmap {
  /** Pages still to be sent: the population count of all send bitmaps (G-2). */
  remaining = 0;
  readonly logClears: LogClears = { calls: 0, pages: 0 };

  /** The batch that `next` found. */
  readonly batch: PageBatch;

  readonly #options: SendBitmapOptions;
  readonly #kernels: BitmapKernels;
  readonly #blocks: readonly MigratedBlock[];
  /** Page list of the batch, in the bitmaps' memory so that kernels reach it. */
  readonly #list: number;

  /** After the last sync the guest does not write: what is still owed does not matter, and costs downtime. */
  #guestStopped = false;

  // The search cursor: next page to look at (spec/algorithms.md 7.7).
  #blockIndex = 0;
  #page = 0;

  /** Takes every page of every block that is not ignored (G-9, G-10: nothing is trusted from an earlier attempt). */
  constructor(options: SendBitmapOptions) {
    this.#options = options;
    const { bitmaps, blocks } = options.blocks;
    this.#kernels = bitmaps.kernels;
    // A chunk is what is cleared at a time.
    const shift = Math.max(options.clearBitmapShift ?? 0, Math.ceil(Math.log2(options.log?.clearAlignPages ?? 1)));
    this.#blocks = blocks
      .filter((block) => block.migrated)
      .map((block) => ({
        block,
        clears:
          options.log?.hasRangedClear !== true || options.clearBitmapShift === undefined
            ? undefined
            : new ClearBitmap(block.usedPages, block.maxPages, shift),
      }));
    this.#list = bitmaps.scratch;
    this.batch = new PageBatch(bitmaps.words.subarray(this.#list / 4, this.#list / 4 + BATCH_PAGES));
    for (const { block } of this.#blocks) {
      this.#kernels.testAndClearRange(block.bitmaps.send, 0, block.maxPages);
      this.#kernels.setRange(block.bitmaps.send, 0, block.usedPages);
      this.remaining += block.usedPages;
    }
  }

  /** Total pages of the blocks that take part. */
  get totalPages(): number {
    return this.#blocks.reduce((total, { block }) => total + block.usedPages, 0);
  }

  get remainingBytes(): number {
    return this.remaining * GUEST_PAGE_SIZE;
  }

  /**
   * Fetches the log: REMOTE to SNAP to dirty memory to the send bitmaps, and records the debt of clearing it
   * (spec/algorithms.md 2(c)). With `last` the guest is stopped: nothing will be written, so nothing is owed.
   * Returns the newly dirty pages.
   */
  sync(last: boolean): number {
    const { log, blocks } = this.#options;
    if (log === undefined) {
      return 0;
    }
    this.#guestStopped = last;
    let added = 0;
    for (const { block, clears } of this.#blocks) {
      checkHandedOn(block, log.sync(block, last), blocks);
      added += blocks.dirty.syncInto(block);
      // The debt is recorded only after the bits arrived: a clear in between would forget bits not yet in SEND.
      if (last) {
        continue;
      }
      if (clears !== undefined) {
        clears.arm(0, block.usedPages);
      } else {
        this.#clear(block, 0, block.usedPages);
      }
    }
    this.remaining += added;
    return added;
  }

  /**
   * Finds the next pages to send, from the cursor, at most `limit` and at most `pagesWanted`; false after everything was
   * looked at once (PL-17).
   * @throws RamferryError `COUNTER_MISMATCH` if nothing is there and the counter says otherwise: who waits for it to reach 0
   * would wait for ever
   */
  next(limit: (extent: Extent) => number, pagesWanted = BATCH_PAGES): boolean {
    const blocks = this.#blocks;
    const startIndex = this.#blockIndex;
    const startPage = this.#page;
    let wrapped = false;
    while (blocks.length > 0) {
      const { block } = blocks[this.#blockIndex] as MigratedBlock;
      const lap = wrapped && this.#blockIndex === startIndex;
      const end = lap ? Math.min(startPage, block.usedPages) : block.usedPages;
      const found = this.#page < end ? this.#kernels.findNextSet(block.bitmaps.send, this.#page, end) : end;
      if (found < end) {
        this.#fill(block, found, block.usedPages, limit, pagesWanted);
        return true;
      }
      if (lap) {
        break;
      }
      this.#page = 0;
      this.#blockIndex += 1;
      if (this.#blockIndex === blocks.length) {
        this.#blockIndex = 0;
        wrapped = true;
      }
    }
    this.#blockIndex = startIndex;
    this.#page = startPage;
    if (this.remaining !== 0) {
      throw this.#mismatch('is empty');
    }
    return false;
  }

  /**
   * To be called when all is sent.
   * @throws RamferryError `COUNTER_MISMATCH` if a page is left after all, or the counter is not 0 (G-2)
   */
  checkEmpty(): void {
    const left = this.#blocks.find(
      ({ block }) => this.#kernels.findNextSet(block.bitmaps.send, 0, block.usedPages) < block.usedPages,
    );
    if (left !== undefined || this.remaining !== 0) {
      throw this.#mismatch(left === undefined ? 'is empty' : `still has pages of RAM block ${left.block.name}`);
    }
  }

  #mismatch(what: string): RamferryError {
    return new RamferryError(
      'failed',
      'COUNTER_MISMATCH',
      `The send bitmap ${what} but its counter says ${this.remaining} pages: the migration is not safe to complete.`,
      { value: this.remaining },
    );
  }

  /**
   * The same in [firstPage, endPage) of a block alone; false if nothing is to be sent there. The cursor goes along: what
   * follows is likely wanted next.
   */
  nextIn(block: RamBlock, firstPage: number, endPage: number, limit: (extent: Extent) => number): boolean {
    const end = Math.min(endPage, block.usedPages);
    const found = firstPage < end ? this.#kernels.findNextSet(block.bitmaps.send, firstPage, end) : end;
    if (found >= end) {
      return false;
    }
    this.#blockIndex = this.#blocks.findIndex((migrated) => migrated.block === block);
    this.#fill(block, found, end, limit, Math.min(BATCH_PAGES, end - found));
    return true;
  }

  #fill(block: RamBlock, first: number, endPage: number, limit: (extent: Extent) => number, pagesWanted: number): void {
    const page = first as PageIndex;
    const extent = this.#options.extentAt?.(block, page, pagesWanted) ?? block.extentOf(page);
    const end = Math.min(endPage, extent.firstPage + extent.pageCount);
    const { batch } = this;
    batch.block = block;
    batch.extent = extent;
    batch.count = this.#kernels.collect(
      block.bitmaps.send,
      first,
      end,
      this.#list,
      Math.min(pagesWanted, limit(extent)),
    );
    this.#page = (batch.pages[batch.count - 1] as number) + 1;
  }

  /** Makes the batch of these pages, whose content is in `extent`, wherever the cursor is: they cannot wait. */
  pick(block: RamBlock, extent: Extent, firstPage: number, pageCount: number): void {
    const { batch } = this;
    batch.block = block;
    batch.extent = extent;
    batch.count = this.#kernels.collect(block.bitmaps.send, firstPage, firstPage + pageCount, this.#list, BATCH_PAGES);
  }

  /**
   * Pays what is owed for the chunks of the batch; must come before its pages are read (CB-1). A write between the
   * clear and the read is both in the bytes and in the log: sent twice at worst, never lost.
   */
  payDebts(): void {
    const { block, pages, count } = this.batch;
    const clears = this.#blocks[this.#blockIndex]?.clears;
    if (clears === undefined || this.#guestStopped) {
      return;
    }
    let paidUpTo = 0;
    for (let index = 0; index < count; index += 1) {
      const page = pages[index] as number;
      if (page < paidUpTo) {
        continue;
      }
      paidUpTo = (Math.floor(page / clears.chunkPages) + 1) * clears.chunkPages;
      const chunk = clears.take(page);
      if (chunk === undefined) {
        continue;
      }
      this.#options.trace.migration_bitmap_clear_dirty?.(
        block.name,
        chunk.firstPage * GUEST_PAGE_SIZE,
        chunk.pageCount * GUEST_PAGE_SIZE,
        page,
      );
      this.#clear(block, chunk.firstPage, chunk.pageCount);
    }
  }

  /** Takes the batch's pages out of the send bitmap; the counter falls by the bits that were really set (G-2). */
  take(): void {
    this.remaining -= this.#kernels.clearListed(this.batch.block.bitmaps.send, this.#list, this.batch.count);
  }

  /**
   * Pays every debt at once: from here on, each further write is new to the log. The unacknowledged hints of a round
   * may be asked for only then, and cost the round its lazy clearing.
   */
  payAllDebts(): void {
    for (const { block, clears } of this.#blocks) {
      clears?.takeRange(0, block.usedPages, (chunk) => this.#clear(block, chunk.firstPage, chunk.pageCount));
    }
  }

  /**
   * Takes a range out without sending it: its content does not matter (a free page hint, a discard). Debts are paid
   * first, or the log would bring the pages back at the next sync; what was written since the last one does come back.
   * Returns how many pages were really taken (FH-2).
   */
  exclude(block: RamBlock, firstPage: number, pageCount: number): number {
    if (!this.#guestStopped) {
      this.#blocks
        .find((migrated) => migrated.block === block)
        ?.clears?.takeRange(firstPage, pageCount, (chunk) => this.#clear(block, chunk.firstPage, chunk.pageCount));
    }
    return this.#drop(block, firstPage, pageCount);
  }

  /**
   * The same for pages that nobody has a use for at this moment (an acknowledged hint): what was written before does not
   * come back either. Every layer forgets the range itself, so that no debt need be paid; the log first, or a
   * sync by another client in between would move a mark past this one.
   */
  forget(block: RamBlock, firstPage: number, pageCount: number): number {
    const { log, blocks } = this.#options;
    if (log !== undefined) {
      const forgotten = log.forget(block, firstPage, pageCount);
      checkCount('forget', block, forgotten);
      this.logClears.calls += 1;
      this.logClears.pages += forgotten;
    }
    blocks.dirty.testAndClear(ramPage(block.ramPage + firstPage), pageCount, DirtyClient.migration);
    return this.#drop(block, firstPage, pageCount);
  }

  #drop(block: RamBlock, firstPage: number, pageCount: number): number {
    const taken = this.#kernels.testAndClearRange(block.bitmaps.send, firstPage, pageCount);
    this.remaining -= taken;
    return taken;
  }

  /** Puts pages back in. Returns how many were not in before. */
  include(block: RamBlock, firstPage: number, pageCount: number): number {
    const { send } = block.bitmaps;
    const added = pageCount - this.#kernels.countRange(send, firstPage, pageCount);
    this.#kernels.setRange(send, firstPage, pageCount);
    this.remaining += added;
    return added;
  }

  /**
   * A host page of which one guest page is to be sent is sent whole: it can only be placed whole (PC-3). Returns how many
   * pages that added.
   */
  roundToHostPages(block: RamBlock): number {
    const pages = block.hostPageSize / GUEST_PAGE_SIZE;
    let added = 0;
    for (let page = 0; pages > 1 && page < block.usedPages; page += pages) {
      page = this.#kernels.findNextSet(block.bitmaps.send, page, block.usedPages);
      page -= page % pages;
      if (page < block.usedPages) {
        added += this.include(block, page, pages);
      }
    }
    return added;
  }

  /** The cursor to the first page of all. */
  rewind(): void {
    this.#blockIndex = 0;
    this.#page = 0;
  }

  /** Replaces what is to be sent of a block by what of it has not been received, over the used length (RC-1, RC-3). */
  replaceByMissing(block: RamBlock): void {
    const { send, received } = block.bitmaps;
    this.remaining -= this.#kernels.testAndClearRange(send, 0, block.maxPages);
    this.#kernels.complement(received, send, block.usedPages);
    this.remaining += this.#kernels.countRange(send, 0, block.usedPages);
  }

  /** Sets the counter by the bitmaps: after they were replaced, what was wrong before does not count. */
  recount(): void {
    this.remaining = this.#blocks.reduce(
      (total, { block }) => total + this.#kernels.countRange(block.bitmaps.send, 0, block.usedPages),
      0,
    );
  }

  /** Leaves in only the pages whose bit is also set in the bitmap at `content`. */
  intersect(block: RamBlock, content: number): void {
    const { words } = this.#options.blocks.bitmaps;
    const { send } = block.bitmaps;
    this.remaining -= this.#kernels.countRange(send, 0, block.usedPages);
    for (let word = 0; word < Math.ceil(block.usedPages / 32); word += 1) {
      words[send / 4 + word] &= words[content / 4 + word];
    }
    this.remaining += this.#kernels.countRange(send, 0, block.usedPages);
  }

  #clear(block: RamBlock, firstPage: number, pageCount: number): void {
    const { log } = this.#options;
    if (log?.hasRangedClear === true) {
      const cleared = log.clear(block, firstPage, pageCount);
      checkCount('clear', block, cleared);
      this.logClears.calls += 1;
      this.logClears.pages += cleared;
    }
  }

  /** Leaves no send bit behind (G-10). */
  release(): void {
    clearSendBitmaps(this.#options.blocks);
  }
}

/** The same where the engine's thread is gone. */
export const clearSendBitmaps = ({ blocks, bitmaps: { kernels } }: RamBlockList): void => {
  for (const block of blocks.filter(({ migrated }) => migrated)) {
    kernels.testAndClearRange(block.bitmaps.send, 0, block.maxPages);
  }
};
