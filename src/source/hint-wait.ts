// How long a migration holds back, at its start, what the guest may be about to hint as free. Hints race the copying: a
// page that was copied before it is hinted saves nothing (spec/qemu-lab.md E3), so the first sweep is given a head start;
// but a guest that never answers must cost next to nothing (FH-22).

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { HintStatus } from './guest.js';

/** Copy from the start; wait while it pays; wait this many milliseconds at most. */
export type HintWaitLimit = 'off' | 'auto' | number;

/** Bytes per millisecond that copying reaches where no limit is set: about what a QEMU loads from one connection. */
const UNLIMITED_BYTES_PER_MS = 2e6;

/**
 * A wait that turns out to have been in vain may add this share to the time that copying everything would take: 2 % for a
 * guest that has not answered, 5 % for one that has. That one has a driver, which may only have to wait for a core: on
 * a host of two, where the destination populates its memory, 2 % are not enough for a guest that zeroes what it hints.
 */
const STAKE = { requested: 0.02, started: 0.05 } as const;

/** Shorter, and a guest thread that is merely not scheduled looks as if it did not answer. */
const SHORTEST_PATIENCE_MS = 10;

/** Longer, and a user would notice. */
const LONGEST_PATIENCE_MS = 1000;

/**
 *   waited    |████████████|
 *   hinted    |█████████████████|──────── patience ────────|   what copying would have needed for these pages, and more
 *
 * Over when the wait has cost that much more than it has saved, and when no hint has come for that long: what a fast guest
 * has saved may not be spent on waiting for one that stands still.
 */
export class HintWait {
  readonly #limit: HintWaitLimit;
  readonly #startedAt: number;
  readonly #pagesPerMs: number;
  /** Milliseconds that copying everything would take. */
  readonly #copyMs: number;
  #progressAt: number;
  #honoured = 0;
  #holding: boolean;

  /** @param maxBandwidth bytes per second, 0 for unlimited; @param totalPages of the guest */
  constructor(limit: HintWaitLimit, maxBandwidth: number, totalPages: number, now: number) {
    this.#limit = limit;
    this.#pagesPerMs = (maxBandwidth > 0 ? maxBandwidth / 1000 : UNLIMITED_BYTES_PER_MS) / GUEST_PAGE_SIZE;
    this.#copyMs = totalPages / this.#pagesPerMs;
    this.#startedAt = now;
    this.#progressAt = now;
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
    if (status === 'stop' || status === 'done') {
      this.#holding = false;
      return;
    }
    const waited = now - this.#startedAt;
    if (typeof this.#limit === 'number') {
      this.#holding = waited < this.#limit;
      return;
    }
    if (honoured > this.#honoured) {
      this.#honoured = honoured;
      this.#progressAt = now;
    }
    const stake = STAKE[status === 'requested' ? 'requested' : 'started'] * this.#copyMs;
    const patience = Math.min(LONGEST_PATIENCE_MS, Math.max(SHORTEST_PATIENCE_MS, stake));
    this.#holding = waited - honoured / this.#pagesPerMs < patience && now - this.#progressAt < patience;
  }
}
