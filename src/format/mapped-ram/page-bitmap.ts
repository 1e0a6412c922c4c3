// The bitmap of a block of a mapped-ram file: bit n set means that page n is stored. Bit n is bit n % 8 of byte n / 8,
// as on every little-endian host. A big-endian host writes its own words, and nothing in the file says so: such files
// are not read right, here or by QEMU on another host (spec/qemu-wire-format.md 3.4).
//
// Page numbers are not touched with `>>`, which is 32-bit: blocks of 8 TiB and more exceed it.

/** Pages of a word as it is looked at here. */
const WORD_PAGES = 32;

export class PageBitmap {
  /** As given: whole 64-bit words. */
  readonly bytes: Uint8Array;
  readonly #words: DataView;
  readonly #pageCount: number;

  /** @param bytes whole 64-bit words, with at least `pageCount` bits */
  constructor(bytes: Uint8Array, pageCount: number) {
    this.bytes = bytes;
    this.#words = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#pageCount = pageCount;
  }

  has(page: number): boolean {
    return page < this.#pageCount && (this.#words.getUint8(Math.floor(page / 8)) & (1 << (page % 8))) !== 0;
  }

  /** First page in [from, end) whose bit is set; `end` if there is none. */
  nextSet(from: number, end: number): number {
    return this.#next(from, end, 0);
  }

  /** First page in [from, end) whose bit is clear; `end` if there is none. */
  nextClear(from: number, end: number): number {
    return this.#next(from, end, -1);
  }

  /** Pages in [from, end) whose bit is set. */
  count(from: number, end: number): number {
    let total = 0;
    let page = from;
    while (page < end) {
      const inWord = page % WORD_PAGES;
      const pages = Math.min(WORD_PAGES - inWord, end - page);
      const word = this.#words.getUint32(((page - inWord) / WORD_PAGES) * 4, true) >>> inWord;
      total += bitsIn(pages === WORD_PAGES ? word : word & (2 ** pages - 1));
      page += pages;
    }
    return total;
  }

  /** First set bit behind the last page; undefined if there is none, as it should be (MR-24). */
  strayBit(): number | undefined {
    const bits = this.#words.byteLength * 8;
    const stray = this.nextSet(this.#pageCount, bits);
    return stray === bits ? undefined : stray;
  }

  #next(from: number, end: number, flip: 0 | -1): number {
    let page = from;
    while (page < end) {
      const inWord = page % WORD_PAGES;
      const at = ((page - inWord) / WORD_PAGES) * 4;
      const word = (this.#words.getUint32(at, true) ^ flip) >>> inWord;
      if (word !== 0) {
        return Math.min(end, page + 31 - Math.clz32(word & -word));
      }
      page += WORD_PAGES - inWord;
    }
    return end;
  }
}

const bitsIn = (word: number): number => {
  const pairs = word - ((word >>> 1) & 0x55555555);
  const nibbles = (pairs & 0x33333333) + ((pairs >>> 2) & 0x33333333);
  return Math.imul((nibbles + (nibbles >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
};
