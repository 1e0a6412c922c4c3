// The dirty log of a guest whose threads report their own stores (kind 1 of spec/algorithms.md 14.5); both variants of
// store-barrier-writer.ts. The engine's end:
//
//   start   REMOTE = SNAP = 0, recording = 1, handshake: no writer skips a mark any more
//   sync    SNAP |= REMOTE, dirty memory |= REMOTE                          asks nobody (TS-16)
//   clear   REMOTE &= ~SNAP, SNAP = 0; filtered: handshake, so that stores which skipped their mark are visible here
//
// Why the unconditional variant clears without a handshake: a mark before the AND is ordered before it, with the store
// that it follows, so the read that comes next sees the store; a mark after the AND sets the bit again.

import { RamferryError } from '../memory/errors.js';
import type { RamBlock } from '../memory/ram-block.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import type { DirtyLog } from './dirty-log.js';
import { Handshake, type WaitWhile } from './handshake.js';
import type { StoreBarrierShared } from './store-barrier.js';

/** A writer passes safepoints microseconds apart; even a starved thread gets the processor within seconds. */
const DEFAULT_TIMEOUT_MS = 10_000;

export interface StoreBarrierLogOptions {
  /** How long a running guest thread may take to reach a safepoint (TS-15). Default 10 s. */
  readonly timeoutMs?: number;
  /** Replaces `Atomics.wait`; for schedulers in tests. */
  readonly wait?: WaitWhile;
}

export class StoreBarrierLog implements DirtyLog {
  readonly clearAlignPages = 64;
  readonly hasRangedClear = true;
  readonly #shared: StoreBarrierShared;
  readonly #recording: Int32Array;
  readonly #handshake: Handshake;
  readonly #blocks: RamBlockList;
  readonly #syncMs = new Map<RamBlock, number>();

  /** The log as the calling thread uses it; one thread at a time does. `blocks`: that thread's view of the guest's blocks. */
  constructor(shared: StoreBarrierShared, blocks: RamBlockList, options: StoreBarrierLogOptions = {}) {
    this.#shared = shared;
    this.#recording = new Int32Array(shared.recording);
    this.#handshake = new Handshake(shared.handshake, options.timeoutMs ?? DEFAULT_TIMEOUT_MS, options.wait);
    this.#blocks = blocks;
  }

  start(): void {
    const { kernels } = this.#blocks.bitmaps;
    for (const { bitmaps, maxPages } of this.#blocks.blocks) {
      kernels.testAndClearRange(bitmaps.remote, 0, maxPages);
      kernels.testAndClearRange(bitmaps.snapshot, 0, maxPages);
    }
    Atomics.store(this.#recording, 0, 1);
    this.#handshake.advance(0, Number.POSITIVE_INFINITY);
  }

  stop(): void {
    Atomics.store(this.#recording, 0, 0);
    // Nobody waits: a writer that marks a little longer does no harm (G-3), and cleaning up must not fail.
    this.#handshake.announce(0, Number.POSITIVE_INFINITY);
    this.#syncMs.clear();
  }

  sync(block: RamBlock, _last: boolean): number {
    const before = performance.now();
    const marks = this.#blocks.dirty.fetchLog(block);
    this.#syncMs.set(block, performance.now() - before);
    return marks;
  }

  clear(block: RamBlock, firstPage: number, pageCount: number): number {
    checkRange(block, firstPage, pageCount);
    const { remote, snapshot } = block.bitmaps;
    const removed = this.#blocks.bitmaps.kernels.clearLog(remote, snapshot, firstPage, pageCount);
    // A store may have skipped its mark only on the strength of one that is in REMOTE. If none was removed, every
    // such store is still reported by the next sync. After a clear that failed, there is none to rely on (CB-23).
    if (this.#shared.variant === 'filtered' && (removed > 0 || !this.#handshake.confirmed)) {
      this.#handshake.advance(block.ramPage + firstPage, pageCount);
    }
    return removed;
  }

  forget(block: RamBlock, firstPage: number, pageCount: number): number {
    checkRange(block, firstPage, pageCount);
    // As if a sync had seen a mark on every page: then the clear, which is masked by that, removes all there are.
    this.#blocks.bitmaps.kernels.setRange(block.bitmaps.snapshot, firstPage, pageCount);
    return this.clear(block, firstPage, pageCount);
  }

  /** What the last sync of each block took. */
  syncCostMs(): number {
    let sum = 0;
    for (const cost of this.#syncMs.values()) {
      sum += cost;
    }
    return sum;
  }

  /** Returns when every writer is parked; the caller has told them to (`Handshake.awaitParked`). */
  awaitParked(): void {
    this.#handshake.awaitParked();
  }
}

const checkRange = (block: RamBlock, firstPage: number, pageCount: number): void => {
  if (!(firstPage >= 0 && pageCount >= 0 && firstPage + pageCount <= block.maxPages)) {
    throw new RamferryError(
      'usage',
      'PAGE_OUTSIDE_BLOCK',
      `pages ${firstPage} to ${firstPage + pageCount} are outside the ${block.maxPages} of block ${block.name}`,
      { value: firstPage },
    );
  }
};
