// A channel whose first bytes were looked at already: whoever reads it gets them all the same.

import type { ByteChannel, ChannelReader, WriteDone, WriteVector } from './channel.js';
import { spaceOf } from './reader-feed.js';

/** Far more than anybody has to say before it is known who that is. */
const FIRST_BYTES = 4096;

export class PeekedChannel implements ByteChannel {
  readonly #channel: ByteChannel;
  #first = new Uint8Array(FIRST_BYTES);
  #count = 0;
  #taken = 0;
  #isPaused = false;
  #reader: ChannelReader | undefined;
  /** How the channel ended while nobody but us was reading. */
  #end: ((reader: ChannelReader) => void) | undefined;

  constructor(channel: ByteChannel) {
    this.#channel = channel;
  }

  /** Begins to read; `changed` is called when there are more bytes, and when none will follow. */
  peek(changed: () => void): void {
    const ended = (end: (reader: ChannelReader) => void): void => {
      this.#end ??= end;
      changed();
    };
    this.#channel.read({
      buffer: () => this.#space(),
      received: (byteCount) => {
        this.#count += byteCount;
        changed();
      },
      ended: () => ended((reader) => reader.ended()),
      failed: (error) => ended((reader) => reader.failed(error)),
    });
  }

  get peer(): string {
    return this.#channel.peer;
  }

  get origin(): string | undefined {
    return this.#channel.origin;
  }

  get closed(): Promise<void> {
    return this.#channel.closed;
  }

  /** What has come so far. */
  get first(): Uint8Array {
    return this.#first.subarray(0, this.#count);
  }

  /** Whether nothing will follow. */
  get hasEnded(): boolean {
    return this.#end !== undefined;
  }

  #space(): Uint8Array {
    if (this.#count === this.#first.length) {
      const larger = new Uint8Array(2 * this.#count);
      larger.set(this.#first);
      this.#first = larger;
    }
    return this.#first.subarray(this.#count);
  }

  write(bytes: Uint8Array, done: WriteDone): void {
    this.#channel.write(bytes, done);
  }

  addressOf(memory: Uint8Array): number | undefined {
    return this.#channel.addressOf?.(memory);
  }

  writeVector(vector: WriteVector, done: WriteDone): void {
    this.#channel.writeVector!(vector, done);
  }

  /** Stops the peek: what comes from now on waits for `read`. */
  hold(): void {
    this.#channel.pause();
  }

  read(reader: ChannelReader): void {
    this.#reader = reader;
    queueMicrotask(() => this.#deliver());
  }

  /** The first bytes, then how it ended, or everything else straight from the channel. */
  #deliver(): void {
    const reader = this.#reader;
    if (reader === undefined) {
      // Resumed twice, and the first time has done it.
      return;
    }
    while (!this.#isPaused && this.#taken < this.#count) {
      const space = spaceOf(reader);
      const byteCount = Math.min(space.length, this.#count - this.#taken);
      space.set(this.#first.subarray(this.#taken, this.#taken + byteCount));
      this.#taken += byteCount;
      reader.received(byteCount);
    }
    if (this.#isPaused) {
      return;
    }
    this.#first = new Uint8Array(0);
    this.#reader = undefined;
    if (this.#end !== undefined) {
      this.#end(reader);
      return;
    }
    this.#channel.read(reader);
    this.#channel.resume();
  }

  pause(): void {
    this.#isPaused = true;
    this.#channel.pause();
  }

  resume(): void {
    this.#isPaused = false;
    if (this.#reader === undefined) {
      this.#channel.resume();
    } else {
      queueMicrotask(() => this.#deliver());
    }
  }

  end(): Promise<void> {
    return this.#channel.end();
  }

  destroy(): void {
    this.#channel.destroy();
  }
}
