// Packed data of a container, unpacked into a temporary file without a name: pages are read in any order, which no packed
// format allows.

import { createReadStream, write } from 'node:fs';
import { Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import * as zlib from 'node:zlib';
import { channelError } from '../channel/channel-error.js';
import { openUnnamedFile, UNNAMED_FILE } from '../channel/unnamed-file-node.js';
import type { LibvirtFormat } from '../format/libvirt/save-image.js';
import { RamferryError } from '../memory/errors.js';
import { type FileReader, readerOf } from './file-reader-node.js';

/** Bytes of a read of the packed data. */
const READ_BYTES = 1024 * 1024;

/** zstd came into node:zlib with Node 22.15 and 23.8. */
const { createZstdDecompress } = zlib as unknown as { readonly createZstdDecompress?: typeof zlib.createGunzip };

const unpackers: Readonly<Partial<Record<LibvirtFormat, typeof zlib.createGunzip | undefined>>> = {
  gzip: zlib.createGunzip,
  zstd: createZstdDecompress,
};

export interface UnpackOptions {
  readonly signal?: AbortSignal | undefined;
  /** Called with the bytes that a step took of the packed data. */
  readonly onProgress?: ((packedBytes: number) => void) | undefined;
}

/**
 * Unpacks everything from byte `offset` of the file on.
 * @throws RamferryError `invalid` if the data are damaged, or packed in a way that this Node does not unpack;
 *   `failed` if the temporary file cannot be written
 */
export const unpack = async (
  file: string,
  offset: number,
  format: LibvirtFormat,
  { signal, onProgress }: UnpackOptions = {},
): Promise<FileReader> => {
  const createUnpacker = unpackers[format];
  if (createUnpacker === undefined) {
    throw new RamferryError(
      'invalid',
      'COMPRESSED_FILE',
      `The stream in ${file} is packed by ${format}, which Node ${process.versions.node} does not unpack, from byte ${offset} on.`,
      { file, offset, value: format, hint: `Unpack it: tail -c +${offset + 1} ${file} | ${format} -dc > guest.mig` },
    );
  }
  const descriptor = openUnnamedFile();
  const reader = readerOf(descriptor, file);
  const packed = createReadStream(file, { start: offset, highWaterMark: READ_BYTES });
  packed.on('data', (piece) => onProgress?.(piece.length));
  let position = 0;
  const sink = new Writable({
    write(piece: Buffer, _encoding, done) {
      const writeFrom = (at: number): void => {
        write(descriptor, piece, at, piece.length - at, position, (error, count) => {
          if (error) {
            done(channelError(error, 'write', UNNAMED_FILE));
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
  });
  try {
    await pipeline(packed, createUnpacker({ chunkSize: READ_BYTES }), sink, { signal });
  } catch (error) {
    reader.close();
    signal?.throwIfAborted();
    if (error instanceof RamferryError) {
      throw error;
    }
    if ((error as NodeJS.ErrnoException).syscall !== undefined) {
      throw channelError(error, 'read', file);
    }
    const at = offset + packed.bytesRead;
    throw new RamferryError(
      'invalid',
      'COMPRESSED_DATA',
      `The ${format} data in ${file} are damaged or cut, before byte ${at}: ${(error as Error).message}.`,
      { file, offset: at, cause: error },
    );
  }
  return { ...reader, sizeBytes: position };
};
