// SHA-256 over guest RAM, to compare memories byte for byte.

import { createHash } from 'node:crypto';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { RamBlock, RamBlockList } from '../memory/index.js';

/** SHA-256 over the used length of a block, in hexadecimal; pages that were never written count as zero bytes. */
export function digestBlock(block: RamBlock): string {
  const hash = createHash('sha256');
  block.forEachRange(0, block.usedPages, ({ segment, address, firstPage }, first, pageCount) => {
    const start = address + (first - firstPage) * GUEST_PAGE_SIZE;
    hash.update(segment.bytes.subarray(start, start + pageCount * GUEST_PAGE_SIZE));
  });
  return hash.digest('hex');
}

/** Digest of every block by its name. The guest must be stopped, or the result is of no instant. */
export function digestBlocks(blocks: RamBlockList): Record<string, string> {
  return Object.fromEntries(blocks.blocks.map((block) => [block.name, digestBlock(block)]));
}
