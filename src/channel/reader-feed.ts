// Node wants the buffer for a socket's next read when the socket is created, and then at the end of each read: before
// anybody called `read`, and also right after a reader paused. This class stands in between. While the reader is ready
// the system call writes into the reader's own buffer, without a copy; what arrives at any other moment goes to a small
// buffer of ours and is copied when the reader is ready again.
//
//            reader ready at the end of the last read?
//   socket ──── yes ──▶ reader.buffer() ──▶ reader.received()
//          └─── no  ──▶ scratch ──(copy once the reader is ready)──▶ reader.buffer() ──▶ reader.received()

import type { ChannelReader } from './channel.js';

/** One pause costs at most a copy of this much; as large as the buffers that Node would allocate itself. */
const SCRATCH_BYTES = 64 * 1024;

const NOTHING = new Uint8Array(0);

export class ReaderFeed {
  readonly #scratch = new Uint8Array(SCRATCH_BYTES);
  /** Where the system writes next: a buffer of the reader's, or `#scratch`. */
  #lent: Uint8Array = this.#scratch;
  /** The part of `#scratch` that the reader has not taken yet. */
  #held: Uint8Array = NOTHING;
  #reader: ChannelReader | undefined;
  #flowing = false;
  #delivering = false;

  /** Called with what the reader threw; the owner drops the medium. */
  onFault: (error: unknown) => void = () => {};

  /** The `onread` option of `net.Socket`. */
  readonly onread = {
    buffer: (): Uint8Array => this.#lend(),
    callback: (byteCount: number): boolean => {
      this.#filled(byteCount);
      return true;
    },
  };

  get reader(): ChannelReader | undefined {
    return this.#reader;
  }

  start(reader: ChannelReader): void {
    this.#reader = reader;
  }

  pause(): void {
    this.#flowing = false;
  }

  /** Hands over what was held back; false if the reader paused again meanwhile. */
  resume(): boolean {
    this.#flowing = true;
    this.#deliver();
    return this.#flowing;
  }

  #lend(): Uint8Array {
    this.#lent = this.#scratch;
    if (this.#reader !== undefined && this.#flowing && this.#held.length === 0) {
      const reader = this.#reader;
      this.#guarded(() => {
        this.#lent = spaceOf(reader);
      });
    }
    return this.#lent;
  }

  #filled(byteCount: number): void {
    if (this.#lent === this.#scratch) {
      this.#held = this.#scratch.subarray(0, byteCount);
      this.#deliver();
    } else {
      this.#guarded(() => this.#reader?.received(byteCount));
    }
  }

  #deliver(): void {
    const reader = this.#reader;
    // `resume` called from inside `received` must not start a second loop; the one below goes on by itself.
    if (reader === undefined || this.#delivering) {
      return;
    }
    this.#delivering = true;
    this.#guarded(() => {
      while (this.#flowing && this.#held.length > 0) {
        const space = spaceOf(reader);
        const byteCount = Math.min(space.length, this.#held.length);
        space.set(this.#held.subarray(0, byteCount));
        this.#held = this.#held.subarray(byteCount);
        reader.received(byteCount);
      }
    });
    this.#delivering = false;
  }

  /** A reader that throws breaks its own channel, not the process. */
  #guarded(step: () => void): void {
    try {
      step();
    } catch (error) {
      this.#flowing = false;
      this.onFault(error);
    }
  }
}

/** The reader's next buffer. An empty one would be read into for ever. */
export const spaceOf = (reader: ChannelReader): Uint8Array => {
  const space = reader.buffer();
  if (space.length === 0) {
    throw new RangeError('A channel reader offered an empty buffer.');
  }
  return space;
};
