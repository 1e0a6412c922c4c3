// The return path from the destination's side: messages leave in order, one write at a time. Answers that come up while
// a write is under way wait here, so that a source that asks and does not listen is noticed (`backlog`) instead of
// filling the channel's queue.

import type { ByteChannel } from '../channel/channel.js';
import { ByteWriter } from '../format/byte-writer.js';
import { Waiters } from './waiters.js';

export class ReturnPathWriter {
  readonly #channel: ByteChannel;
  readonly #failed: (error: Error) => void;
  readonly #queued = new ByteWriter(64);
  #isWriting = false;
  #error: Error | undefined;
  readonly #waiters = new Waiters();

  /** `failed` is called when a message could not be written; nothing is queued from then on. */
  constructor(channel: ByteChannel, failed: (error: Error) => void) {
    this.#channel = channel;
    this.#failed = failed;
  }

  /** Bytes that wait for the write under way. */
  get backlog(): number {
    return this.#queued.length;
  }

  /** Queues a message; `flush` sends it. */
  append(message: Uint8Array): void {
    if (this.#error === undefined) {
      this.#queued.bytes(message);
    }
  }

  flush(): void {
    if (this.#isWriting || this.#queued.length === 0) {
      return;
    }
    this.#isWriting = true;
    const bytes = this.#queued.copy();
    this.#queued.truncate(0);
    this.#channel.write(bytes, (error) => {
      this.#isWriting = false;
      if (error === undefined) {
        this.flush();
      } else {
        this.#error = error;
        this.#queued.truncate(0);
        this.#failed(error);
      }
      this.#waiters.wake();
    });
  }

  /** Resolves when every message was handed to the system; rejects if one could not be. */
  async drained(): Promise<void> {
    this.flush();
    await this.#waiters.until(() => {
      if (this.#error !== undefined) {
        throw this.#error;
      }
      return !this.#isWriting && this.#queued.length === 0;
    });
  }
}
