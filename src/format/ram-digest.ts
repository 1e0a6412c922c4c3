// Digests of guest memory by content, so fine that a mismatch says where: what QEMU's formats lack, which load flipped
// bytes without a word. The same memory has the same digest in every format, since zero and absent pages count alike.
//
//   page of 4 KiB ──▶ 64-bit hash, 0 for a zero page      can be replaced when the page arrives again
//   MiB           ──▶ sum of its pages' hashes             so pages may come in any order
//
// Against bit rot and bad transport, not against somebody who wants two memories to look alike: the hash is quick, not
// cryptographic. A change within one 32-bit word of a page is always seen; any other goes unseen once in 2^32 times or less.

/** Bytes of what is hashed at once, whatever the guest's page size. */
export const DIGEST_PAGE_BYTES = 4096;
export const DIGEST_CHUNK_BYTES = 2 ** 20;

const PAGES_PER_CHUNK = DIGEST_CHUNK_BYTES / DIGEST_PAGE_BYTES;

// Odd, so that multiplication loses nothing; otherwise arbitrary (the primes of xxHash32).
const P1 = 0x9e3779b1 | 0;
const P2 = 0x85ebca77 | 0;
const P3 = 0xc2b2ae3d | 0;
const P4 = 0x27d4eb2f | 0;

/** Every bit of the result depends on every bit of `value`, and no two values have the same (MurmurHash3's finalizer). */
const avalanche = (value: number): number => {
  let h = value;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) | 0;
};

/** Hashes of the pages of one block. */
class BlockDigest {
  readonly name: string;
  readonly usedLength: number;
  /** Two words for each page of a MiB; a MiB that was always zero has none, however large the block claims to be. */
  readonly #chunks = new Map<number, Int32Array>();

  constructor(name: string, usedLength: number) {
    this.name = name;
    this.usedLength = usedLength;
  }

  clear(page: number): void {
    this.#put(page, 0, 0);
  }

  #put(page: number, low: number, high: number): void {
    const index = Math.floor(page / PAGES_PER_CHUNK);
    let chunk = this.#chunks.get(index);
    if (chunk === undefined) {
      if (low === 0 && high === 0) {
        return;
      }
      chunk = new Int32Array(2 * PAGES_PER_CHUNK);
      this.#chunks.set(index, chunk);
    }
    const at = 2 * (page % PAGES_PER_CHUNK);
    chunk[at] = low;
    chunk[at + 1] = high;
  }

  /**
   * Four lanes, one for each 32-bit word of 16 bytes. Each step is a bijection of the lane, for any word, and of the word,
   * for any lane.
   */
  set(page: number, words: Int32Array, first: number, end: number): void {
    let a = P1;
    let b = P2;
    let c = P3;
    let d = P4;
    let bits = 0;
    for (let at = first; at < end; at += 4) {
      const w = words[at]!;
      const x = words[at + 1]!;
      const y = words[at + 2]!;
      const z = words[at + 3]!;
      bits |= w | x | y | z;
      a ^= w;
      b ^= x;
      c ^= y;
      d ^= z;
      a = Math.imul((a << 15) | (a >>> 17), P1);
      b = Math.imul((b << 15) | (b >>> 17), P2);
      c = Math.imul((c << 15) | (c >>> 17), P3);
      d = Math.imul((d << 15) | (d >>> 17), P4);
    }
    if (bits === 0) {
      this.clear(page);
      return;
    }
    // The place in the MiB takes part, or two pages could change places.
    const place = Math.imul(page % PAGES_PER_CHUNK, P2);
    this.#put(page, avalanche(avalanche(a + place) ^ b), avalanche(avalanche(c + place) ^ d));
  }

  mebibytes(): Record<number, string> {
    const hexadecimal = (value: number): string => (value >>> 0).toString(16).padStart(8, '0');
    const digests: Record<number, string> = {};
    for (const [index, hashes] of this.#chunks) {
      let low = 0;
      let high = 0;
      for (let at = 0; at < hashes.length; at += 2) {
        low = (low + hashes[at]!) | 0;
        high = (high + hashes[at + 1]!) | 0;
      }
      if (low !== 0 || high !== 0) {
        digests[index] = hexadecimal(high) + hexadecimal(low);
      }
    }
    return digests;
  }
}

/** What `RamDigest` says of a block. */
export interface DigestedBlock {
  readonly name: string;
  readonly usedLength: number;
  /** 16 hexadecimal digits for each MiB that is not zero, by its index. */
  readonly mebibytes: Readonly<Record<number, string>>;
}

/** Digest of a guest's memory in the making: 2 MiB for each GiB of it that is not zero. All pages are zero at first. */
export class RamDigest {
  readonly #blocks: readonly BlockDigest[];
  /** Pages arrive at any address; words need one of their own. */
  readonly #scratch = new Int32Array(DIGEST_CHUNK_BYTES / 4);
  readonly #scratchBytes = new Uint8Array(this.#scratch.buffer);

  constructor(blocks: readonly { readonly name: string; readonly usedLength: number }[]) {
    this.#blocks = blocks.map(({ name, usedLength }) => new BlockDigest(name, usedLength));
  }

  /** `bytes`, at most a MiB, is what the block holds from byte `offset` on: pages of 4 KiB, the block's last one may be shorter. */
  set(block: number, offset: number, bytes: Uint8Array): void {
    this.#scratchBytes.set(bytes);
    const words = bytes.length / 4;
    const pageWords = DIGEST_PAGE_BYTES / 4;
    const digest = this.#blocks[block]!;
    for (let first = 0; first < words; first += pageWords) {
      const page = (offset + first * 4) / DIGEST_PAGE_BYTES;
      digest.set(page, this.#scratch, first, Math.min(words, first + pageWords));
    }
  }

  /** `length` bytes of the block are zero from byte `offset` on. */
  clear(block: number, offset: number, length: number): void {
    for (let at = offset; at < offset + length; at += DIGEST_PAGE_BYTES) {
      this.#blocks[block]!.clear(at / DIGEST_PAGE_BYTES);
    }
  }

  blocks(): DigestedBlock[] {
    return this.#blocks.map((block) => ({
      name: block.name,
      usedLength: block.usedLength,
      mebibytes: block.mebibytes(),
    }));
  }
}
