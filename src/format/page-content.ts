// What a guest's pages hold, in figures: how random the bytes of a page are, and which pages hold the same.
// No objects and no allocation per page.

/** Digests are made of so many words. */
export const DIGEST_WORDS = 4;

/** Largest entropy of a page: every byte as likely as any other. */
export const MOST_ENTROPY_BITS = 8;

const BYTE_VALUES = 256;

const rotate = (word: number, bits: number): number => (word << bits) | (word >>> (32 - bits));

/**
 * Figures of pages of one size, computed into the same arrays each time.
 *
 * The digest has MurmurHash3's structure for 128 bits, on the words of this machine: for telling equal pages from
 * different ones in one run, not for a file, and not against somebody who makes pages in order to have them confused.
 */
export class PageContent {
  /** Digest of the page that `digest` was last called for. */
  readonly digestWords = new Int32Array(DIGEST_WORDS);
  readonly #pageBytes: number;
  readonly #pageWords: number;
  /** One histogram for each byte of a word: four counters instead of one that waits for its own last increment. */
  readonly #counts = new Uint32Array(4 * BYTE_VALUES);
  /** n * log2(n) of every count that a page can have. */
  readonly #weights: Float64Array;

  /** @param pageBytes a power of two, at least 256 */
  constructor(pageBytes: number) {
    this.#pageBytes = pageBytes;
    this.#pageWords = pageBytes / 4;
    this.#weights = Float64Array.from({ length: pageBytes + 1 }, (_, count) =>
      count === 0 ? 0 : count * Math.log2(count),
    );
  }

  /** Whether the page that begins at word `at` is all zero. */
  isZero(words: Int32Array, at: number): boolean {
    for (let index = at; index < at + this.#pageWords; index += 1) {
      if (words[index] !== 0) {
        return false;
      }
    }
    return true;
  }

  /** Shannon's entropy of the bytes of the page that begins at word `at`: bits a byte, from 0 (all alike) to 8. */
  entropyBits(words: Int32Array, at: number): number {
    const counts = this.#counts.fill(0);
    for (let index = at; index < at + this.#pageWords; index += 1) {
      const word = words[index];
      counts[word & 255] += 1;
      counts[256 + ((word >>> 8) & 255)] += 1;
      counts[512 + ((word >>> 16) & 255)] += 1;
      counts[768 + (word >>> 24)] += 1;
    }
    let sum = 0;
    for (let value = 0; value < BYTE_VALUES; value += 1) {
      sum += this.#weights[counts[value] + counts[256 + value] + counts[512 + value] + counts[768 + value]];
    }
    return Math.log2(this.#pageBytes) - sum / this.#pageBytes;
  }

  /** Computes the digest of the page that begins at word `at` into `digestWords`. */
  digest(words: Int32Array, at: number): void {
    let [a, b, c, d] = [1, 2, 3, 4];
    for (let index = at; index < at + this.#pageWords; index += 4) {
      a ^= Math.imul(rotate(Math.imul(words[index], 0x239b961b), 15), 0xab0e9789);
      a = (Math.imul(rotate(a, 19) + b, 5) + 0x561ccd1b) | 0;
      b ^= Math.imul(rotate(Math.imul(words[index + 1], 0xab0e9789), 16), 0x38b34ae5);
      b = (Math.imul(rotate(b, 17) + c, 5) + 0x0bcaa747) | 0;
      c ^= Math.imul(rotate(Math.imul(words[index + 2], 0x38b34ae5), 17), 0xa1e38b93);
      c = (Math.imul(rotate(c, 15) + d, 5) + 0x96cd1c35) | 0;
      d ^= Math.imul(rotate(Math.imul(words[index + 3], 0xa1e38b93), 18), 0x239b961b);
      d = (Math.imul(rotate(d, 13) + a, 5) + 0x32ac3b17) | 0;
    }
    const digest = this.digestWords;
    digest[0] = a;
    digest[1] = b;
    digest[2] = c;
    digest[3] = d;
    spread(digest);
    for (let word = 0; word < DIGEST_WORDS; word += 1) {
      digest[word] = mix(digest[word]);
    }
    spread(digest);
  }
}

/** A bijection in which each word reaches the others. */
const spread = (digest: Int32Array): void => {
  digest[0] += digest[1] + digest[2] + digest[3];
  digest[1] += digest[0];
  digest[2] += digest[0];
  digest[3] += digest[0];
};

/** A bijection in which every bit reaches every other. */
const mix = (value: number): number => {
  let hash = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return hash ^ (hash >>> 16);
};
