// The one shared memory in which every bitmap lies: dirty memory blocks, send bitmaps, logs. One memory, because a kernel
// instance is bound to one and works on pairs of bitmaps (spec/algorithms.md 14.4). It is reserved whole: growing a wasm
// memory would leave the views of other threads behind (14.3 option C), and reserved pages cost nothing until touched.
//
// Byte addresses here are below 2^31, so `>>>` is safe on them, unlike on guest addresses.

import { bindBitmapKernels } from '../../kernels/index.js';
import type { BitmapKernels } from '../../kernels/kernels.js';
import { RamferryError } from './errors.js';
import { RunAllocator } from './run-allocator.js';

/**
 * Enough for the whole flat space of 8 TiB: three dirty memory clients and four bitmaps of each block are 7 x 256 MiB.
 */
const DEFAULT_BYTES = 2 ** 31;

const WASM_PAGE_BYTES = 65536;

/** A cache line: two bitmaps never share one, nor a 64-bit word (DM-8). */
const ALIGNMENT_BYTES = 64;

/** Where `scratch` is, and how large. Address 0 is never handed out: in pointer arrays and headers it means "none". */
const SCRATCH = { address: ALIGNMENT_BYTES, bytes: 64 * ALIGNMENT_BYTES } as const;

const bytesOf = (bits: number): number => Math.max(1, Math.ceil(bits / (ALIGNMENT_BYTES * 8))) * ALIGNMENT_BYTES;

/** Makes the kernels of a memory; the deterministic scheduler of the tests passes twins that call a step hook. */
export type BindBitmapKernels = (memory: WebAssembly.Memory) => BitmapKernels;

export class BitmapMemory {
  readonly memory: WebAssembly.Memory;
  /** The whole memory; bit n of the bitmap at `address` is bit n % 32 of word address / 4 + n / 32. */
  readonly words: Int32Array;
  readonly kernels: BitmapKernels;
  /** Byte address of 4 KiB for the page lists of the one migration engine that runs, which may not be the owner. */
  readonly scratch: number = SCRATCH.address;
  /** Only the creating thread hands out areas: one owner instead of a lock. */
  readonly #free: RunAllocator | undefined;

  private constructor(memory: WebAssembly.Memory, kernels: BitmapKernels, free?: RunAllocator) {
    this.memory = memory;
    this.words = new Int32Array(memory.buffer);
    this.kernels = kernels;
    this.#free = free;
  }

  /** Reserves a memory of `bytes` (a multiple of 64 KiB, at most 2 GiB); the caller becomes its owner. */
  static create(bytes = DEFAULT_BYTES, bind: BindBitmapKernels = bindBitmapKernels): BitmapMemory {
    const pages = bytes / WASM_PAGE_BYTES;
    const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    const free = new RunAllocator();
    free.free(SCRATCH.address + SCRATCH.bytes, bytes - SCRATCH.address - SCRATCH.bytes);
    return new BitmapMemory(memory, bind(memory), free);
  }

  /** The same memory in another thread, which may use every bitmap but not allocate. */
  static attach(memory: WebAssembly.Memory, bind: BindBitmapKernels = bindBitmapKernels): BitmapMemory {
    return new BitmapMemory(memory, bind(memory));
  }

  /** Byte address of a zeroed bitmap, a multiple of 64. Throws BITMAP_MEMORY_EXHAUSTED. */
  allocate(bits: number): number {
    const address = this.#owned().allocate(bytesOf(bits));
    if (address === undefined) {
      throw new RamferryError('failed', 'BITMAP_MEMORY_EXHAUSTED', `No room for a bitmap of ${bits} bits`, {
        value: bits,
      });
    }
    return address;
  }

  /** Takes back what `allocate(bits)` returned. No thread may use it any more. */
  free(address: number, bits: number): void {
    const free = this.#owned();
    // The kernel skips zero words without writing, so that parts which were never touched stay uncommitted.
    this.kernels.testAndClearRange(address, 0, bytesOf(bits) * 8);
    free.free(address, bytesOf(bits));
  }

  #owned(): RunAllocator {
    if (this.#free === undefined) {
      throw new RamferryError('usage', 'NOT_OWNER', 'Only the thread that created the bitmap memory allocates in it');
    }
    return this.#free;
  }
}
