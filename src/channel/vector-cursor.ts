// How far the pieces of a vector have been written. The entries themselves keep count, since the system reads them anew at
// each call: a piece that was written partly becomes a shorter one.

import type { WriteVector } from './channel.js';

const ENTRY_WORDS = 4;

export class VectorCursor {
  readonly #vector: WriteVector;
  /** Low and high word of the address, low and high word of the length. */
  readonly #words: Uint32Array;
  #entry = 0;

  constructor(vector: WriteVector) {
    this.#vector = vector;
    const { buffer, byteOffset, byteLength } = vector.entries;
    this.#words = new Uint32Array(buffer, byteOffset, byteLength / 4);
    this.#skipEmpty();
  }

  /** What is left, for the system. */
  get entries(): Uint8Array {
    return this.#vector.entries.subarray(this.#entry * ENTRY_WORDS * 4);
  }

  get count(): number {
    return this.#words.length / ENTRY_WORDS - this.#entry;
  }

  /** The piece that is to be written next, or what is left of it; undefined if nothing is left. */
  get piece(): Uint8Array | undefined {
    if (this.count === 0) {
      return undefined;
    }
    const { memory, base } = this.#vector;
    const at = this.#entry * ENTRY_WORDS;
    const offset = this.#words[at + 1]! * 2 ** 32 + this.#words[at]! - base;
    return memory.subarray(offset, offset + this.#words[at + 2]!);
  }

  /** `byteCount` bytes more were written, no more than there are. */
  advance(byteCount: number): void {
    const words = this.#words;
    let left = byteCount;
    while (left > 0) {
      const at = this.#entry * ENTRY_WORDS;
      const length = words[at + 2]!;
      if (left < length) {
        const low = words[at]! + left;
        words[at] = low;
        words[at + 1]! += low >= 2 ** 32 ? 1 : 0;
        words[at + 2] = length - left;
        return;
      }
      left -= length;
      this.#entry += 1;
    }
    this.#skipEmpty();
  }

  #skipEmpty(): void {
    while (this.count > 0 && this.#words[this.#entry * ENTRY_WORDS + 2] === 0) {
      this.#entry += 1;
    }
  }
}
