// What the two ends of the store barrier's write protection share: the engine's StoreBarrierProtector and a
// WriteProtectWriter in each guest thread. The bitmaps of the dirty log, which is not started meanwhile (BS-12), serve:
//
//   PROTECTED  bit set: the page still has the content of the instant and nobody may store to it   (SNAP)
//   UNCLAIMED  bit set: nobody saves the page yet; whoever clears the bit does                      (REMOTE)
//
// A writer that wins a page copies it into a ring of its own, the pages saved first, and goes on. The engine is the only
// one that takes out of a ring, so two counters are all the synchronisation a ring needs:
//
//   ring of writer n   [ … | page | page | page |     |     ]    pushed - drained pages are in it, at most RING_PAGES
//                            ▲ drained            ▲ pushed

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { BlockBitmaps } from '../memory/ram-block.js';
import { Segment } from '../memory/segment.js';

/**
 * 4 MiB for each writer: what two writers at full speed set aside while the engine writes some batches. With more they
 * wait less often, but the memory is spent for good.
 */
const RING_PAGES = 1024;

/** Words of the control block. What one side writes and another polls lies in cache lines of its own. */
export const ProtectControl = {
  /** 1 from `protect` to `stop`. Writers look at it when the epoch changes, and before they wait. */
  active: 0,
  /** Counts up whenever something was released while somebody waited; waiters sleep on it. */
  progress: 16,
  /** Writers that wait, or are about to. */
  waiting: 32,
  /** From here on a line for each writer: pages pushed into its ring, pages drained from it. Both wrap around. */
  rings: 48,
} as const;

const LINE_WORDS = 16;

export const pushedWord = (writer: number): number => ProtectControl.rings + writer * LINE_WORDS;
export const drainedWord = (writer: number): number => pushedWord(writer) + LINE_WORDS / 2;

/** Structured-cloneable. */
export interface WriteProtectShared {
  readonly control: SharedArrayBuffer;
  /** A segment: the rings' pages, writer after writer. A segment, because the engine hands it to its sink. */
  readonly pool: WebAssembly.Memory;
  /** Pages of each ring, a power of two. */
  readonly ringPages: number;
  readonly writerCount: number;
}

/** Reserves the rings; memory is used once pages are saved first. `ringPages`: tests make it small. */
export function allocateWriteProtect(writerCount: number, ringPages = RING_PAGES): WriteProtectShared {
  const poolBytes = 2 ** Math.ceil(Math.log2(Math.max(64, writerCount * ringPages) * GUEST_PAGE_SIZE));
  return {
    control: new SharedArrayBuffer((pushedWord(writerCount) + 2 * writerCount * ringPages) * 4),
    pool: Segment.create({ ramBytes: poolBytes }).memory,
    ringPages,
    writerCount,
  };
}

/** First of the two words that name the page in slot `slot` of a writer's ring: id of the block, page. */
export const entryWord = ({ writerCount, ringPages }: WriteProtectShared, writer: number, slot: number): number =>
  pushedWord(writerCount) + 2 * (writer * ringPages + slot);

/** Byte address of a slot in the pool. */
export const slotAddress = (ringPages: number, writer: number, slot: number): number =>
  (writer * ringPages + slot) * GUEST_PAGE_SIZE;

/** The bitmaps under the names they have here. */
export const protectionOf = ({ remote, snapshot }: BlockBitmaps): { unclaimed: number; isProtected: number } => ({
  unclaimed: remote,
  isProtected: snapshot,
});
