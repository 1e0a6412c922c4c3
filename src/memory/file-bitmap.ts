// Which pages of a block a mapped-ram file holds (FILE of spec/algorithms.md 5(b)). One thread owns it, so nothing here is
// atomic (MR-12), and its bytes are the bitmap in the file: whole 64-bit words, little-endian, zero behind the last page.
//
// Page numbers are not touched with `|` or `>>>`, which are 32-bit: a block of 8 TiB has a page 2^31 - 1, and whoever sends
// a stream chooses the size of the block.

import { maskOfBits, populationCount } from './words.js';

const WORD_PAGES = 32;

export class FileBitmap {
  readonly bytes: Uint8Array;
  readonly #words: Int32Array;

  constructor(pageCount: number) {
    // MR-23
    this.#words = new Int32Array(2 * Math.ceil(pageCount / 64));
    this.bytes = new Uint8Array(this.#words.buffer);
  }

  has(page: number): boolean {
    return (this.#words[Math.floor(page / WORD_PAGES)]! & (1 << (page % WORD_PAGES))) !== 0;
  }

  set(firstPage: number, pageCount: number): void {
    const end = firstPage + pageCount;
    for (let page = firstPage; page < end; ) {
      const word = Math.floor(page / WORD_PAGES);
      const first = word * WORD_PAGES;
      const next = Math.min(end, first + WORD_PAGES);
      this.#words[word]! |= maskOfBits(page - first, next - first);
      page = next;
    }
  }

  /** Returns how many of the pages were set. */
  clear(firstPage: number, pageCount: number): number {
    const end = firstPage + pageCount;
    let cleared = 0;
    for (let page = firstPage; page < end; ) {
      const word = Math.floor(page / WORD_PAGES);
      const first = word * WORD_PAGES;
      const next = Math.min(end, first + WORD_PAGES);
      const mask = maskOfBits(page - first, next - first);
      cleared += populationCount(this.#words[word]! & mask);
      this.#words[word]! &= ~mask;
      page = next;
    }
    return cleared;
  }
}
