// What the two ends of a store barrier share: the engine's StoreBarrierLog and a StoreBarrierWriter in each guest thread.
// The marks themselves are the REMOTE bitmaps of the RAM blocks.

import { allocateHandshake, type HandshakeShared } from './handshake.js';

/** How a writer marks: see store-barrier-writer.ts. */
export type StoreBarrierVariant = 'unconditional' | 'filtered';

/** Structured-cloneable. */
export interface StoreBarrierShared {
  readonly variant: StoreBarrierVariant;
  readonly handshake: HandshakeShared;
  /** One word: whether marks are wanted. Writers look at it when the epoch changes. */
  readonly recording: SharedArrayBuffer;
}

export function allocateStoreBarrier(variant: StoreBarrierVariant, writerCount: number): StoreBarrierShared {
  return { variant, handshake: allocateHandshake(writerCount), recording: new SharedArrayBuffer(4) };
}
