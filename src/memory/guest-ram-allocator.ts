// Hands out guest RAM in segments: a big block fills whole segments and its rest, like a small block, goes into the shortest
// free run that takes it. Segments are never given back (no engine can unmap a wasm memory while a view of it lives),
// but their memory is reused.

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { Extent } from './ram-block.js';
import { RunAllocator } from './run-allocator.js';
import { EXTENT_ALIGN_BYTES, Segment } from './segment.js';
import { pageIndex } from './units.js';

export class GuestRamAllocator {
  readonly #segments: Segment[];
  readonly #segmentBytes: number;
  /** All segments in one line: byte `n` of segment `s` is at `s * segmentBytes + n`; no run crosses a segment's end. */
  readonly #free: RunAllocator;

  /** `segments` is the caller's list, to which new segments are appended; it must be empty. */
  constructor(segments: Segment[], segmentBytes: number) {
    this.#segments = segments;
    this.#segmentBytes = segmentBytes;
    this.#free = new RunAllocator(segmentBytes);
  }

  /** Extents of zeroed memory for `length` bytes. Throws what the engine throws when it cannot reserve another segment. */
  allocate(length: number): Extent[] {
    const extents: Extent[] = [];
    try {
      for (let done = 0; done < length; ) {
        const size = Math.min(length - done, this.#segmentBytes);
        const start = this.#take(reservedBytes(size));
        extents.push({
          segment: this.#segments[Math.floor(start / this.#segmentBytes)]!,
          address: start % this.#segmentBytes,
          firstPage: pageIndex(done / GUEST_PAGE_SIZE),
          pageCount: size / GUEST_PAGE_SIZE,
        });
        done += size;
      }
    } catch (error) {
      this.#release(extents);
      throw error;
    }
    return extents;
  }

  /** Zeroes and takes back what `allocate` returned. No thread may use it any more. */
  free(extents: readonly Extent[]): void {
    for (const { segment, address, pageCount } of extents) {
      segment.reset(address, reservedBytes(pageCount * GUEST_PAGE_SIZE));
    }
    this.#release(extents);
  }

  #release(extents: readonly Extent[]): void {
    for (const { segment, address, pageCount } of extents) {
      const size = reservedBytes(pageCount * GUEST_PAGE_SIZE);
      this.#free.free(this.#segments.indexOf(segment) * this.#segmentBytes + address, size);
    }
  }

  #take(size: number): number {
    const start = this.#free.allocate(size);
    if (start !== undefined) {
      return start;
    }
    const segment = Segment.create({ ramBytes: this.#segmentBytes });
    this.#free.free(this.#segments.length * this.#segmentBytes, this.#segmentBytes);
    this.#segments.push(segment);
    return this.#take(size);
  }
}

const reservedBytes = (size: number): number => Math.ceil(size / EXTENT_ALIGN_BYTES) * EXTENT_ALIGN_BYTES;
