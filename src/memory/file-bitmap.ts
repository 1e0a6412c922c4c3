// Which pages of a block a mapped-ram file holds (FILE of spec/algorithms.md 5(b)). One thread owns it, so nothing here is
// atomic (MR-12), and its bytes are the bitmap in the file: whole 64-bit words, little-endian, zero behind the last page.

import { maskOfBits, populationCount } from './words.js';

export class FileBitmap {
  readonly bytes: Uint8Array;
  readonly #words: Int32Array;

  constructor(pageCount: number) {
    // MR-23
    this.#words = new Int32Array(2 * Math.ceil(pageCount / 64));
    this.bytes = new Uint8Array(this.#words.buffer);
  }

  has(page: number): boolean {
    return (this.#words[page >>> 5]! & (1 << page)) !== 0;
  }

  set(firstPage: number, pageCount: number): void {
    const end = firstPage + pageCount;
    for (let page = firstPage; page < end; ) {
      const next = Math.min(end, (page | 31) + 1);
      this.#words[page >>> 5]! |= maskOfBits(page, next);
      page = next;
    }
  }

  /** Returns how many of the pages were set. */
  clear(firstPage: number, pageCount: number): number {
    const end = firstPage + pageCount;
    let cleared = 0;
    for (let page = firstPage; page < end; ) {
      const next = Math.min(end, (page | 31) + 1);
      const index = page >>> 5;
      const mask = maskOfBits(page, next);
      cleared += populationCount(this.#words[index]! & mask);
      this.#words[index]! &= ~mask;
      page = next;
    }
    return cleared;
  }
}
