// The tracker that sees guest writes (REMOTE of spec/algorithms.md 1.2), as the source engine wants it. Kinds differ in
// how a write is seen (store barrier, digest, KVM, replica); the engine knows only this (spec/algorithms.md 14.5).

import type { RamBlock } from '../memory/ram-block.js';

/**
 *   guest store ──mark──▶ REMOTE ──sync──▶ SNAP ──and OR into──▶ dirty memory (all tracking clients)
 *                           ▲                │
 *                           └──── clear ─────┘   REMOTE &= ~SNAP, SNAP = 0, only in the cleared range (G-5, TS-11)
 */
export interface DirtyLog {
  /** Ranges given to `clear` start and end at multiples of this many guest pages (the end of a block excepted). */
  readonly clearAlignPages: number;

  /** False where `sync` itself re-arms, so that `clear` has nothing to do (CB-17). */
  readonly hasRangedClear: boolean;

  /** From here on every guest write is recorded. Old marks are dropped. */
  start(): void;

  /** Stops recording. */
  stop(): void;

  /**
   * Copies the marks of one block onward: REMOTE into SNAP, and ORed into the block's part of dirty memory for every
   * tracking client. REMOTE keeps its bits (TS-9). Returns the number of marks seen.
   * `last`: the guest is stopped and this is the final sync; a log that buffers must give up everything (G-7).
   */
  sync(block: RamBlock, last: boolean): number;

  /**
   * Re-arms a range: removes from REMOTE what the last sync reported there. When it returns, any write that a later
   * read by this thread could miss will be in REMOTE (TS-10). Returns the number of pages whose mark was removed.
   * Throws if the tracker failed; the caller must not read the range then (CB-23).
   */
  clear(block: RamBlock, firstPage: number, pageCount: number): number;

  /**
   * Removes whatever marks the range has, those included that no sync has seen: only for pages whose content does not
   * matter. Writes after it returned are in REMOTE. Returns the number of pages whose mark was removed.
   */
  forget(block: RamBlock, firstPage: number, pageCount: number): number;

  /** How long a sync of everything takes with the guest stopped, in milliseconds; enters the downtime estimate. */
  syncCostMs(): number;
}
