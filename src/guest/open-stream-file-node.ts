// Opens a stream file for reading by page.

import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { openStream, type StreamSnapshot } from '../format/stream/snapshot.js';
import { RamferryError } from '../memory/errors.js';

export interface OpenedStreamFile {
  readonly snapshot: StreamSnapshot;
  /** Bytes of the file. */
  readonly sizeBytes: number;
  close(): void;
}

/**
 * Reads the file through once to index it.
 * @throws RamferryError `invalid` if it is not a whole stream, `failed` if it cannot be read
 */
export function openStreamFile(file: string): OpenedStreamFile {
  const failed = (error: unknown): RamferryError => {
    const { code, message } = error as NodeJS.ErrnoException;
    return new RamferryError(
      'failed',
      code === 'ENOENT' ? 'NO_SUCH_FILE' : 'FILE_READ',
      `${file} cannot be read: ${message}.`,
      {
        file,
        cause: error,
      },
    );
  };
  let descriptor: number;
  try {
    descriptor = openSync(file, 'r');
  } catch (error) {
    throw failed(error);
  }
  try {
    const stat = fstatSync(descriptor);
    if (!stat.isFile()) {
      throw new RamferryError('usage', 'NOT_A_FILE', `${file} is not a regular file.`, { file });
    }
    const readAt = (position: number, target: Uint8Array): void => {
      for (let done = 0; done < target.length; ) {
        let count: number;
        try {
          count = readSync(descriptor, target, done, target.length - done, position + done);
        } catch (error) {
          throw failed(error);
        }
        if (count === 0) {
          throw new RamferryError(
            'failed',
            'FILE_CHANGED',
            `${file} became shorter while it was read, at byte ${position + done}.`,
            {
              file,
              offset: position + done,
            },
          );
        }
        done += count;
      }
    };
    return {
      snapshot: openStream(readAt, stat.size, { file }),
      sizeBytes: stat.size,
      close: () => closeSync(descriptor),
    };
  } catch (error) {
    closeSync(descriptor);
    throw error;
  }
}
