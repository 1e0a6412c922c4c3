// Files as one-way halves of a channel: bytes from an offset on, in order.

import fs from 'node:fs';
import type { ChannelReader, WriteDone } from './channel.js';
import { channelDestroyed, channelError } from './channel-error.js';
import type { InputHalf, OutputHalf } from './channel-halves.js';
import { spaceOf } from './reader-feed.js';
import { byteLength, WriteQueue } from './write-queue.js';

/** Bytes per system call: larger ones gain nothing (spec/node-performance.md section 4) and delay `destroy`. */
const READ_BYTES = 1024 * 1024;

/** Closing stdio's descriptors would hand their numbers to the next file that is opened. */
const closeDescriptor = (descriptor: number, then: () => void): void => {
  if (descriptor <= 2) {
    process.nextTick(then);
  } else {
    fs.close(descriptor, then);
  }
};

/** Reads an open file from `position` on, or from where the descriptor stands if it is null. Owns the descriptor. */
export class FileInput implements InputHalf {
  readonly closed: Promise<void>;
  readonly #peer: string;
  readonly #descriptor: number;
  #position: number | null;
  #reader: ChannelReader | undefined;
  #paused = false;
  #busy = false;
  #finished = false;
  #resolveClosed = (): void => {};

  constructor(peer: string, descriptor: number, position: number | null) {
    this.#peer = peer;
    this.#descriptor = descriptor;
    this.#position = position;
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
  }

  read(reader: ChannelReader): void {
    this.#reader = reader;
    this.#paused = false;
    this.#step();
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.#step();
  }

  destroy(): void {
    if (!this.#finished) {
      this.#finished = true;
      // The thread that reads may still write into the reader's buffer: close only when it is back.
      if (!this.#busy) {
        this.#close();
      }
    }
  }

  #step(): void {
    const reader = this.#reader;
    if (reader === undefined || this.#busy || this.#paused || this.#finished) {
      return;
    }
    this.#busy = true;
    let space: Uint8Array;
    try {
      space = spaceOf(reader);
    } catch (error) {
      process.nextTick(() => this.#settled(reader, error as Error, 0));
      return;
    }
    fs.read(this.#descriptor, space, 0, Math.min(space.length, READ_BYTES), this.#position, (error, byteCount) =>
      this.#settled(reader, error && channelError(error, 'read from', this.#peer), byteCount),
    );
  }

  #settled(reader: ChannelReader, error: Error | null, byteCount: number): void {
    this.#busy = false;
    if (this.#finished) {
      this.#close();
    } else if (error !== null) {
      this.#finish(() => reader.failed(error));
    } else if (byteCount === 0) {
      this.#finish(() => reader.ended());
    } else {
      this.#position = this.#position === null ? null : this.#position + byteCount;
      try {
        reader.received(byteCount);
      } catch (fault) {
        this.#finish(() => reader.failed(fault as Error));
        return;
      }
      this.#step();
    }
  }

  #finish(tell: () => void): void {
    if (!this.#finished) {
      this.#finished = true;
      this.#close();
      tell();
    }
  }

  #close(): void {
    closeDescriptor(this.#descriptor, this.#resolveClosed);
  }
}

/** Writes to an open file from `position` on, or where the descriptor stands if it is null. Owns the descriptor. */
export class FileOutput implements OutputHalf {
  readonly closed: Promise<void>;
  readonly #peer: string;
  readonly #descriptor: number;
  #position: number | null;
  readonly #queue = new WriteQueue();
  #busy = false;
  #failure: Error | undefined;
  #isClosed = false;
  #ending: Promise<void> | undefined;
  #flushed: (() => void) | undefined;
  #resolveClosed = (): void => {};

  constructor(peer: string, descriptor: number, position: number | null) {
    this.#peer = peer;
    this.#descriptor = descriptor;
    this.#position = position;
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
  }

  write(bytes: Uint8Array, done: WriteDone): void {
    this.#queue.push(bytes, done);
    if (this.#isClosed) {
      process.nextTick(() => this.#failQueue());
    } else {
      this.#step();
    }
  }

  end(): Promise<void> {
    this.#ending ??= new Promise((resolve, reject) => {
      this.#flushed = resolve;
      void this.closed.then(() => reject(this.#failure ?? channelDestroyed(this.#peer)));
      this.#step();
    });
    return this.#ending;
  }

  destroy(): void {
    this.#failure ??= channelDestroyed(this.#peer);
    this.#step();
  }

  #step(): void {
    // Whatever happens, the memory of a write under way is not given back before the thread that writes it is back.
    if (this.#busy || this.#isClosed) {
      return;
    }
    if (this.#failure !== undefined) {
      this.#close();
    } else if (this.#queue.length > 0) {
      this.#writeBatch();
    } else if (this.#flushed !== undefined) {
      this.#flushed();
      this.#close();
    }
  }

  #writeBatch(): void {
    const pieces = this.#queue.batch();
    this.#busy = true;
    fs.writev(this.#descriptor, pieces, this.#position, (error, byteCount) => {
      if (error) {
        this.#failure ??= channelError(error, 'write to', this.#peer);
      } else {
        if (byteCount === 0 && byteLength(pieces) > 0) {
          this.#failure ??= channelError({ code: 'ENOSPC' }, 'write to', this.#peer);
        }
        this.#position = this.#position === null ? null : this.#position + byteCount;
        this.#queue.completed(byteCount);
      }
      this.#busy = false;
      this.#step();
    });
  }

  #failQueue(): void {
    this.#queue.fail(this.#failure ?? channelDestroyed(this.#peer));
  }

  #close(): void {
    this.#isClosed = true;
    closeDescriptor(this.#descriptor, () => {
      this.#failQueue();
      this.#resolveClosed();
    });
  }
}
