// The accounting window: what bandwidth do we reach, and how much may be left when the guest is stopped?
// spec/algorithms.md 7.11, with its two weaknesses mended: time spent in log syncs is not transfer time, and one lucky
// or unlucky window does not decide, because the last few are taken together.

/** A window is never closed earlier; figures change at most this often (PL-32). */
export const WINDOW_MS = 100;

/** Windows that count. Half a second forgets a changed network soon enough and smooths scheduling noise. */
const HISTORY = 5;

/** Below this many bytes in a window the expected downtime is left alone: there was hardly anything to measure (ST-12). */
const MEANINGFUL_BYTES = 10_000;

/**
 * Bytes per millisecond that any network reaches, as long as none were measured. A guest that hints nearly all it has is
 * ready to switch over long before the first window closes, but for the few pages that its driver writes at each request.
 */
const UNMEASURED = 1000;

export interface WindowFigures {
  readonly transferred: number;
  readonly spentMs: number;
  /** Bytes per millisecond. */
  readonly bandwidth: number;
  readonly expectedBandwidth: number;
}

export class BandwidthWindow {
  /** Bytes that may be pending at the switchover; 0 until the first window closed. */
  threshold = 0;
  /** The same for what is dirty again once everything was sent; not 0 before either. */
  residualThreshold: number;
  /** Bytes per millisecond to expect at the switchover. */
  expected = 0;
  /** Figures of the last closed window, in query-migrate's units. */
  mbps = 0;
  pagesPerSecond = 0;
  expectedDowntime: number;

  #start: number;
  #bytes = 0;
  #pages = 0;
  #excludedMs = 0;
  readonly #recentBytes: number[] = [];
  readonly #recentMs: number[] = [];

  constructor(now: number, downtimeLimit: number) {
    this.#start = now;
    this.residualThreshold = UNMEASURED * downtimeLimit;
    this.expectedDowntime = downtimeLimit;
  }

  /** Time that passed in a log sync or waiting for hints: not transfer time. */
  exclude(milliseconds: number): void {
    this.#excludedMs += milliseconds;
  }

  /**
   * Closes the window if it is due; returns its figures then.
   * @param fixedMs what a switchover costs whatever is pending: log sync, device state, the peer's answer
   * @param dirtyBytes bytes dirty at the last sync, and 0 while no dirty rate is known
   */
  update(
    now: number,
    transferredBytes: number,
    transferredPages: number,
    limits: { downtimeLimit: number; availSwitchoverBandwidth: number; fixedMs: number },
    dirtyBytes: number,
  ): WindowFigures | undefined {
    const elapsed = now - this.#start;
    if (elapsed < WINDOW_MS) {
      return undefined;
    }
    const bytes = transferredBytes - this.#bytes;
    const spentMs = Math.max(1, elapsed - this.#excludedMs);
    this.#recentBytes.push(bytes);
    this.#recentMs.push(spentMs);
    if (this.#recentMs.length > HISTORY) {
      this.#recentBytes.shift();
      this.#recentMs.shift();
    }
    const bandwidth = sum(this.#recentBytes) / sum(this.#recentMs);
    this.expected = limits.availSwitchoverBandwidth > 0 ? limits.availSwitchoverBandwidth / 1000 : bandwidth;
    this.threshold = this.expected * Math.max(0, limits.downtimeLimit - limits.fixedMs);
    this.residualThreshold = this.threshold;
    this.mbps = (bytes * 8) / (elapsed / 1000) / 1e6;
    this.pagesPerSecond = Math.round((transferredPages - this.#pages) / (elapsed / 1000));
    if (dirtyBytes > 0 && bytes > MEANINGFUL_BYTES) {
      this.expectedDowntime = Math.round(dirtyBytes / this.expected + limits.fixedMs);
    }
    this.#start = now;
    this.#bytes = transferredBytes;
    this.#pages = transferredPages;
    this.#excludedMs = 0;
    return { transferred: bytes, spentMs, bandwidth, expectedBandwidth: this.expected };
  }
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
