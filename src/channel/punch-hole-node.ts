// Holes in files. Node has no call for them. Where the system's cannot be reached either, pages that a mapped-ram file no
// longer holds keep their place on the disk, masked by the bitmap, as QEMU leaves them.

import { type SystemFunction, systemFunction } from '../memory/system-library-node.js';

/** FALLOC_FL_PUNCH_HOLE, which is only allowed together with FALLOC_FL_KEEP_SIZE. */
const PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01;

let fallocate: SystemFunction | undefined;

/** Gives the blocks of a range back and returns true, if the file system can. Parts of blocks become zero bytes. */
export const punchHole = (descriptor: number, position: number, length: number): boolean => {
  fallocate ??= systemFunction('int fallocate(int fd, int mode, int64_t offset, int64_t length)') ?? (() => -1);
  return fallocate(descriptor, PUNCH_HOLE_KEEP_SIZE, position, length) === 0;
};
