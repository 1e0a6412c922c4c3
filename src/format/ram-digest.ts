// Digests of guest memory by content, so fine that a mismatch says where: what QEMU's formats lack, which load flipped
// bytes without a word. The same memory has the same digest in every format, since zero and absent pages count alike.
//
//   page of 4 KiB ──▶ 64-bit hash, 0 for a zero page      can be replaced when the page arrives again
//   MiB           ──▶ hash of its pages' hashes           made at the end, so pages may come in any order
//
// Against bit rot and bad transport, not against somebody who wants two memories to look alike: the hash is quick (the
// kernel `digestPages`), not cryptographic. A change within one 32-bit word of a page is always seen; any other goes
// unseen once in 2^32 times or less.

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { RamferryError } from '../memory/errors.js';
import { EXTENT_ALIGN_BYTES, Segment, SLOT_COUNT } from '../memory/segment.js';
import type { DeviceTail } from './stream/device-tail.js';

/** Bytes of what is hashed at once, whatever the guest's page size. */
export const DIGEST_PAGE_BYTES = GUEST_PAGE_SIZE;
export const DIGEST_CHUNK_BYTES = 2 ** 20;

const PAGES_PER_CHUNK = DIGEST_CHUNK_BYTES / DIGEST_PAGE_BYTES;

/** Two words each: as many as a result slot has room for. A MiB is a multiple, so that no call crosses its end. */
const PAGES_PER_CALL = 64;

/** The last result slot: a sink that hashes what it writes has a result of its own in the first one meanwhile. */
const SLOT = SLOT_COUNT - 1;

/** A bijection of `hash`, and of `word`: takes 0 and 0 to 0. */
const step = (hash: number, word: number): number => {
  const h = hash ^ word;
  return Math.imul(h ^ (h >>> 15), 0x9e3779b1);
};

/** Two words, one from each end of what is hashed, so that they are not the same function. */
class Hash64 {
  #low = 0;
  #high = 0;

  add(low: number, high: number): void {
    this.#low = step(step(this.#low, low), high);
    this.#high = step(step(this.#high, Math.imul(high, 0x85ebca6b)), low);
  }

  /** 16 hexadecimal digits. */
  toString(): string {
    const hexadecimal = (value: number): string => (value >>> 0).toString(16).padStart(8, '0');
    return hexadecimal(this.#high) + hexadecimal(this.#low);
  }
}

const ZERO = new Hash64().toString();

/** What is hashed of a MiB that has only a few pages takes less room: so many entries of page and hash. */
const FEW_PAGES = [4, 32] as const;

/** A slot for all pages of a MiB: two words each, in their order. Its size class is behind those of the few. */
const ALL_PAGES = FEW_PAGES.length;
const ENTRY_WORDS = 3;
const SLOT_WORDS: readonly number[] = [...FEW_PAGES.map((pages) => pages * ENTRY_WORDS), 2 * PAGES_PER_CHUNK];

const SLAB_WORDS = 2 ** 16;

/**
 * Slots of words. One is named by a number: where it begins, a multiple of 4, and its size class, which is less.
 */
class Slots {
  readonly #slabs: Int32Array[] = [];
  /** Words of the last slab that are taken. */
  #used = SLAB_WORDS;
  readonly #free: number[][] = SLOT_WORDS.map(() => []);

  /** A slot whose words are 0. */
  allocate(sizeClass: number): number {
    const free = this.#free[sizeClass]!.pop();
    if (free !== undefined) {
      this.words(free).fill(0);
      return free;
    }
    const words = SLOT_WORDS[sizeClass]!;
    if (this.#used + words > SLAB_WORDS) {
      this.#slabs.push(new Int32Array(SLAB_WORDS));
      this.#used = 0;
    }
    const slot = (this.#slabs.length - 1) * SLAB_WORDS + this.#used + sizeClass;
    this.#used += words;
    return slot;
  }

  release(slot: number): void {
    this.#free[slot % 4]!.push(slot);
  }

  words(slot: number): Int32Array {
    const at = (slot - (slot % 4)) % SLAB_WORDS;
    return this.#slabs[Math.floor(slot / SLAB_WORDS)]!.subarray(at, at + SLOT_WORDS[slot % 4]!);
  }
}

/** MiBs of a guest that are not zero: of more than 10 TiB there is no digest. */
const CHUNK_LIMIT = 10 * 2 ** 20;

/** Hashes of the pages of one block. */
class BlockDigest {
  readonly name: string;
  readonly usedLength: number;
  readonly #slots: Slots;
  /** The slot of each MiB; one that was always zero has none, however large the block claims to be. */
  readonly #chunks = new Map<number, number>();
  readonly #expanded = new Int32Array(2 * PAGES_PER_CHUNK);
  readonly #chunkLimit: number;

