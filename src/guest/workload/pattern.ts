// What a page of the workload guest holds, and how to tell from a page that is wrong what it is instead. The pattern itself
// is a kernel's (kernels/assembly/pages.ts): its first word is a bijection of (key, generation), so a page names itself.

import { GUEST_PAGE_SIZE } from '../../../kernels/kernels.js';
import type { RamBlock } from '../../memory/index.js';

/** Identity of a place: differs between all pages of a block, and between blocks as far as a 32-bit hash can. */
export function pageKey(block: RamBlock, page: number): number {
  return (nameHash(block.name) + page) | 0;
}

/** FNV-1a. */
function nameHash(name: string): number {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(name)) {
    hash = Math.imul(hash ^ byte, 0x01000193);
  }
  return hash;
}

/** Says what a page holds that should have the pattern of (its place, `generation`) and has not. */
export function describePage(bytes: Uint8Array, block: RamBlock, page: number, blocks: readonly RamBlock[]): string {
  const words = new BigUint64Array(bytes.slice().buffer);
  if (words.every((word) => word === 0n)) {
    return 'zeros';
  }
  const { key, generation } = identify(words[0]!);
  const torn = firstDifference(words);
  const tear = torn === undefined ? '' : ` up to byte ${torn * 8}, then something else`;
  if (key === pageKey(block, page)) {
    return `its own generation ${generation}${tear}`;
  }
  for (const other of blocks) {
    const index = (key - pageKey(other, 0)) >>> 0;
    // A page that is no pattern at all has a random key, which may fall into a block; then it has no second word either.
    if (index < other.usedPages && torn !== 1) {
      return `page ${index} of ${other.name}, generation ${generation}${tear}`;
    }
  }
  return 'no pattern';
}

/** Index of the first word that does not continue the pattern that word 0 begins. */
function firstDifference(words: BigUint64Array): number | undefined {
  const increment = mix(words[0]!) | 1n;
  for (let i = 1; i < GUEST_PAGE_SIZE / 8; i += 1) {
    if (words[i] !== BigInt.asUintN(64, words[i - 1]! + increment)) {
      return i;
    }
  }
  return undefined;
}

function identify(firstWord: bigint): { key: number; generation: number } {
  const value = unmix(firstWord);
  return { key: Number(value >> 32n) | 0, generation: Number(value & 0xffffffffn) };
}

// SplitMix64's finalizer, as in the kernel, and its inverse: the multipliers' inverses modulo 2^64, the xor-shifts undone.
const GOLDEN_RATIO = 0x9e3779b97f4a7c15n;

function mix(value: bigint): bigint {
  let z = BigInt.asUintN(64, value + GOLDEN_RATIO);
  z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
  z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn);
  return z ^ (z >> 31n);
}

function unmix(value: bigint): bigint {
  let z = value ^ (value >> 31n) ^ (value >> 62n);
  z = BigInt.asUintN(64, z * 0x319642b2d24d8ec3n);
  z = z ^ (z >> 27n) ^ (z >> 54n);
  z = BigInt.asUintN(64, z * 0x96de1b173f119089n);
  z = z ^ (z >> 30n) ^ (z >> 60n);
  return BigInt.asUintN(64, z - GOLDEN_RATIO);
}
