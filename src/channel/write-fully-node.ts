// The positioned write that mapped-ram files are made with.

import fs from 'node:fs';
import { constants } from 'node:os';

/**
 * Writes [at, at + length) of `bytes`, all of it or it throws. A short write is not accepted (MR-19): the rest is tried
 * again, which writes it or says why not, as a device does that is full.
 */
export const writeFully = (
  descriptor: number,
  bytes: Uint8Array,
  at: number,
  length: number,
  position: number,
): void => {
  for (let done = 0; done < length; ) {
    const count = fs.writeSync(descriptor, bytes, at + done, length - done, position + done);
    if (count === 0) {
      throw Object.assign(new Error('nothing was written'), {
        code: 'ENOSPC',
        errno: -constants.errno.ENOSPC,
      });
    }
    done += count;
  }
};
