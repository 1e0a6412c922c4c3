// SHA-256 over what of a workload guest's memory matters: free pages, and those that were taken but not written yet, count as
// zero, whatever they hold. After a migration with free page hints nobody can say more.

import { createHash } from 'node:crypto';
import { GUEST_PAGE_SIZE } from '../../../kernels/kernels.js';
import type { RamBlock, RamBlockList } from '../../memory/index.js';
import { writableBlocks } from './machine.js';
import { PageUse } from './page-allocator.js';
import { PageState, Region } from './region.js';
import { usesOf } from './verify.js';

/** Digest of every block by its name. `writable`: how many of the writable blocks the writers use. The guest must be stopped. */
export function digestPagesInUse(blocks: RamBlockList, writerCount: number, writable: number): Record<string, string> {
  const used = new Set(writableBlocks(blocks).slice(0, writable));
  return Object.fromEntries(
    blocks.blocks.map((block) => [block.name, digest(block, used.has(block) ? writerCount : 0)]),
  );
}

const digest = (block: RamBlock, writerCount: number): string => {
  /** 1 for a page whose content does not matter. */
  const skip = new Uint8Array(block.usedPages);
  for (let writer = 0; writer < writerCount; writer += 1) {
    const region = new Region(block, writer, writerCount);
    // Where the allocator contradicts itself everything matters; the verifier says so as well.
    const uses = usesOf(region) ?? new Uint8Array(region.dataPages);
    for (const [index, use] of uses.entries()) {
      const matters = use === PageUse.inUse && region.generation(index) !== PageState.raw;
      skip[region.dataPage(index)] = matters ? 0 : 1;
    }
  }
  const hash = createHash('sha256');
  const zeroPage = new Uint8Array(GUEST_PAGE_SIZE);
  block.forEachRange(0, block.usedPages, ({ segment, address, firstPage }, first, pageCount) => {
    for (let page: number = first, end = first + pageCount; page < end; ) {
      const from = page;
      if (skip[page] === 1) {
        hash.update(zeroPage);
        page += 1;
        continue;
      }
      while (page < end && skip[page] === 0) {
        page += 1;
      }
      const start = address + (from - firstPage) * GUEST_PAGE_SIZE;
      hash.update(segment.bytes.subarray(start, start + (page - from) * GUEST_PAGE_SIZE));
    }
  });
  return hash.digest('hex');
};
