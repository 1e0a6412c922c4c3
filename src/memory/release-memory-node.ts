// Gives guest memory back to the system where it holds nothing any more: unplugged, or inflated into a balloon.

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { RamferryError } from './errors.js';
import type { RamBlock } from './ram-block.js';
import { EXTENT_ALIGN_BYTES } from './segment.js';
import { type SystemFunction, systemFunction } from './system-library-node.js';

const MADV_DONTNEED = 4;

let systemMadvise: SystemFunction | undefined;

const madvise: SystemFunction = (...values) => {
  systemMadvise ??= systemFunction('int madvise(void *address, size_t length, int advice)') ?? (() => -1);
  return systemMadvise(...values);
};

/** Whether the system can be called, so that memory goes back to it. */
export const canReleaseMemory = (): boolean => systemFunction('int madvise(void *, size_t, int)') !== undefined;

/** Takes pages of the block away, so that the next access finds none there. Only where the system can be called. */
export const discardMemory = (block: RamBlock, firstPage: number, pageCount: number): void => {
  block.forEachRange(firstPage, pageCount, ({ segment, address, firstPage: extentPage }, page, count) => {
    const start = address + (page - extentPage) * GUEST_PAGE_SIZE;
    const bytes = count * GUEST_PAGE_SIZE;
    if (madvise(segment.bytes.subarray(start, start + bytes), bytes, MADV_DONTNEED) !== 0) {
      throw new RamferryError(
        'failed',
        'MEMORY_NOT_DISCARDED',
        `The system keeps page ${page} of RAM block ${block.name}`,
        {
          value: page,
        },
      );
    }
  });
};

/**
 * Bytes [offset, offset + length) of the block, multiples of 64 pages, read as zero afterwards. Their memory goes back to the
 * system where it can be called (koffi, an optional dependency); elsewhere they are zeroed, and stay as large as they were.
 */
export const releaseMemory = (block: RamBlock, offset: number, length: number): void => {
  for (let at = offset; at < offset + length; ) {
    const { segment, address, firstPage, pageCount } = block.extentOf(at / GUEST_PAGE_SIZE);
    const start = address + (at - firstPage * GUEST_PAGE_SIZE);
    const bytes = Math.min(offset + length - at, (firstPage + pageCount) * GUEST_PAGE_SIZE - at);
    const whole = Math.ceil(bytes / EXTENT_ALIGN_BYTES) * EXTENT_ALIGN_BYTES;
    if (madvise(segment.bytes.subarray(start, start + bytes), bytes, MADV_DONTNEED) === 0) {
      segment.markUnwritten(start, whole);
    } else {
      segment.reset(start, whole);
    }
    at += bytes;
  }
};
