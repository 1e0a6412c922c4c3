// What the two ends of a store barrier share: the engine's StoreBarrierLog and a StoreBarrierWriter in each guest thread.
// The marks themselves are the REMOTE bitmaps of the RAM blocks.

import { allocateHandshake, type HandshakeShared } from './handshake.js';
import type { LoadBarrierShared } from './load-barrier.js';
import type { WriteProtectShared } from './write-protect.js';

/** How a writer marks: see store-barrier-writer.ts. */
export type StoreBarrierVariant = 'unconditional' | 'filtered';

/** Structured-cloneable. */
export interface StoreBarrierShared {
  readonly variant: StoreBarrierVariant;
  readonly handshake: HandshakeShared;
  /** One word: whether marks are wanted. Writers look at it when the epoch changes. */
  readonly recording: SharedArrayBuffer;
  /** Where the guest can be asked to keep pages as they are, for background snapshots. */
  readonly protection?: WriteProtectShared;
  /** Where it can be made to wait for pages, while it arrives by postcopy. */
  readonly loads?: LoadBarrierShared;
}

/** `protection`: for writers that call `beforeStore`; `loads`: for those that call `beforeLoad` as well. */
export function allocateStoreBarrier(
  variant: StoreBarrierVariant,
  writerCount: number,
  protection?: WriteProtectShared,
  loads?: LoadBarrierShared,
): StoreBarrierShared {
  return {
    variant,
    handshake: allocateHandshake(writerCount),
    recording: new SharedArrayBuffer(4),
    ...(protection !== undefined && { protection }),
    ...(loads !== undefined && { loads }),
  };
}
