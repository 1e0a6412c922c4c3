// Guest memory written to files by position. Zero pages are not written: the files are sparse, and take the space of what
// is in them.

import fs from 'node:fs';
import { channelError } from '../channel/channel-error.js';
import { writeFully } from '../channel/write-fully-node.js';
import { refuseElsewhere } from '../format/elsewhere.js';
import type { Snapshot } from '../format/snapshot.js';
import { pageIndex } from '../memory/units.js';
import type { Slices } from './slices-node.js';

/** Bytes read at a time; with pages of up to 64 KiB, whole pages. */
const READ_BYTES = 1024 * 1024;

/** Whole pages [offset, offset + bytes) of a block, and where they go. */
export interface SparseCopy {
  /** Position in `setup.blocks`. */
  readonly block: number;
  readonly offset: number;
  readonly bytes: number;
  readonly descriptor: number;
  /** Its name in errors. */
  readonly file: string;
  /** File offset of the first byte. */
  readonly position: number;
}

/** Writes all copies, each to its end; resolves with how many bytes were not zero. */
export const copySparsely = async (
  snapshot: Snapshot,
  copies: readonly SparseCopy[],
  inSlices: Slices,
): Promise<number> => {
  refuseElsewhere(
    snapshot,
    copies.map(({ block }) => block),
  );
  const { targetPageSize: pageSize } = snapshot.setup;
  const buffer = Buffer.alloc(READ_BYTES);
  const zeroPage = Buffer.alloc(pageSize);
  const totalBytes = copies.reduce((sum, { bytes }) => sum + bytes, 0);
  let written = 0;

  /** Writes the runs of pages that are not zero. */
  const writeRuns = (bytes: Buffer, { descriptor, file }: SparseCopy, position: number): void => {
    const isZero = (at: number): boolean => bytes.compare(zeroPage, 0, pageSize, at, at + pageSize) === 0;
    for (let at = 0; at < bytes.length; ) {
      const start = at;
      while (at < bytes.length && !isZero(at)) {
        at += pageSize;
      }
      if (at > start) {
        guarded(file, () => writeFully(descriptor, bytes, start, at - start, position + start));
        written += at - start;
      }
      while (at < bytes.length && isZero(at)) {
        at += pageSize;
      }
    }
  };

  let index = 0;
  let done = 0;
  await inSlices('writing', totalBytes, () => {
    const copy = copies[index]!;
    const from = copy.offset / pageSize;
    const end = from + copy.bytes / pageSize;
    const before = done;
    const page = snapshot.nextPresent(copy.block, pageIndex(from + done / pageSize), pageIndex(end));
    done = (page - from) * pageSize;
    if (page < end) {
      const pages = Math.min(READ_BYTES / pageSize, end - page);
      const piece = buffer.subarray(0, pages * pageSize);
      snapshot.readPages(copy.block, page, pages, piece);
      writeRuns(piece, copy, copy.position + done);
      done += piece.length;
    }
    const stepBytes = done - before;
    if (done === copy.bytes) {
      // Also where the last page is a hole.
      guarded(copy.file, () => {
        const fileEnd = copy.position + copy.bytes;
        if (fs.fstatSync(copy.descriptor).size < fileEnd) {
          fs.ftruncateSync(copy.descriptor, fileEnd);
        }
      });
      index += 1;
      done = 0;
    }
    return stepBytes;
  });
  return written;
};

const guarded = (file: string, call: () => void): void => {
  try {
    call();
  } catch (error) {
    throw channelError(error, 'write', file);
  }
};
