// Unpacks gzip data up to the last member. Node's own reader of several members takes whatever follows one for the next, unless
// it is zero: a stream on a device, in front of what was there before, would be damaged to it.

import { Readable } from 'node:stream';
import { crc32, createInflateRaw } from 'node:zlib';
import { GZIP_TRAILER_BYTES, gzipHeaderBytes } from '../format/gzip.js';
import type { FileReader } from './file-reader-node.js';

/** Bytes of a read of the packed data. */
const READ_BYTES = 1024 * 1024;

/** A header has the name of a file in it, and seldom more. */
const MOST_HEADER_BYTES = 64 * 1024;

/** The members that follow one another in a file. */
export class GzipMembers {
  readonly #reader: Pick<FileReader, 'readLater' | 'sizeBytes'>;
  #position: number;

  /** @param offset where the first begins */
  constructor(reader: Pick<FileReader, 'readLater' | 'sizeBytes'>, offset: number) {
    this.#reader = reader;
    this.#position = offset;
  }

  /** Up to where the packed data have been used. */
  get position(): number {
    return this.#position;
  }

  /**
   * What was packed, of all members one after another.
   * @throws Error if a member is damaged or cut
   */
  async *unpacked(): AsyncGenerator<Uint8Array> {
    for (let count = 0; ; count += 1) {
      const headerBytes = gzipHeaderBytes(await this.#read(this.#position, MOST_HEADER_BYTES));
      if (headerBytes === undefined) {
        if (count === 0) {
          throw new Error('its header is not that of deflated data');
        }
        return;
      }
      this.#position += headerBytes;
      yield* this.#member();
    }
  }

  /** Unpacks a member, from its data on. */
  async *#member(): AsyncGenerator<Uint8Array> {
    const start = this.#position;
    const inflate = createInflateRaw({ chunkSize: READ_BYTES });
    // It reads ahead, also behind the end of the member; what follows is read again.
    const source = Readable.from(this.#pieces(start), { objectMode: false });
    source.on('error', (error) => inflate.destroy(error));
    let checksum = 0;
    let bytes = 0;
    try {
      for await (const piece of source.pipe(inflate) as AsyncIterable<Uint8Array>) {
        checksum = crc32(piece, checksum);
        bytes += piece.length;
        this.#position = start + inflate.bytesWritten;
        yield piece;
      }
      this.#position = start + inflate.bytesWritten;
    } finally {
      source.destroy();
      inflate.destroy();
    }
    const trailer = await this.#read(this.#position, GZIP_TRAILER_BYTES);
    if (trailer.length < GZIP_TRAILER_BYTES) {
      throw new Error('unexpected end of file');
    }
    const view = new DataView(trailer.buffer);
    if (view.getUint32(0, true) !== checksum || view.getUint32(4, true) !== bytes % 2 ** 32) {
      throw new Error('incorrect data check');
    }
    this.#position += GZIP_TRAILER_BYTES;
  }

  async *#pieces(from: number): AsyncGenerator<Uint8Array> {
    for (let position = from; position < this.#reader.sizeBytes; position += READ_BYTES) {
      yield await this.#read(position, READ_BYTES);
    }
  }

  /** Up to `most` bytes; fewer at the end of the file. */
  async #read(position: number, most: number): Promise<Uint8Array<ArrayBuffer>> {
    const target = new Uint8Array(Math.max(0, Math.min(most, this.#reader.sizeBytes - position)));
    if (target.length > 0) {
      await this.#reader.readLater(position, target);
    }
    return target;
  }
}
