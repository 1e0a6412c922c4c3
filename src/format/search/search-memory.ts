// The memory in which guest pages are looked through: kernels reach one WebAssembly memory only.
//
//   0              windowBytes         + SLACK_BYTES
//   │ the window   │ read, not used    │ needles, tables                │

import { bindSearchKernels, type SearchKernels } from '../../../kernels/index.js';

/** Bytes of guest memory at a time: what was read is still in the processor's cache when it is looked through. */
const CHUNK_BYTES = 512 * 1024;

/** Room for what a window keeps of the one before. A needle or a match is shorter than half of it. */
const CARRY_BYTES = 256 * 1024;

const WINDOW_BYTES = CHUNK_BYTES + CARRY_BYTES;

/** Longest needle, and longest match of a regular expression. */
export const LONGEST_MATCH = CARRY_BYTES / 4;

/** Kernels read so far behind what they look at. */
const SLACK_BYTES = 128 * 1024;
const TABLE_BYTES = 2 * 1024 * 1024;
const WASM_PAGE_BYTES = 65536;

export class SearchMemory {
  readonly bytes: Uint8Array;
  /** Guest memory is read into this. */
  readonly window: Uint8Array;
  readonly kernels: SearchKernels;
  #used: number;

  /** @param windowBytes several times what the longest match has; tests take a short one */
  constructor(windowBytes = WINDOW_BYTES) {
    this.#used = windowBytes + SLACK_BYTES;
    const pages = Math.ceil((this.#used + TABLE_BYTES) / WASM_PAGE_BYTES);
    const memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
    this.bytes = new Uint8Array(memory.buffer);
    this.window = this.bytes.subarray(0, windowBytes);
    this.kernels = bindSearchKernels(memory);
  }

  /** Whether there is room for so many bytes more. */
  hasRoom(bytes: number): boolean {
    return this.#used + bytes <= this.bytes.length;
  }

  /** Copies a table to where kernels reach it, for good; returns its address. */
  place(table: Uint8Array): number {
    const address = this.#used;
    this.bytes.set(table, address);
    this.#used += table.length;
    return address;
  }
}
