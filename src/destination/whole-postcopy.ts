import type { PostcopyHandler, StreamSummary } from '../format/stream/stream-handler.js';

/**
 * Takes a migration whole although its source may switch to postcopy: nobody runs here who would ask for pages, and the source
 * sends all of them by itself. Discards need nothing, as every page that is discarded is sent again before the stream ends.
 */
export class WholePostcopy implements PostcopyHandler {
  readonly takesEmptyAdvise = true;
  /** The source switches: from here on it cannot go on with its guest before its stream has ended and it was answered. */
  hasSwitched = false;
  /** The package has come, and pages follow. */
  hasDevices = false;
  readonly #loaded: (pings: readonly number[]) => void;

  /** `loaded` is called when the package has come, with the PINGs that it holds. */
  constructor(loaded: (pings: readonly number[]) => void) {
    this.#loaded = loaded;
  }

  switching(): void {
    this.hasSwitched = true;
  }

  advise(): void {}

  discard(): void {}

  run(_summary: StreamSummary, pings: readonly number[]): void {
    this.hasDevices = true;
    this.#loaded(pings);
  }

  /** A recovery needs somebody who waits for another connection. */
  askReceived(): void {}

  resume(): void {}
}
