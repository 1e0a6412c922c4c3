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

/** A block's memory, and where it goes. */
export interface BlockCopy {
  /** Position in `setup.blocks`. */
  readonly block: number;
  readonly descriptor: number;
  /** Its name in errors. */
  readonly file: string;
  /** File offset of the block's first byte. */
  readonly position: number;
}

/** Writes all blocks, each up to its used length; resolves with how many bytes were not zero. */
export const copySparsely = async (
  snapshot: Snapshot,
  copies: readonly BlockCopy[],
  inSlices: Slices,
): Promise<number> => {
  refuseElsewhere(
    snapshot,
    copies.map(({ block }) => block),
  );
  const { blocks, targetPageSize: pageSize } = snapshot.setup;
  const buffer = Buffer.alloc(READ_BYTES);
  const zeroPage = Buffer.alloc(pageSize);
  const totalBytes = copies.reduce((sum, { block }) => sum + blocks[block]!.usedLength, 0);
  let written = 0;

  /** Writes the runs of pages that are not zero. */
  const writeRuns = (bytes: Buffer, { descriptor, file }: BlockCopy, position: number): void => {
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
  let page = 0;
  await inSlices('writing', totalBytes, () => {
    const copy = copies[index]!;
    const { usedLength } = blocks[copy.block]!;
    const pageCount = usedLength / pageSize;
    const from = page;
    page = snapshot.nextPresent(copy.block, pageIndex(from));
    if (page < pageCount) {
      const pages = Math.min(READ_BYTES / pageSize, pageCount - page);
      const piece = buffer.subarray(0, pages * pageSize);
      snapshot.readPages(copy.block, pageIndex(page), pages, piece);
      writeRuns(piece, copy, copy.position + page * pageSize);
      page += pages;
    }
    const bytes = (page - from) * pageSize;
    if (page === pageCount) {
      // Also where the last page is a hole.
      guarded(copy.file, () => {
        const end = copy.position + usedLength;
        if (fs.fstatSync(copy.descriptor).size < end) {
          fs.ftruncateSync(copy.descriptor, end);
        }
      });
      index += 1;
      page = 0;
    }
    return bytes;
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
