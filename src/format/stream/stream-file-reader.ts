// A stream in a file that is read by position: piece by piece, and from wherever the reader goes on, which in a mapped-ram
// file is far behind the last piece.

import type { ReadAt } from '../snapshot.js';
import { StreamReader, type StreamReaderOptions } from './read.js';
import type { StreamHandler } from './stream-handler.js';

/** Bytes of one read: large enough that the system call does not matter. */
const READ_BYTES = 1024 * 1024;

export class StreamFileReader {
  readonly #readAt: ReadAt;
  readonly #sizeBytes: number;
  readonly #reader: StreamReader;
  readonly #buffer = new Uint8Array(READ_BYTES);

  /** @param sizeBytes of the file, in which the stream begins at `startOffset` */
  constructor(handler: StreamHandler, readAt: ReadAt, sizeBytes: number, options: StreamReaderOptions) {
    this.#readAt = readAt;
    this.#sizeBytes = sizeBytes;
    this.#reader = new StreamReader(handler, options);
  }

  /** File position up to which everything was looked at, or jumped over. */
  get position(): number {
    return this.#reader.position;
  }

  /** Reads on; returns by how many bytes the position moved, 0 at the end of the stream or of the file. */
  advance(mostBytes = READ_BYTES): number {
    const start = this.#reader.position;
    // What a push leaves over is read again with the next piece: with 4 KiB pages, less than half a percent.
    const piece = this.#buffer.subarray(0, Math.max(0, Math.min(mostBytes, this.#sizeBytes - start)));
    if (this.#reader.done || piece.length === 0) {
      return 0;
    }
    this.#readAt(start, piece);
    this.#reader.push(piece);
    return this.#reader.position - start;
  }

  /** Called once `advance` returns 0. Throws if the stream is incomplete. */
  finish(): void {
    this.#reader.end();
  }
}
