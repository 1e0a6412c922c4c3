// QEMU's bandwidth limit (spec/algorithms.md 7.10): a budget for each window of 100 ms, nothing carried over.

/** Also how often the engine looks at its bandwidth (PL-32). */
export const RATE_WINDOW_MS = 100;

const WINDOWS_PER_SECOND = 1000 / RATE_WINDOW_MS;

/**
 * Says when a sender has to pause. A unit (a host page, a batch of pages) is sent whole even if it ends beyond the
 * budget, so a window carries at most the budget and one unit (PL-27).
 */
export class RateLimit {
  #windowStart: number;
  #used = 0;
  #budget = 0;

  /** `bytesPerSecond` 0 is unlimited, and so by rounding is anything below 10. `now` is a time in milliseconds. */
  constructor(bytesPerSecond: number, now: number) {
    this.#windowStart = now;
    this.setLimit(bytesPerSecond);
  }

  /** Takes effect at once, within the current window (PL-30: switchover lifts the limit). */
  setLimit(bytesPerSecond: number): void {
    this.#budget = Math.floor(bytesPerSecond / WINDOWS_PER_SECOND);
  }

  spent(byteCount: number): void {
    this.#used += byteCount;
  }

  /** Bytes that the current window still has room for; a sender that can choose its unit makes it no larger. */
  get left(): number {
    return this.#budget === 0 ? Number.POSITIVE_INFINITY : Math.max(0, this.#budget - this.#used);
  }

  /**
   * How many milliseconds the sender has to pause: 0, or the rest of the window, in whole ones as timers take them. Ask
   * again after the pause: what is spent before the next question counts for the old window.
   */
  exceededFor(now: number): number {
    if (now - this.#windowStart >= RATE_WINDOW_MS) {
      this.#windowStart = now;
      this.#used = 0;
    }
    const isExceeded = this.#budget > 0 && this.#used > this.#budget;
    return isExceeded ? Math.ceil(this.#windowStart + RATE_WINDOW_MS - now) : 0;
  }
}
