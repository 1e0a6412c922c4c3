import type { Clock } from './clock.js';

/**
 * The waits of one engine, each of which can be cut short. Each has a signal of its own: whoever combines a short wait with a
 * signal that lives long leaves something behind at every wait.
 */
export class Pause {
  readonly #clock: Clock;
  #current: AbortController | undefined;
  #isOver = false;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Resolves after so many milliseconds, or with `interrupt`; says whether it was interrupted. */
  async sleep(milliseconds: number): Promise<boolean> {
    if (this.#isOver) {
      return true;
    }
    const current = new AbortController();
    this.#current = current;
    await this.#clock.sleep(milliseconds, current.signal);
    this.#current = undefined;
    return current.signal.aborted;
  }

  /** Ends the wait under way, if there is one. */
  interrupt(): void {
    this.#current?.abort();
  }

  /** Nothing is waited for any more. */
  end(): void {
    this.#isOver = true;
    this.interrupt();
  }
}
