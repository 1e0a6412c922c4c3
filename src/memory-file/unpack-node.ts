// Packed data of a container, unpacked into a temporary file without a name: pages are read in any order, which no packed
// format allows.

import { Readable } from 'node:stream';
import * as zlib from 'node:zlib';
import { ZstdDecoder } from '../format/zstd/decoder.js';
import { RamferryError } from '../memory/errors.js';
import { shellCommand } from '../memory/shell-command.js';
import type { FileReader } from './file-reader-node.js';
import { GzipMembers } from './gzip-members-node.js';
import { type CopyOptions, type CopyStep, unnamedCopy } from './unnamed-copy-node.js';
import { type UnpackedCheck, watchUnpacked } from './watch-unpacked.js';

/** Bytes of a read of the packed data. */
const READ_BYTES = 1024 * 1024;

/** zstd came into node:zlib with Node 22.15 and 23.8. */
const { createZstdDecompress } = zlib as unknown as { readonly createZstdDecompress?: typeof zlib.createGunzip };

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
const zstdUnpacker = (isDevice: boolean): CopyStep =>
  createZstdDecompress === undefined || isDevice
    ? unpackZstd(isDevice)
    : createZstdDecompress({ chunkSize: READ_BYTES });

/** Data that are being unpacked. */
interface Unpacking {
  readonly source: Readable;
  readonly steps: readonly CopyStep[];
  readonly options: CopyOptions;
  /** Up to where the packed data have been read. */
  position(): number;
}

const unpackingGzip = (reader: FileReader, offset: number, { signal, onProgress }: CopyOptions): Unpacking => {
  const members = new GzipMembers(reader, offset);
  const unpacked = async function* (): AsyncGenerator<Uint8Array> {
    let reported = offset;
    for await (const piece of members.unpacked()) {
      onProgress?.(members.position - reported);
      reported = members.position;
      yield piece;
    }
  };
  const source = Readable.from(unpacked(), { objectMode: false });
  return { source, steps: [], options: { signal }, position: () => members.position };
};

const unpackingZstd = (reader: FileReader, offset: number, options: CopyOptions): Unpacking => {
  let position = offset;
  const pieces = async function* (): AsyncGenerator<Uint8Array> {
    while (position < reader.sizeBytes) {
      const piece = new Uint8Array(Math.min(READ_BYTES, reader.sizeBytes - position));
      await reader.readLater(position, piece);
      position += piece.length;
      yield piece;
    }
  };
  const source = Readable.from(pieces(), { objectMode: false });
  return { source, steps: [zstdUnpacker(reader.isDevice)], options, position: () => position };
};

const UNPACKING: ReadonlyMap<string, typeof unpackingGzip> = new Map([
  ['gzip', unpackingGzip],
  ['zstd', unpackingZstd],
]);

/**
 * Unpacks everything from byte `offset` of the file on.
 * @param check looks at the first bytes of what was packed
 * @throws RamferryError `invalid` if the data are damaged, or packed in a way that is not unpacked here; what `check`
 *   throws; `failed` if the temporary file cannot be written
 */
export const unpack = async (
  reader: FileReader,
  file: string,
  offset: number,
  format: string,
  check: UnpackedCheck,
  options: CopyOptions = {},
): Promise<FileReader> => {
  const begin = UNPACKING.get(format);
  if (begin === undefined) {
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
  const unpacking = begin(reader, offset, options);
  try {
    const steps = [...unpacking.steps, watchUnpacked(file, format, check)];
    return await unnamedCopy(file, unpacking.source, steps, unpacking.options);
  } catch (error) {
    options.signal?.throwIfAborted();
    if (error instanceof RamferryError && error.code !== 'COMPRESSED_DATA') {
      throw error;
    }
    const position = unpacking.position();
    throw new RamferryError(
      'invalid',
      'COMPRESSED_DATA',
      `The ${format} data in ${file} are damaged or cut, before byte ${position}: ${(error as Error).message.replace(/\.$/, '')}.`,
      { file, offset: position, cause: error },
    );
  }
};
