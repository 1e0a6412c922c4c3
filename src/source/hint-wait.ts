// How long a migration holds back, at its start, what the guest may be about to hint as free. Hints race the copying: a
// page that was copied before it is hinted saves nothing (spec/qemu-lab.md E3), so the first sweep is given a head start;
// but a guest that never answers must cost next to nothing (FH-22).

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { HintStatus } from './guest.js';

/** Copy from the start; wait while it pays; wait this many milliseconds at most. */
export type HintWaitLimit = 'off' | 'auto' | number;

/** Bytes per millisecond that copying reaches where no limit is set: about what a QEMU loads from one connection. */
const UNLIMITED_BYTES_PER_MS = 2e6;

/** A wait that turns out to have been in vain may add this share to the time that copying everything would take. */
const STAKE = 0.02;

/** Shorter, and a guest thread that is merely not scheduled looks as if it did not answer. */
const SHORTEST_PERIOD_MS = 10;

/** Longer, and a user would notice. */
const LONGEST_PERIOD_MS = 1000;

/**
 *   status     requested ─────▶ start ──────────────────────▶ stop (end marker)
 *   holding   |─── period ───|─── period ───|─── period ───|
 *                            └ as many pages hinted as copying would have sent? No: over.
 */
export class HintWait {
  readonly #limit: HintWaitLimit;
  readonly #startedAt: number;
  readonly #periodMs: number;
  readonly #pagesPerMs: number;
  #periodStart: number;
  #honouredBefore = 0;
  #holding: boolean;

  /** @param maxBandwidth bytes per second, 0 for unlimited; @param totalPages of the guest */
  constructor(limit: HintWaitLimit, maxBandwidth: number, totalPages: number, now: number) {
    this.#limit = limit;
    this.#pagesPerMs = (maxBandwidth > 0 ? maxBandwidth / 1000 : UNLIMITED_BYTES_PER_MS) / GUEST_PAGE_SIZE;
    const stake = (STAKE * totalPages) / this.#pagesPerMs;
    this.#periodMs = Math.min(LONGEST_PERIOD_MS, Math.max(SHORTEST_PERIOD_MS, stake));
    this.#startedAt = now;
    this.#periodStart = now;
    this.#holding = limit !== 'off' && limit !== 0;
  }

  /** Once false, it stays so: later sweeps report little that was not free before. */
  get holding(): boolean {
    return this.#holding;
  }

  /** @param status of the device before its ring was emptied; @param honoured pages taken out so far */
  update(status: HintStatus, honoured: number, now: number): void {
    if (!this.#holding) {
      return;
    }
    const swept = status === 'stop' || status === 'done';
    if (swept || (typeof this.#limit === 'number' && now - this.#startedAt >= this.#limit)) {
      this.#holding = false;
    } else if (this.#limit === 'auto' && now - this.#periodStart >= this.#periodMs) {
      this.#holding = honoured - this.#honouredBefore >= this.#pagesPerMs * (now - this.#periodStart);
      this.#honouredBefore = honoured;
      this.#periodStart = now;
    }
  }
}
