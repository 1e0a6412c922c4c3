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

  /** `hashes`: two words a page, of pages of one MiB. */
  set(page: number, hashes: Int32Array): void {
    const index = Math.floor(page / PAGES_PER_CHUNK);
    let chunk = this.#chunks.get(index);
    if (chunk === undefined) {
      chunk = new Int32Array(2 * PAGES_PER_CHUNK);
      this.#chunks.set(index, chunk);
    }
    chunk.set(hashes, 2 * (page % PAGES_PER_CHUNK));
  }

  /** Pages [from, end) are zero. */
  clear(from: number, end: number): void {
    for (let page = from; page < end; ) {
      const index = Math.floor(page / PAGES_PER_CHUNK);
      const first = index * PAGES_PER_CHUNK;
      const next = Math.min(end, first + PAGES_PER_CHUNK);
      this.#chunks.get(index)?.fill(0, 2 * (page - first), 2 * (next - first));
      page = next;
    }
  }

  mebibytes(): Record<number, string> {
    const digests: Record<number, string> = {};
    for (const [index, hashes] of this.#chunks) {
      const hash = new Hash64();
      for (let at = 0; at < hashes.length; at += 2) {
        hash.add(hashes[at]!, hashes[at + 1]!);
      }
      const text = hash.toString();
      if (text !== ZERO) {
        digests[index] = text;
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
  /** For bytes that lie in no segment. */
  #scratch: Segment | undefined;

  constructor(blocks: readonly { readonly name: string; readonly usedLength: number }[]) {
    this.#blocks = blocks.map(({ name, usedLength }) => new BlockDigest(name, usedLength));
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
