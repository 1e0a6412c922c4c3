// One segment of guest RAM: a shared wasm memory with a control tail behind the RAM, so that the page kernels reach page
// lists, staging buffers and pages in one address space (spec/node-performance.md sections 0 and 1).
//
//   0            ramBytes                                                                          end
//   | guest RAM  | written bitmap | page lists x 8 | results x 8 | staging x 8 | to a multiple of 64 KiB |
//
// 1 GiB of RAM keeps every address below 2^31. Initial size equals maximum: views stay valid for ever, and nothing is
// committed before it is touched. Addresses below are byte offsets in the segment's memory.

import { bindPageKernels } from '../../kernels/index.js';
import { GUEST_PAGE_SIZE, NORMAL_RECORD_BYTES, type PageKernels } from '../../kernels/kernels.js';
import { maskOfBits } from './words.js';

export const SEGMENT_RAM_BYTES = 2 ** 30;

/** Slots of each kind in the control tail; whoever uses the segment's kernels in a thread works in a slot of its own. */
export const SLOT_COUNT = 8;

/** Page indexes (i32) that fit one list slot. */
export const LIST_SLOT_PAGES = 2048;
const LIST_SLOT_BYTES = LIST_SLOT_PAGES * 4;

/** Room for `scanZero` over as many pages as a list slot has, twice over, or the results of `loadRecords`. */
const RESULT_SLOT_BYTES = 512;

/** Normal pages of which one staging slot holds the records: about 1 MiB, the largest unit that I/O gains from. */
export const STAGING_SLOT_PAGES = 256;
/** Those records, and the rest of two pages for section headers, a block name or the beginning of the next record. */
export const STAGING_SLOT_BYTES =
  Math.ceil((STAGING_SLOT_PAGES * NORMAL_RECORD_BYTES) / GUEST_PAGE_SIZE + 1) * GUEST_PAGE_SIZE;

/** Always that of the largest segment, so that the tail has one size and `attach` can tell RAM from tail. */
const WRITTEN_BITMAP_BYTES = SEGMENT_RAM_BYTES / GUEST_PAGE_SIZE / 8;

const WASM_PAGE_BYTES = 65536;
const STAGING_OFFSET = WRITTEN_BITMAP_BYTES + SLOT_COUNT * (LIST_SLOT_BYTES + RESULT_SLOT_BYTES);
const TAIL_BYTES = Math.ceil((STAGING_OFFSET + SLOT_COUNT * STAGING_SLOT_BYTES) / WASM_PAGE_BYTES) * WASM_PAGE_BYTES;

/** Extents start at multiples of this, so that none shares a 64-bit word of the written bitmap with another. */
export const EXTENT_ALIGN_BYTES = 64 * GUEST_PAGE_SIZE;

export class Segment {
  readonly memory: WebAssembly.Memory;
  readonly ramBytes: number;
  readonly bytes: Uint8Array;
  readonly words: Int32Array;
  readonly kernels: PageKernels;
  /**
   * One bit per page of the segment. Clear: the page still reads as zero, because nothing was loaded into it since it was
   * handed out (`PageKernels.loadRecords`). It knows nothing of guest stores: a memory that a guest has run in
   * must be marked whole before it is loaded into (`RamBlock.markWritten`).
   */
  readonly writtenBitmap: number;
  /** First of the list slots. */
  readonly listArea: number;
  /** First of the result slots. */
  readonly resultArea: number;
  /** First of the staging slots. */
  readonly staging: number;

  private constructor(memory: WebAssembly.Memory) {
    this.memory = memory;
    this.bytes = new Uint8Array(memory.buffer);
    this.words = new Int32Array(memory.buffer);
    this.kernels = bindPageKernels(memory);
    this.ramBytes = this.bytes.byteLength - TAIL_BYTES;
    this.writtenBitmap = this.ramBytes;
    this.listArea = this.writtenBitmap + WRITTEN_BITMAP_BYTES;
    this.resultArea = this.listArea + SLOT_COUNT * LIST_SLOT_BYTES;
    this.staging = this.ramBytes + STAGING_OFFSET;
  }

  /** Reserves a segment. Tests ask for small ones: `ramBytes` is a power of two from 64 pages up to SEGMENT_RAM_BYTES. */
  static create({ ramBytes = SEGMENT_RAM_BYTES }: { readonly ramBytes?: number } = {}): Segment {
    if (!Number.isInteger(Math.log2(ramBytes)) || ramBytes < EXTENT_ALIGN_BYTES || ramBytes > SEGMENT_RAM_BYTES) {
      throw new RangeError(`A segment of ${ramBytes} bytes: must be a power of two from 256 KiB to 1 GiB`);
    }
    const pages = (ramBytes + TAIL_BYTES) / WASM_PAGE_BYTES;
    return new Segment(new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true }));
  }

  /** The same segment in another thread. */
  static attach(memory: WebAssembly.Memory): Segment {
    return new Segment(memory);
  }

  /** Address of list slot `slot` (LIST_SLOT_PAGES page indexes). */
  listSlot(slot: number): number {
    return this.listArea + slot * LIST_SLOT_BYTES;
  }

  /** Address of result slot `slot` (512 bytes). */
  resultSlot(slot: number): number {
    return this.resultArea + slot * RESULT_SLOT_BYTES;
  }

  /** Address of staging slot `slot` (STAGING_SLOT_BYTES, page aligned). */
  stagingSlot(slot: number): number {
    return this.staging + slot * STAGING_SLOT_BYTES;
  }

  /** Notes that the pages in [address, address + byteCount) may no longer read as zero. */
  markWritten(address: number, byteCount: number): void {
    const end = Math.ceil((address + byteCount) / GUEST_PAGE_SIZE);
    for (let page = Math.floor(address / GUEST_PAGE_SIZE); page < end; ) {
      const next = Math.min(end, (page | 31) + 1);
      Atomics.or(this.words, (this.writtenBitmap >>> 2) + (page >>> 5), maskOfBits(page, next));
      page = next;
    }
  }

  /**
   * Makes [address, address + byteCount), multiples of EXTENT_ALIGN_BYTES, read as zero again. Tests before it fills, since
   * filling a page that was never touched would commit it.
   */
  reset(address: number, byteCount: number): void {
    const pages = EXTENT_ALIGN_BYTES / GUEST_PAGE_SIZE;
    for (let at = address; at < address + byteCount; at += EXTENT_ALIGN_BYTES) {
      // The written bits of these pages, about to be cleared, take the answer: the result slots belong to other threads.
      if (this.kernels.scanZero(at, pages, this.writtenBitmap + at / GUEST_PAGE_SIZE / 8) < pages) {
        this.kernels.zeroFill(at, EXTENT_ALIGN_BYTES);
      }
    }
    this.markUnwritten(address, byteCount);
  }

  /** Notes that [address, address + byteCount), multiples of EXTENT_ALIGN_BYTES, reads as zero again. */
  markUnwritten(address: number, byteCount: number): void {
    this.kernels.zeroFill(this.writtenBitmap + address / GUEST_PAGE_SIZE / 8, byteCount / GUEST_PAGE_SIZE / 8);
  }
}
