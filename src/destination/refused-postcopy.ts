import type { ByteChannel } from '../channel/channel.js';

/** A source that has sent all of its memory is silent. */
const SILENCE_MS = 2000;

/** How long a source that was told may be silent before it closes. */
const LEAVE_MS = 10_000;

/**
 * A source that has switched to postcopy, after a failure. It sends the rest of its memory in vain; it was told then, so that its
 * guest can go on there; or the connection is gone, and with that what it was to be told.
 */
export type SwitchedSource = 'sends-on' | 'told' | 'gone';

export interface RefusedPostcopyOptions {
  readonly channel: ByteChannel;
  /** Says that the migration has failed. */
  readonly tell: () => void;
  /** Not once the source has sent everything, but at once: it may still go on with its guest, or nothing more will come. */
  readonly isTold: boolean;
  /** More than a source can have to send, after which the connection is closed. */
  readonly byteLimit: number;
}

/**
 * The end of a migration that failed here after its source had switched to postcopy, or had announced that it may. A connection
 * that closes then leaves the guest stopped for good at the source (`postcopy-paused`), so that what it sends is let through until
 * it closes. Told that the migration has failed when it has sent everything, QEMU goes on with its guest; QEMU 7.2 would be
 * `postcopy-paused` if it were told before.
 */
export class RefusedPostcopy {
  readonly #options: RefusedPostcopyOptions;
  #isTold = false;
  #isGone = false;
  #byteCount = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(options: RefusedPostcopyOptions) {
    this.#options = options;
    void options.channel.closed.then(() => {
      this.#isGone = true;
      clearTimeout(this.#timer);
    });
    if (options.isTold) {
      this.#say();
    } else {
      this.#wait();
    }
  }

  get source(): SwitchedSource {
    if (this.#isTold) {
      return 'told';
    }
    return this.#isGone ? 'gone' : 'sends-on';
  }

  /** So many bytes have come. */
  received(byteCount: number): void {
    const { byteLimit, channel } = this.#options;
    this.#byteCount += byteCount;
    if (this.#byteCount > byteLimit) {
      channel.destroy();
    } else {
      this.#wait();
    }
  }

  #wait(): void {
    clearTimeout(this.#timer);
    const { channel } = this.#options;
    this.#timer = this.#isTold
      ? setTimeout(() => channel.destroy(), LEAVE_MS)
      : setTimeout(() => this.#say(), SILENCE_MS);
  }

  #say(): void {
    this.#isTold = true;
    this.#options.tell();
    this.#wait();
  }
}
