// Packed data of a container, unpacked into a temporary file without a name: pages are read in any order, which no packed
// format allows.

import { Readable } from 'node:stream';
import * as zlib from 'node:zlib';
import { ZstdDecoder } from '../format/zstd/decoder.js';
import { RamferryError } from '../memory/errors.js';
import { shellCommand } from '../memory/shell-command.js';
import type { FileReader } from './file-reader-node.js';
import { type CopyOptions, type CopyStep, unnamedCopy } from './unnamed-copy-node.js';
import { type UnpackedCheck, watchUnpacked } from './watch-unpacked.js';

/** Bytes of a read of the packed data. */
const READ_BYTES = 1024 * 1024;

/** zstd came into node:zlib with Node 22.15 and 23.8. */
const { createZstdDecompress } = zlib as unknown as { readonly createZstdDecompress?: typeof zlib.createGunzip };

/** Ends with the last member, whatever follows it, as on a device: in a pipeline that would be an error. */
const unpackGzip: CopyStep = async function* (pieces) {
  const source = Readable.from(pieces, { objectMode: false });
  const gunzip = zlib.createGunzip({ chunkSize: READ_BYTES });
  source.on('error', (error) => gunzip.destroy(error));
  try {
    yield* source.pipe(gunzip);
  } finally {
    source.destroy();
    gunzip.destroy();
  }
};

/** Unpacks zstd where Node does not. */
const unpackZstd = (endsAnywhere: boolean): CopyStep =>
  async function* (pieces) {
    const decoder = new ZstdDecoder({ endsAnywhere });
    for await (const piece of pieces) {
      yield* decoder.push(piece);
      if (decoder.ended) {
        return;
      }
    }
    decoder.finish();
  };

/** What Node's own zstd does not say of a file it does on a device: that something else follows. */
const createUnpacker = (format: string, isDevice: boolean): CopyStep | undefined => {
  switch (format) {
    case 'gzip':
      return unpackGzip;
    case 'zstd':
      return createZstdDecompress === undefined || isDevice
        ? unpackZstd(isDevice)
        : createZstdDecompress({ chunkSize: READ_BYTES });
    default:
      return undefined;
  }
};

/**
 * Unpacks everything from byte `offset` of the file on.
 * @param check looks at the first bytes of what was packed
 * @throws RamferryError `invalid` if the data are damaged, or packed in a way that is not unpacked here; what `check`
 *   throws; `failed` if the temporary file cannot be written
 */
export const unpack = async (
  { readLater, sizeBytes, isDevice }: FileReader,
  file: string,
  offset: number,
  format: string,
  check: UnpackedCheck,
  options: CopyOptions = {},
): Promise<FileReader> => {
  const unpacker = createUnpacker(format, isDevice);
  if (unpacker === undefined) {
    throw new RamferryError(
      'invalid',
      'COMPRESSED_FILE',
      `The stream in ${file} is packed by ${format}, which is not unpacked here, from byte ${offset} on.`,
      {
        file,
        offset,
        value: format,
        hint: `Unpack it: ${shellCommand`tail -c +${offset + 1} ${file} | ${format} -dc > ${file}.mig`}`,
      },
    );
  }
  let position = offset;
  const pieces = async function* (): AsyncGenerator<Uint8Array> {
    while (position < sizeBytes) {
      const piece = new Uint8Array(Math.min(READ_BYTES, sizeBytes - position));
      await readLater(position, piece);
      position += piece.length;
      yield piece;
    }
  };
  try {
    const source = Readable.from(pieces(), { objectMode: false });
    return await unnamedCopy(file, source, [unpacker, watchUnpacked(file, format, check)], options);
  } catch (error) {
    options.signal?.throwIfAborted();
    if (error instanceof RamferryError && error.code !== 'COMPRESSED_DATA') {
      throw error;
    }
    throw new RamferryError(
      'invalid',
      'COMPRESSED_DATA',
      `The ${format} data in ${file} are damaged or cut, before byte ${position}: ${(error as Error).message.replace(/\.$/, '')}.`,
      { file, offset: position, cause: error },
    );
  }
};
