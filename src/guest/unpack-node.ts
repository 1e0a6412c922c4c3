// Packed data of a container, unpacked into a temporary file without a name: pages are read in any order, which no packed
// format allows.

import { createReadStream } from 'node:fs';
import * as zlib from 'node:zlib';
import { channelError } from '../channel/channel-error.js';
import { reopen } from '../channel/unnamed-file-node.js';
import type { LibvirtFormat } from '../format/libvirt/save-image.js';
import { RamferryError } from '../memory/errors.js';
import { shellCommand } from '../memory/shell-command.js';
import type { FileReader } from './file-reader-node.js';
import { type CopyOptions, unnamedCopy } from './unnamed-copy-node.js';

/** Bytes of a read of the packed data. */
const READ_BYTES = 1024 * 1024;

/** zstd came into node:zlib with Node 22.15 and 23.8. */
const { createZstdDecompress } = zlib as unknown as { readonly createZstdDecompress?: typeof zlib.createGunzip };

const unpackers: Readonly<Partial<Record<LibvirtFormat, typeof zlib.createGunzip | undefined>>> = {
  gzip: zlib.createGunzip,
  zstd: createZstdDecompress,
};

/**
 * Unpacks everything from byte `offset` of the file on.
 * @throws RamferryError `invalid` if the data are damaged, or packed in a way that this Node does not unpack;
 *   `failed` if the temporary file cannot be written
 */
export const unpack = async (
  reader: Pick<FileReader, 'descriptor'>,
  file: string,
  offset: number,
  format: LibvirtFormat,
  options: CopyOptions = {},
): Promise<FileReader> => {
  const createUnpacker = unpackers[format];
  if (createUnpacker === undefined) {
    throw new RamferryError(
      'invalid',
      'COMPRESSED_FILE',
      `The stream in ${file} is packed by ${format}, which Node ${process.versions.node} does not unpack, from byte ${offset} on.`,
      {
        file,
        offset,
        value: format,
        hint: `Unpack it: ${shellCommand`tail -c +${offset + 1} ${file} | ${format} -dc > ${file}.mig`}`,
      },
    );
  }
  // By a descriptor of its own, which the stream closes.
  const packed = createReadStream('', { fd: reopen(reader.descriptor), start: offset, highWaterMark: READ_BYTES });
  try {
    return await unnamedCopy(file, packed, createUnpacker({ chunkSize: READ_BYTES }), options);
  } catch (error) {
    options.signal?.throwIfAborted();
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
};
