// The clear bitmap (LAZY of spec/algorithms.md 1.2 and 2): a debt map, one bit per chunk of a RAM block. A sync only
// records that the chunk's dirty log still has to be cleared; the debt is paid before the first page of the chunk is
// read. This file knows who owes what; paying, that is calling DirtyLog.clear, is the engine's.
//
//      sync ──arm──▶ ┌─┬─┬─┬─┬─┬─┬─┬─┐
//                    │1│1│0│1│1│1│1│1│   bit set = clear still owed for that chunk
//                    └─┴─┴─┴─┴─┴─┴─┴─┘
//                         ▲ take: the first page of chunk 2 was about to be read; its range was cleared
//
// One owner, the engine thread: plain words, no atomics (2(i)).

import { RamferryError } from '../memory/errors.js';

/** Chunks of 64 pages: every chunk starts on a 64-bit word of every bitmap (CB-9). */
export const CLEAR_BITMAP_SHIFT_MIN = 6;
/** Chunks of 8 TiB: QEMU's limit, where shift plus page bits still fit its 64-bit sizes. */
export const CLEAR_BITMAP_SHIFT_MAX = 31;
/** Chunks of 1 GiB. */
export const CLEAR_BITMAP_SHIFT_DEFAULT = 18;

/** The shift a migration uses, and what to tell the user if that is not the one requested. */
export interface ClampedShift {
  readonly shift: number;
  readonly warning?: string;
}

/** Called once per migration start, so that a wrong value is reported exactly once (CB-18, spec/algorithms.md 2(d)). */
export function clampClearBitmapShift(requested: number): ClampedShift {
  if (!Number.isInteger(requested)) {
    throw new RamferryError('usage', 'CLEAR_BITMAP_SHIFT', `clear-bitmap-shift ${requested} is not a whole number`, {
      value: String(requested),
    });
  }
  if (requested > CLEAR_BITMAP_SHIFT_MAX) {
    return clamped(requested, 'above the maximum', CLEAR_BITMAP_SHIFT_MAX);
  }
  if (requested < CLEAR_BITMAP_SHIFT_MIN) {
    return clamped(requested, 'below the minimum', CLEAR_BITMAP_SHIFT_MIN);
  }
  return { shift: requested };
}

function clamped(requested: number, relation: string, shift: number): ClampedShift {
  return { shift, warning: `clear-bitmap-shift ${requested} is ${relation}; using ${shift}` };
}

/** Pages [firstPage, firstPage + pageCount) of one RAM block. */
export interface PageRange {
  readonly firstPage: number;
  readonly pageCount: number;
}

export class ClearBitmap {
  /** Guest pages per chunk. A power of two, but never shifted by: 2^31 pages are beyond 32-bit arithmetic (CB-25). */
  readonly chunkPages: number;
  readonly #usedPages: number;
  readonly #chunkCount: number;
  readonly #words: Uint32Array;

  /** Sized by the maximum length, as the send bitmap is; `shift` comes from `clampClearBitmapShift`. Nothing is owed. */
  constructor(usedPages: number, maxPages: number, shift: number) {
    this.chunkPages = 2 ** shift;
    this.#usedPages = usedPages;
    this.#chunkCount = Math.ceil(maxPages / this.chunkPages);
    this.#words = new Uint32Array(Math.ceil(this.#chunkCount / 32));
  }

  /** From here on every chunk that holds a page of the range owes a clear. A debt that is still owed stays one (CB-5). */
  arm(firstPage: number, pageCount: number): void {
    if (pageCount === 0) {
      return;
    }
    // First and last chunk are both explicit: counting chunks from a start inside a chunk would miss the last one.
    const last = this.#chunkOf(firstPage + pageCount - 1);
    for (let chunk = this.#chunkOf(firstPage); chunk <= last; chunk += 1) {
      this.#words[chunk >>> 5] |= 1 << (chunk & 31);
    }
  }

  /** Whether the chunk of this page owes a clear. */
  owed(page: number): boolean {
    return this.#owes(this.#chunkOf(page));
  }

  /**
   * Takes over the debt of the page's chunk: returns the chunk's pages, trimmed to the used length (CB-8), which the
   * caller must clear before it reads any of them (CB-1); undefined if nothing is owed.
   */
  take(page: number): PageRange | undefined {
    const chunk = this.#chunkOf(page);
    return this.#owes(chunk) ? this.#takeChunk(chunk) : undefined;
  }

  /**
   * The same for every chunk that holds a page of the range, one `pay` for each chunk that owes (CB-21).
   */
  takeRange(firstPage: number, pageCount: number, pay: (range: PageRange) => void): void {
    if (pageCount === 0) {
      return;
    }
    const last = this.#chunkOf(firstPage + pageCount - 1);
    for (let chunk = this.#chunkOf(firstPage); chunk <= last; chunk += 1) {
      if (this.#owes(chunk)) {
        pay(this.#takeChunk(chunk));
      }
    }
  }

  #owes(chunk: number): boolean {
    return (this.#words[chunk >>> 5] & (1 << (chunk & 31))) !== 0;
  }

  #takeChunk(chunk: number): PageRange {
    this.#words[chunk >>> 5] &= ~(1 << (chunk & 31));
    const firstPage = chunk * this.chunkPages;
    return { firstPage, pageCount: Math.min(this.chunkPages, this.#usedPages - firstPage) };
  }

  #chunkOf(page: number): number {
    if (!(page >= 0 && page < this.#usedPages)) {
      throw new RamferryError('usage', 'PAGE_OUTSIDE_BLOCK', `page ${page} is outside the block's ${this.#usedPages}`, {
        value: page,
      });
    }
    return Math.floor(page / this.chunkPages);
  }
}
