// A byte channel whose other end is the test: it delivers exactly the chunks it is given, and keeps what is written.

import type { ByteChannel, ChannelReader } from '../src/channel/channel.js';

type Delivery = { readonly bytes: Uint8Array } | { readonly then: (reader: ChannelReader) => void };

export class ScriptedChannel implements ByteChannel {
  readonly peer = 'test:source';
  readonly closed: Promise<void>;
  /** What the engine wrote, write by write. */
  readonly written: Uint8Array[] = [];
  /** While true, writes do not complete: a peer that does not read. */
  holdWrites = false;
  isDestroyed = false;
  hasEnded = false;
  isPaused = false;
  pauses = 0;
  #close!: () => void;
  #reader: ChannelReader | undefined;
  #source: Iterator<Delivery> | undefined;
  #isPumping = false;

  constructor() {
    this.closed = new Promise((resolve) => {
      this.#close = resolve;
    });
  }

  /** All written bytes as hexadecimal digits. */
  get answer(): string {
    return Buffer.concat(this.written).toString('hex');
  }

  /** Delivers these chunks, then silence. */
  send(chunks: Iterable<Uint8Array>): this {
    return this.#deliver(chunks);
  }

  /** Delivers these chunks, then the end of the peer's direction. */
  sendAndEnd(chunks: Iterable<Uint8Array>): this {
    return this.#deliver(chunks, (reader) => reader.ended());
  }

  /** Delivers these chunks, then breaks. */
  sendAndBreak(chunks: Iterable<Uint8Array>, error: Error): this {
    return this.#deliver(chunks, (reader) => reader.failed(error));
  }

  #deliver(chunks: Iterable<Uint8Array>, then?: (reader: ChannelReader) => void): this {
    const deliveries = function* (): Generator<Delivery> {
      for (const bytes of chunks) {
        yield { bytes };
      }
      if (then !== undefined) {
        yield { then };
      }
    };
    this.#source = deliveries();
    this.#pump();
    return this;
  }

  /** A few chunks a turn of the event loop, so that endless sources leave room for everything else. */
  #pump(): void {
    if (this.#isPumping) {
      return;
    }
    this.#isPumping = true;
    setImmediate(() => {
      this.#isPumping = false;
      for (let count = 0; count < 64; count += 1) {
        if (this.#reader === undefined || this.isPaused || this.isDestroyed) {
          return;
        }
        const next = this.#source?.next();
        if (next === undefined || next.done === true) {
          return;
        }
        if ('then' in next.value) {
          next.value.then(this.#reader);
          return;
        }
        this.#give(this.#reader, next.value.bytes);
      }
      this.#pump();
    });
  }

  /** As ReaderFeed: a chunk larger than the reader's buffer comes in pieces; what was read when it paused is still given. */
  #give(reader: ChannelReader, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      if (this.isPaused) {
        this.#source = prepended(bytes.subarray(at), this.#source!);
        return;
      }
      const space = reader.buffer();
      const count = Math.min(space.length, bytes.length - at);
      space.set(bytes.subarray(at, at + count));
      at += count;
      reader.received(count);
    }
  }

  read(reader: ChannelReader): void {
    this.#reader = reader;
    this.#pump();
  }

  pause(): void {
    this.isPaused = true;
    this.pauses += 1;
  }

  resume(): void {
    this.isPaused = false;
    this.#pump();
  }

  write(bytes: Uint8Array, done: (error: Error | undefined) => void): void {
    const complete = (): void => {
      if (this.isDestroyed) {
        done(new Error('broken pipe'));
      } else if (this.holdWrites) {
        setImmediate(complete);
      } else {
        this.written.push(bytes.slice());
        done(undefined);
      }
    };
    setImmediate(complete);
  }

  async end(): Promise<void> {
    this.hasEnded = true;
    this.#close();
  }

  destroy(): void {
    this.isDestroyed = true;
    this.#close();
  }
}

function* prepended(bytes: Uint8Array, rest: Iterator<Delivery>): Generator<Delivery> {
  yield { bytes };
  for (let next = rest.next(); next.done !== true; next = rest.next()) {
    yield next.value;
  }
}

/** `bytes` in pieces whose sizes are taken from `sizes`, over and over. */
export function* inPieces(bytes: Uint8Array, ...sizes: number[]): Generator<Uint8Array> {
  for (let at = 0, index = 0; at < bytes.length; index += 1) {
    const size = sizes[index % sizes.length]!;
    yield bytes.subarray(at, at + size);
    at += size;
  }
}
