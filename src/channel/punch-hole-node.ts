// Holes in files. Node has no call for them; the optional dependency koffi reaches the system's. Without it, pages that a
// mapped-ram file no longer holds keep their place on the disk, masked by the bitmap, as QEMU leaves them.

import { createRequire } from 'node:module';
import process from 'node:process';

/** Gives the blocks of a range back, if the file system can. */
type PunchHole = (descriptor: number, position: number, length: number) => void;

/** FALLOC_FL_PUNCH_HOLE, which is only allowed together with FALLOC_FL_KEEP_SIZE. */
const PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01;

/** What is used of koffi. Not its own types: it may be missing where this is compiled. */
interface Koffi {
  load(library: null): { func(declaration: string): (...values: number[]) => number };
}

const load = (): PunchHole => {
  if (process.platform === 'linux') {
    try {
      const koffi = createRequire(import.meta.url)('koffi') as Koffi;
      const fallocate = koffi.load(null).func('int fallocate(int fd, int mode, int64_t offset, int64_t length)');
      return (descriptor, position, length) => void fallocate(descriptor, PUNCH_HOLE_KEEP_SIZE, position, length);
    } catch {
      // It is not installed, or not for this system.
    }
  }
  return () => {};
};

let loaded: PunchHole | undefined;

/** The first call loads koffi. */
export const punchHole: PunchHole = (descriptor, position, length) => {
  loaded ??= load();
  loaded(descriptor, position, length);
};