  constructor(name: string, usedLength: number, slots: Slots, chunkLimit: number) {
    this.#chunkLimit = chunkLimit;
    this.name = name;
    this.usedLength = usedLength;
    this.#slots = slots;
  }

  /** `hashes`: two words a page, of pages of one MiB. */
  set(page: number, hashes: Int32Array): void {
    const index = Math.floor(page / PAGES_PER_CHUNK);
    const first = page % PAGES_PER_CHUNK;
    const count = hashes.length / 2;
    let slot = this.#chunks.get(index) ?? this.#begin(index, count);
    if (slot % 4 !== ALL_PAGES && !this.#setFew(slot, first, hashes)) {
      slot = this.#grow(index, slot, count);
      if (slot % 4 !== ALL_PAGES) {
        this.#setFew(slot, first, hashes);
      }
    }
    if (slot % 4 === ALL_PAGES) {
      this.#slots.words(slot).set(hashes, 2 * first);
    }
  }

  #begin(index: number, count: number): number {
    if (this.#chunks.size === this.#chunkLimit) {
      const message = `RAM block "${this.name}" has content in more than ${this.#chunkLimit} MiB, which is too much for a digest.`;
      throw new RamferryError('failed', 'DIGEST_TOO_LARGE', message, { value: this.name, hint: 'use --no-digest' });
    }
    const slot = this.#slots.allocate(classFor(count));
    this.#chunks.set(index, slot);
    return slot;
  }

  /** False if there is no room for all of them; then those that have an entry are there, which does no harm. */
  #setFew(slot: number, first: number, hashes: Int32Array): boolean {
    const words = this.#slots.words(slot);
    for (let at = 0; at < hashes.length; at += 2) {
      const key = first + at / 2 + 1;
      let entry = 0;
      while (entry < words.length && words[entry] !== 0 && words[entry] !== key) {
        entry += ENTRY_WORDS;
      }
      if (entry === words.length) {
        return false;
      }
      words[entry] = key;
      words[entry + 1] = hashes[at]!;
      words[entry + 2] = hashes[at + 1]!;
    }
    return true;
  }

  /** Room for so many more pages. */
  #grow(index: number, slot: number, count: number): number {
    const before = this.#slots.words(slot);
    const sizeClass = Math.max((slot % 4) + 1, classFor(before.length / ENTRY_WORDS + count));
    const larger = this.#slots.allocate(sizeClass);
    const words = this.#slots.words(larger);
    if (sizeClass === ALL_PAGES) {
      expand(before, words);
    } else {
      words.set(before);
    }
    this.#chunks.set(index, larger);
    this.#slots.release(slot);
    return larger;
  }

  /** Pages [from, end) are zero. */
  clear(from: number, end: number): void {
    for (let page = from; page < end; ) {
      const index = Math.floor(page / PAGES_PER_CHUNK);
      const first = index * PAGES_PER_CHUNK;
      const next = Math.min(end, first + PAGES_PER_CHUNK);
      const slot = this.#chunks.get(index);
      if (slot !== undefined) {
        this.#clear(slot, page - first, next - first);
      }
      page = next;
    }
  }

  #clear(slot: number, from: number, end: number): void {
    const words = this.#slots.words(slot);
    if (slot % 4 === ALL_PAGES) {
      words.fill(0, 2 * from, 2 * end);
      return;
    }
    for (let entry = 0; entry < words.length; entry += ENTRY_WORDS) {
      const page = words[entry]! - 1;
      if (page >= from && page < end) {
        words.fill(0, entry + 1, entry + ENTRY_WORDS);
      }
    }
  }

  mebibytes(): Record<number, string> {
    const digests: Record<number, string> = {};
    for (const [index, slot] of this.#chunks) {
      const text = this.#hash(slot).toString();
      if (text !== ZERO) {
        digests[index] = text;
      }
    }
    return digests;
  }

  #hash(slot: number): Hash64 {
    let hashes = this.#slots.words(slot);
    if (slot % 4 !== ALL_PAGES) {
      this.#expanded.fill(0);
      expand(hashes, this.#expanded);
      hashes = this.#expanded;
    }
    const hash = new Hash64();
    for (let at = 0; at < hashes.length; at += 2) {
      hash.add(hashes[at]!, hashes[at + 1]!);
    }
    return hash;
  }
}

const classFor = (pages: number): number => {
  const sizeClass = FEW_PAGES.findIndex((few) => pages <= few);
  return sizeClass < 0 ? ALL_PAGES : sizeClass;
};

/** Entries of a few pages to all pages in their order. */
const expand = (entries: Int32Array, all: Int32Array): void => {
  for (let entry = 0; entry < entries.length && entries[entry] !== 0; entry += ENTRY_WORDS) {
    const page = entries[entry]! - 1;
    all[2 * page] = entries[entry + 1]!;
    all[2 * page + 1] = entries[entry + 2]!;
  }
};

