// Huge pages for guest RAM. Where the system hands them out on request only (transparent_hugepage = madvise, which is
// common), guest memory that nobody asked for is faulted in 4 KiB at a time, and that costs a destination three times what
// copying the pages does. QEMU asks for its RAM blocks; so do we, where a system call can be made.

import type { Segment } from './segment.js';
import { type SystemFunction, systemFunction } from './system-library-node.js';

const MADV_HUGEPAGE = 14;

let madvise: SystemFunction | undefined;

/** Advice that costs nothing if it is not taken. For `RamBlockListOptions.onSegment`. */
export const adviseHugePages = (segment: Segment): void => {
  madvise ??= systemFunction('int madvise(void *address, size_t length, int advice)') ?? (() => 0);
  madvise(segment.bytes, segment.ramBytes, MADV_HUGEPAGE);
};
