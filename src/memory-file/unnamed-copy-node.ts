// What can only be read once and in order, as a file that can be read by page: a temporary one without a name.

import { ftruncate, write } from 'node:fs';
import { type Duplex, type Readable, Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { channelError } from '../channel/channel-error.js';
import { openUnnamedFile, UNNAMED_FILE } from '../channel/unnamed-file-node.js';
import { type FileReader, readerOf } from './file-reader-node.js';

export interface CopyOptions {
  readonly signal?: AbortSignal | undefined;
  /** Called with the bytes that a step took of the source. */
  readonly onProgress?: ((sourceBytes: number) => void) | undefined;
}

/** What bytes go through on their way: a stream of Node's, or a generator of pieces. */
export type CopyStep = Duplex | ((pieces: AsyncIterable<Uint8Array>) => AsyncIterable<Uint8Array>);

/** What memory that nobody used looks like. */
const ZEROS = Buffer.alloc(1024 * 1024);

const isZero = (piece: Uint8Array): boolean =>
  piece.length <= ZEROS.length && ZEROS.compare(piece, 0, piece.length, 0, piece.length) === 0;

/**
 * Copies all of `source`, through `steps` where there are any; zeros take no space. Rejects with what broke it: an error of the copy itself is
 * a RamferryError. Closes `source`.
 * @param file the source's name in errors
 */
export const unnamedCopy = async (
  file: string,
  source: Readable,
  steps: readonly CopyStep[],
  { signal, onProgress }: CopyOptions,
): Promise<FileReader> => {
  let descriptor: number;
  try {
    descriptor = openUnnamedFile();
  } catch (error) {
    source.destroy();
    throw copyError(error as Error);
  }
  const reader = readerOf(descriptor, file);
  source.on('data', (piece: Buffer) => onProgress?.(piece.length));
  let position = 0;
  const sink = new Writable({
    write(piece: Buffer, _encoding, done) {
      if (isZero(piece)) {
        position += piece.length;
        done();
        return;
      }
      const writeFrom = (at: number): void => {
        write(descriptor, piece, at, piece.length - at, position, (error, count) => {
          if (error) {
            done(copyError(error));
            return;
          }
          position += count;
          if (at + count < piece.length) {
            writeFrom(at + count);
          } else {
            done();
          }
        });
      };
      writeFrom(0);
    },
    final(done) {
      // Zeros at the end were not written.
      ftruncate(descriptor, position, (error) => done(error ? copyError(error) : null));
    },
  });
  try {
    // A generator is as good as a stream for it, and its types know that of tuples only.
    await pipeline([source, ...(steps as Duplex[]), sink], { signal });
  } catch (error) {
    reader.close();
    signal?.throwIfAborted();
    throw error;
  }
  return { ...reader, sizeBytes: position };
};

const copyError = (error: Error): Error =>
  channelError(error, 'write', UNNAMED_FILE).with({
    hint: 'a copy is made where the system wants its temporary files; TMPDIR names another folder',
  });