/** What `RamDigest` says of a block. */
export interface DigestedBlock {
  readonly name: string;
  readonly usedLength: number;
  /** 16 hexadecimal digits for each MiB that is not zero, by its index. */
  readonly mebibytes: Readonly<Record<number, string>>;
}

/**
 * Digest of a guest's memory in the making. All pages are zero at first. It takes 2 MiB for each GiB of memory that is all in
 * use, and where pages are strewn at most 1/30 of what is in them.
 */
export class RamDigest {
  readonly #blocks: readonly BlockDigest[];
  /** For bytes that lie in no segment. */
  #scratch: Segment | undefined;

  /** `chunkLimit`: how many MiBs of a block may have content. */
  constructor(
    blocks: readonly { readonly name: string; readonly usedLength: number }[],
    { chunkLimit = CHUNK_LIMIT }: { readonly chunkLimit?: number } = {},
  ) {
    const slots = new Slots();
    this.#blocks = blocks.map(({ name, usedLength }) => new BlockDigest(name, usedLength, slots, chunkLimit));
  }

  /**
   * What the block holds from byte `offset` on, a whole number of digest pages, is `byteCount` bytes at `address` of a
   * segment, wherever in it: RAM, staging. Behind the block's end they are hashed as if zero followed.
   */
  setInSegment(block: number, offset: number, segment: Segment, address: number, byteCount: number): void {
    const digest = this.#blocks[block]!;
    const { kernels, words } = segment;
    const firstPage = offset / DIGEST_PAGE_BYTES;
    const pageCount = Math.floor(byteCount / DIGEST_PAGE_BYTES);
    const result = segment.resultSlot(SLOT);
    for (let index = 0; index < pageCount; ) {
      const page = firstPage + index;
      // Calls end where a multiple of their size does, and so where a MiB does.
      const count = Math.min(PAGES_PER_CALL - (page % PAGES_PER_CALL), pageCount - index);
      kernels.digestPages(address + index * DIGEST_PAGE_BYTES, count, result);
      digest.set(page, words.subarray(result >>> 2, (result >>> 2) + 2 * count));
      index += count;
    }
    const whole = pageCount * DIGEST_PAGE_BYTES;
    if (whole < byteCount) {
      this.set(block, offset + whole, segment.bytes.subarray(address + whole, address + byteCount));
    }
  }

  /** The same of bytes that lie anywhere. */
  set(block: number, offset: number, bytes: Uint8Array): void {
    this.#scratch ??= Segment.create({ ramBytes: EXTENT_ALIGN_BYTES });
    const { bytes: room, ramBytes } = this.#scratch;
    for (let at = 0; at < bytes.length; at += ramBytes) {
      const count = Math.min(ramBytes, bytes.length - at);
      const padded = Math.ceil(count / DIGEST_PAGE_BYTES) * DIGEST_PAGE_BYTES;
      room.set(bytes.subarray(at, at + count));
      room.fill(0, count, padded);
      this.setInSegment(block, offset + at, this.#scratch, 0, padded);
    }
  }

  /** `byteCount` bytes of the block are zero from byte `offset` on. */
  clear(block: number, offset: number, byteCount: number): void {
    this.#blocks[block]!.clear(offset / DIGEST_PAGE_BYTES, Math.ceil((offset + byteCount) / DIGEST_PAGE_BYTES));
  }

  blocks(): DigestedBlock[] {
    return this.#blocks.map((block) => ({
      name: block.name,
      usedLength: block.usedLength,
      mebibytes: block.mebibytes(),
    }));
  }
}

/**
 * 16 hexadecimal digits that two saves of one guest do not share, unless nothing of it changed in between.
 * @param digest of all of its RAM
 */
export const fingerprintOf = (digest: RamDigest, { early, sections, description }: DeviceTail): string => {
  const parts = [early, sections, new TextEncoder().encode(description)];
  const devices = new RamDigest(parts.map(({ length }, index) => ({ name: `${index}`, usedLength: length })));
  for (const [index, bytes] of parts.entries()) {
    devices.set(index, 0, bytes);
  }
  const hash = new Hash64();
  for (const { usedLength, mebibytes } of [...digest.blocks(), ...devices.blocks()]) {
    hash.add(usedLength, Math.floor(usedLength / 2 ** 32));
    for (const [mebibyte, text] of Object.entries(mebibytes)) {
      hash.add(Number(mebibyte), Math.floor(Number(mebibyte) / 2 ** 32));
      hash.add(Number.parseInt(text.slice(8), 16), Number.parseInt(text.slice(0, 8), 16));
    }
  }
  return hash.toString();
};
