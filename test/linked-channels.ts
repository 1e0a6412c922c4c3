// Two ends of a connection in this process, which breaks after as many bytes as a test says.

import type { ByteChannel, ChannelReader, WriteDone } from '../src/channel/channel.js';

/** Bytes that get through before the connection breaks, in either direction. */
export interface Cut {
  readonly toDestination?: number;
  readonly toSource?: number;
}

class End implements ByteChannel {
  readonly peer: string;
  readonly closed = new Promise<void>(() => {});
  other!: End;
  /** Bytes that this end still gets. */
  left: number;
  received = 0;
  #reader: ChannelReader | undefined;
  #isPaused = false;
  #broken: Error | undefined;
  readonly #incoming: { readonly bytes: Uint8Array; readonly done: WriteDone }[] = [];
  #isScheduled = false;

  constructor(peer: string, left = Number.POSITIVE_INFINITY) {
    this.peer = peer;
    this.left = left;
  }

  get isBroken(): boolean {
    return this.#broken !== undefined;
  }

  write(bytes: Uint8Array, done: WriteDone): void {
    this.other.#incoming.push({ bytes, done });
    this.other.#schedule();
  }

  read(reader: ChannelReader): void {
    this.#reader = reader;
    this.#schedule();
  }

  pause(): void {
    this.#isPaused = true;
  }

  resume(): void {
    this.#isPaused = false;
    this.#schedule();
  }

  async end(): Promise<void> {}

  destroy(): void {
    this.break(new Error('destroyed'));
  }

  break(error: Error): void {
    for (const end of [this, this.other]) {
      if (end.#broken === undefined) {
        end.#broken = error;
        end.#schedule();
        setImmediate(() => end.#reader?.failed(error));
      }
    }
  }

  #schedule(): void {
    if (!this.#isScheduled) {
      this.#isScheduled = true;
      setImmediate(() => {
        this.#isScheduled = false;
        this.#deliver();
      });
    }
  }

  #deliver(): void {
    while (this.#broken !== undefined || (this.#reader !== undefined && !this.#isPaused)) {
      const next = this.#incoming.shift();
      if (next === undefined) {
        return;
      }
      if (this.#broken === undefined) {
        this.#give(this.#reader!, next.bytes);
      }
      next.done(this.#broken);
    }
  }

  #give(reader: ChannelReader, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length && this.#broken === undefined; ) {
      const space = reader.buffer();
      const count = Math.min(space.length, bytes.length - at, this.left);
      space.set(bytes.subarray(at, at + count));
      this.left -= count;
      this.received += count;
      at += count;
      if (count > 0) {
        reader.received(count);
      }
      if (this.left === 0) {
        this.break(new Error('the test cut the link'));
      }
    }
  }
}

export interface Link {
  readonly source: ByteChannel;
  readonly destination: ByteChannel;
  /** Bytes that the destination, and the source, have got. */
  readonly bytes: () => { readonly toDestination: number; readonly toSource: number };
  break(): void;
  isBroken(): boolean;
  /** Bytes to the destination that the source did not send. */
  inject(bytes: Uint8Array): void;
}

export const link = ({ toDestination, toSource }: Cut = {}): Link => {
  const source = new End('test:destination', toSource);
  const destination = new End('test:source', toDestination);
  source.other = destination;
  destination.other = source;
  return {
    source,
    destination,
    bytes: () => ({ toDestination: destination.received, toSource: source.received }),
    isBroken: () => source.isBroken,
    break: () => source.break(new Error('the test broke the link')),
    inject: (bytes) => source.write(bytes, () => {}),
  };
};
