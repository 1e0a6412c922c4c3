// A file that is written from an offset on keeps what is before it (`file:PATH,offset=N`).

import fs from 'node:fs';
import { writeFully } from './write-fully-node.js';

const COPY_BYTES = 1024 * 1024;

/** Copies what the file at `path` holds before `start`, and zeros where it is shorter. */
export const copyHead = (path: string, target: number, start: number): void => {
  fs.ftruncateSync(target, start);
  if (!fs.existsSync(path)) {
    return;
  }
  const source = fs.openSync(path, 'r');
  try {
    const buffer = new Uint8Array(Math.min(COPY_BYTES, start));
    for (let at = 0; at < start; ) {
      const count = fs.readSync(source, buffer, 0, Math.min(buffer.length, start - at), at);
      if (count === 0) {
        break;
      }
      writeFully(target, buffer, 0, count, at);
      at += count;
    }
  } finally {
    fs.closeSync(source);
  }
};
