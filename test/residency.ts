// Which pages of guest memory the system holds: to show that what is discarded is never touched.

import { readFileSync } from 'node:fs';
import type { RamBlock } from '../src/memory/ram-block.js';
import { systemFunction } from '../src/memory/system-library-node.js';

const PAGE = 4096;
const PIECE = 2 ** 26;

const mincore = systemFunction('int mincore(void *address, size_t length, void *vector)');

/** Pages of [offset, offset + length) that are in memory; undefined where the system cannot be asked. */
export const residentPages = (block: RamBlock, offset = 0, length = block.usedLength): number | undefined => {
  if (mincore === undefined) {
    return undefined;
  }
  let pages = 0;
  const vector = new Uint8Array(PIECE / PAGE);
  for (let at = offset; at < offset + length; ) {
    const { segment, address, firstPage, pageCount } = block.extentOf(at / PAGE);
    const start = address + (at - firstPage * PAGE);
    const bytes = Math.min(PIECE, offset + length - at, (firstPage + pageCount) * PAGE - at);
    if (mincore(segment.bytes.subarray(start, start + bytes), bytes, vector) !== 0) {
      return undefined;
    }
    for (let page = 0; page < bytes / PAGE; page += 1) {
      pages += vector[page]! & 1;
    }
    at += bytes;
  }
  return pages;
};

/** Pages of the discarded parts of a block that are in memory all the same. */
export const residentDiscardedPages = (block: RamBlock): number | undefined => {
  let pages: number | undefined = 0;
  block.discardManager!.replayDiscarded(0, block.usedLength, (offset, length) => {
    const found = residentPages(block, offset, length);
    pages = found === undefined || pages === undefined ? undefined : pages + found;
  });
  return pages;
};

/** Resident size of this process, in bytes. */
export const residentBytes = (): number =>
  Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'latin1'))![1]) * 1024;
