// A regular file read by position.

import fs, { closeSync, fstatSync, openSync } from 'node:fs';
import { channelError } from '../channel/channel-error.js';
import type { ReadAt } from '../format/snapshot.js';
import { RamferryError } from '../memory/errors.js';

export interface FileReader {
  /** Throws a RamferryError of kind `failed`, also where the file became shorter than it was. */
  readonly readAt: ReadAt;
  /** The same in another thread of Node's pool. `target` must stay alone until then. */
  readLater(position: number, target: Uint8Array): Promise<void>;
  readonly sizeBytes: number;
  /** Whether it is a device, which has the size it has: what it holds may end anywhere in it. */
  readonly isDevice: boolean;
  close(): void;
}

const guarded = <Result>(file: string, activity: string, call: () => Result): Result => {
  try {
    return call();
  } catch (error) {
    throw channelError(error, activity, file);
  }
};

/** @throws RamferryError `failed` if it cannot be opened, `usage` if it cannot be read by position */
export const openFileReader = (file: string): FileReader => {
  const descriptor = guarded(file, 'open', () => openSync(file, 'r'));
  const stat = fstatSync(descriptor);
  if (stat.isFile()) {
    return readerOf(descriptor, file);
  }
  if (stat.isBlockDevice()) {
    const sizeBytes = guarded(file, 'read', () => sizeOfDevice(descriptor));
    return { ...readerOf(descriptor, file), sizeBytes, isDevice: true };
  }
  closeSync(descriptor);
  const kind = stat.isDirectory() ? 'a directory' : 'neither a file nor a pipe';
  throw new RamferryError('usage', 'NOT_A_FILE', `${file} is ${kind}: it has no memory file in it.`, { file });
};

/** Found by reading: behind its end there is nothing to be had. No other way tells it of every device. */
const sizeOfDevice = (descriptor: number): number => {
  const byte = new Uint8Array(1);
  const hasByte = (position: number): boolean => fs.readSync(descriptor, byte, 0, 1, position) === 1;
  let end = 1;
  while (hasByte(end - 1)) {
    end *= 2;
  }
  // Of [start, end), the first byte that is not there.
  let start = Math.floor(end / 2);
  while (start < end - 1) {
    const middle = start + Math.floor((end - start) / 2);
    if (hasByte(middle - 1)) {
      start = middle;
    } else {
      end = middle;
    }
  }
  return start;
};

/** Reads an open regular file, and closes it in the end; `file` is its name in errors. */
export const readerOf = (descriptor: number, file: string): FileReader => {
  const endsAt = (offset: number): RamferryError =>
    new RamferryError('failed', 'FILE_CHANGED', `${file} became shorter while it was read, at byte ${offset}.`, {
      file,
      offset,
    });
  return {
    readAt: (position, target) => {
      for (let done = 0; done < target.length; ) {
        const at = position + done;
        const count = guarded(file, 'read', () => fs.readSync(descriptor, target, done, target.length - done, at));
        if (count === 0) {
          throw endsAt(at);
        }
        done += count;
      }
    },
    readLater: (position, target) =>
      new Promise((resolve, reject) => {
        const readFrom = (done: number): void => {
          const at = position + done;
          fs.read(descriptor, target, done, target.length - done, at, (error, count) => {
            if (error !== null) {
              reject(channelError(error, 'read', file));
            } else if (count === 0) {
              reject(endsAt(at));
            } else if (done + count < target.length) {
              readFrom(done + count);
            } else {
              resolve();
            }
          });
        };
        readFrom(0);
      }),
    sizeBytes: fstatSync(descriptor).size,
    isDevice: false,
    close: () => closeSync(descriptor),
  };
};
