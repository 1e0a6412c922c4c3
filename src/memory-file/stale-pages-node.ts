// Stale bytes of a mapped-ram file: QEMU writes a page, the guest zeroes it, QEMU clears the page's bit and leaves the
// bytes where they are (spec/qemu-wire-format.md 3.5). Who reads through the bitmap never sees them. Who maps the file
// does: a page whose bit is clear must read as zero there.
//
// Giving such a page's blocks back changes nothing that the file says. Each page is on its own, so this may be
// interrupted anywhere; and readers of the file never look there. Only a writer must not come between: for a page that
// it has just stored we would still have the old bitmap.

import fs from 'node:fs';
import { channelError } from '../channel/channel-error.js';
import { punchHole } from '../channel/punch-hole-node.js';
import type { MappedRamSnapshot } from '../format/mapped-ram/snapshot.js';
import { type SystemFunction, systemFunction } from '../memory/system-library-node.js';
import { pageIndex } from '../memory/units.js';
import { fileIdentity, isSoleUser } from './file-guard-node.js';
import type { Slices } from './slices-node.js';

const READ_BYTES = 1024 * 1024;

const SEEK_DATA = 3;

/** A range of the file, in whole pages. */
export interface FileRange {
  readonly offset: number;
  readonly bytes: number;
}

let lseek: SystemFunction | undefined;

/** Where the file's next data is, at or after `position`: everything counts as data where that cannot be asked. */
const nextData = (descriptor: number, position: number): number => {
  lseek ??=
    systemFunction('int64_t lseek(int descriptor, int64_t offset, int whence)') ?? ((_, offset) => Number(offset));
  const at = lseek(descriptor, position, SEEK_DATA);
  // Behind the last data there is an error, ENXIO.
  return at < 0 ? Number.POSITIVE_INFINITY : at;
};

/** Finds the pages of these blocks whose bit is clear but whose bytes are not zero; adjoining ones are one range. */
export const findStalePages = async (
  descriptor: number,
  snapshot: MappedRamSnapshot,
  blocks: readonly number[],
  inSlices: Slices,
): Promise<FileRange[]> => {
  const { targetPageSize: pageSize } = snapshot.setup;
  const buffer = Buffer.alloc(READ_BYTES);
  const zeroPage = Buffer.alloc(pageSize);
  const found: { offset: number; bytes: number }[] = [];
  const look = (offset: number, bytes: number): void => {
    for (let at = 0; at < bytes; at += pageSize) {
      if (buffer.compare(zeroPage, 0, pageSize, at, at + pageSize) !== 0) {
        const last = found.at(-1);
        if (last !== undefined && last.offset + last.bytes === offset + at) {
          last.bytes += pageSize;
        } else {
          found.push({ offset: offset + at, bytes: pageSize });
        }
      }
    }
  };
  for (const block of blocks) {
    const { usedLength, mapped } = snapshot.setup.blocks[block]!;
    const { pagesOffset } = mapped!;
    let position: number = pagesOffset;
    await inSlices('looking for stale pages', usedLength, () => {
      const from = position;
      const run = snapshot.absentRun(block, pageIndex((position - pagesOffset) / pageSize));
      if (run === undefined) {
        position = pagesOffset + usedLength;
        return position - from;
      }
      const end = run.offset + run.pageCount * pageSize;
      const data = Math.min(end, nextData(descriptor, run.offset));
      const start = data - (data % pageSize);
      const bytes = Math.min(READ_BYTES, end - start);
      if (bytes > 0 && fs.readSync(descriptor, buffer, 0, bytes, start) !== bytes) {
        throw channelError({ code: 'EIO' }, 'read', 'the file');
      }
      look(start, bytes);
      position = start + bytes;
      return position - from;
    });
  }
  return found;
};

/**
 * Makes the ranges read as zero, by holes. Returns false, and has done nothing that matters, where that is not possible:
 * the file may not be written, somebody else has it open, or its file system has no holes.
 * @param identity of the file when its bitmaps were read
 */
export const punchStalePages = (file: string, identity: string, ranges: readonly FileRange[]): boolean => {
  let descriptor: number;
  try {
    // To open it for writing ends the guests that others run from it, even if nothing is written.
    const reading = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
    const isOurs = isSoleUser(reading);
    fs.closeSync(reading);
    if (!isOurs) {
      return false;
    }
    // Not to wait where somebody guards it.
    descriptor = fs.openSync(file, fs.constants.O_RDWR | fs.constants.O_NONBLOCK);
  } catch {
    return false;
  }
  try {
    return (
      isSoleUser(descriptor) &&
      fileIdentity(descriptor) === identity &&
      ranges.every(({ offset, bytes }) => punchHole(descriptor, offset, bytes))
    );
  } finally {
    fs.closeSync(descriptor);
  }
};
