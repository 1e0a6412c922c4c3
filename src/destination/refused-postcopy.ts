import type { ByteChannel } from '../channel/channel.js';

/** A source that has sent all of its memory is silent. */
const SILENCE_MS = 2000;

/** How long the source may take to close once it was told. */
const LEAVE_MS = 10_000;

/**
 * The end of a migration that failed here after its source had switched to postcopy. A connection that closes now leaves the guest
 * stopped for good at the source (`postcopy-paused`), so that what it sends is let through until it has sent everything. Told then
 * that the migration has failed, QEMU goes on with its guest; QEMU 7.2 would be `postcopy-paused` if it were told before.
 */
export class RefusedPostcopy {
  readonly #channel: ByteChannel;
  #tell: (() => void) | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** `tell` says that the migration has failed; `hasEnded`: nothing more will come. */
  constructor(channel: ByteChannel, tell: () => void, hasEnded: boolean) {
    this.#channel = channel;
    this.#tell = tell;
    void channel.closed.then(() => clearTimeout(this.#timer));
    if (hasEnded) {
      this.#say();
    } else {
      this.received();
    }
  }

  /** Something has come. */
  received(): void {
    if (this.#tell !== undefined) {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#say(), SILENCE_MS);
    }
  }

  #say(): void {
    this.#tell?.();
    this.#tell = undefined;
    this.#timer = setTimeout(() => this.#channel.destroy(), LEAVE_MS);
  }
}
