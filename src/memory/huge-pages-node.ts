// Huge pages for guest RAM. Where the system hands them out on request only (transparent_hugepage = madvise, which is
// common), guest memory that nobody asked for is faulted in 4 KiB at a time, and that costs a destination three times what
// copying the pages does. QEMU asks for its RAM blocks; so do we, where a system call can be made.

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { RamBlock } from './ram-block.js';
import type { Segment } from './segment.js';
import { type SystemFunction, systemFunction } from './system-library-node.js';

const MADV_HUGEPAGE = 14;
const MADV_NOHUGEPAGE = 15;

let madvise: SystemFunction | undefined;

const advise = (segment: Segment, address: number, length: number, advice: number): void => {
  madvise ??= systemFunction('int madvise(void *address, size_t length, int advice)') ?? (() => 0);
  madvise(segment.bytes.subarray(address, address + length), length, advice);
};

/** Advice that costs nothing if it is not taken. For `RamBlockListOptions.onSegment`. */
export const adviseHugePages = (segment: Segment): void => {
  advise(segment, 0, segment.ramBytes, MADV_HUGEPAGE);
};

/**
 * Huge pages only where the block is populated: one that lies across the end of a populated part would make memory of what is
 * discarded. Follows what the calling thread changes from here on.
 */
export const confineHugePages = (block: RamBlock): void => {
  const inform = (advice: number) => (offset: number, length: number) => {
    block.forEachRange(
      offset / GUEST_PAGE_SIZE,
      length / GUEST_PAGE_SIZE,
      ({ segment, address, firstPage }, page, pages) => {
        const start = address + (page - firstPage) * GUEST_PAGE_SIZE;
        advise(segment, start, pages * GUEST_PAGE_SIZE, advice);
      },
    );
  };
  inform(MADV_NOHUGEPAGE)(0, block.usedLength);
  block.discardManager?.register({ populate: inform(MADV_HUGEPAGE), discard: inform(MADV_NOHUGEPAGE) });
};
