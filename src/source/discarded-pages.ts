// What is logically not there does not move (spec/algorithms.md section 6): reading it could make the system allocate it,
// here or at the destination. Both functions are for every mode that builds send bitmaps: precopy and snapshots after
// their first log sync, postcopy recovery after the bitmaps came back (RD-6).

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { DirtyClient } from '../memory/dirty-memory.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import { ramPage } from '../memory/units.js';
import type { SendBitmap } from './send-bitmap.js';

/**
 * Takes the discarded ranges out of the send bitmap, and out of every layer that would bring them back at the next sync. What
 * the guest stores there afterwards, though it must not, is seen and sent (RD-14). Returns how many pages were taken.
 */
export function excludeDiscarded(send: SendBitmap, { blocks, dirty }: RamBlockList): number {
  let taken = 0;
  for (const block of blocks.filter(({ migrated }) => migrated)) {
    block.discardManager?.replayDiscarded(0, block.usedLength, (offset, length) => {
      // Whole pages: the granularity is a multiple of theirs (RD-28).
      const firstPage = offset / GUEST_PAGE_SIZE;
      const pageCount = length / GUEST_PAGE_SIZE;
      // First the log, then dirty memory, or a sync by another client in between would move a mark past this one.
      taken += send.exclude(block, firstPage, pageCount);
      dirty.testAndClear(ramPage(block.ramPage + firstPage), pageCount, DirtyClient.migration);
    });
  }
  return taken;
}

/** Keeps what is discarded as it is (RD-11). Returns the function that lets it change again. */
export function freezeDiscards({ blocks }: RamBlockList): () => void {
  const managers = blocks.flatMap(({ discardManager }) => discardManager ?? []);
  const frozen: typeof managers = [];
  const thaw = (): void => {
    for (const manager of frozen.splice(0)) {
      manager.thaw();
    }
  };
  try {
    for (const manager of managers) {
      manager.freeze();
      frozen.push(manager);
    }
  } catch (error) {
    thaw();
    throw error;
  }
  return thaw;
}
