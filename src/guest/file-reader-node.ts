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
  close(): void;
}

const guarded = <Result>(file: string, activity: string, call: () => Result): Result => {
  try {
    return call();
  } catch (error) {
    throw channelError(error, activity, file);
  }
};

/** @throws RamferryError `failed` if it cannot be opened, `usage` if it is not a regular file */
export const openFileReader = (file: string): FileReader => {
  const descriptor = guarded(file, 'open', () => openSync(file, 'r'));
  if (!fstatSync(descriptor).isFile()) {
    closeSync(descriptor);
    throw new RamferryError('usage', 'NOT_A_FILE', `${file} is not a regular file.`, {
      file,
      hint: 'Memory files are read by position, which pipes and devices do not allow: make a copy.',
    });
  }
  return readerOf(descriptor, file);
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
    close: () => closeSync(descriptor),
  };
};
