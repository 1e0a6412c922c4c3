// Hands out guest RAM in segments: a big block fills whole segments and its rest, like a small block, goes into the shortest
// free run that takes it. A segment that nobody uses any more is dropped, which gives its memory back to the operating
// system once no thread refers to it; in one that still holds other blocks, what became free is zeroed and reused.

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { Extent } from './ram-block.js';
import { RunAllocator } from './run-allocator.js';
import { EXTENT_ALIGN_BYTES, Segment } from './segment.js';
import { pageIndex } from './units.js';

export class GuestRamAllocator {
  readonly #segments: Map<number, Segment>;
  readonly #segmentBytes: number;
  /** All segments in one line: byte `n` of segment `id` is at `id * segmentBytes + n`; no run crosses a segment's end. */
  readonly #free: RunAllocator;
  readonly #onSegment: (segment: Segment) => void;
  #nextId = 0;

  /** `segments` is the caller's, by id; it starts empty and is kept up to date. Ids are never used twice. */
  constructor(segments: Map<number, Segment>, segmentBytes: number, onSegment: (segment: Segment) => void) {
    this.#segments = segments;
    this.#onSegment = onSegment;
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
          segment: this.#segments.get(Math.floor(start / this.#segmentBytes))!,
          address: start % this.#segmentBytes,
          firstPage: pageIndex(done / GUEST_PAGE_SIZE),
          pageCount: size / GUEST_PAGE_SIZE,
        });
        done += size;
      }
    } catch (error) {
      this.free(extents);
      throw error;
    }
    return extents;
  }

  /** Takes back what `allocate` returned. No thread may use it any more. */
  free(extents: readonly Extent[]): void {
    const ids = new Map([...this.#segments].map(([id, segment]) => [segment, id]));
    for (const { segment, address, pageCount } of extents) {
      const start = ids.get(segment)! * this.#segmentBytes;
      const size = reservedBytes(pageCount * GUEST_PAGE_SIZE);
      this.#free.free(start + address, size);
      if (this.#free.withdraw(start, this.#segmentBytes)) {
        this.#segments.delete(ids.get(segment)!);
      } else {
        segment.reset(address, size);
      }
    }
  }

  #take(size: number): number {
    const start = this.#free.allocate(size);
    if (start !== undefined) {
      return start;
    }
    const segment = Segment.create({ ramBytes: this.#segmentBytes });
    this.#onSegment(segment);
    this.#segments.set(this.#nextId, segment);
    this.#free.free(this.#nextId * this.#segmentBytes, this.#segmentBytes);
    this.#nextId += 1;
    return this.#take(size);
  }
}

const reservedBytes = (size: number): number => Math.ceil(size / EXTENT_ALIGN_BYTES) * EXTENT_ALIGN_BYTES;
