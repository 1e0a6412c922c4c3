// Guest memory in order, zeros included: for what is no file that reads as zero where nothing was written.

import type { Snapshot } from '../format/snapshot.js';
import { pageIndex } from '../memory/units.js';

/** Bytes at a time; with pages of up to 64 KiB, whole pages. */
const PIECE_BYTES = 1024 * 1024;

export interface DenseCopyOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (doneBytes: number) => void;
}

/** Whole pages [offset, offset + bytes) of a block. */
export interface DenseCopy {
  /** Position in `setup.blocks`. */
  readonly block: number;
  readonly offset: number;
  readonly bytes: number;
}

/** Gives memory to `write`, piece by piece; the piece is used again when `write` has resolved. */
export const copyDensely = async (
  snapshot: Snapshot,
  { block, offset, bytes }: DenseCopy,
  write: (bytes: Uint8Array) => Promise<void>,
  { signal, onProgress }: DenseCopyOptions = {},
): Promise<void> => {
  const { targetPageSize: pageSize } = snapshot.setup;
  const buffer = new Uint8Array(Math.min(PIECE_BYTES, bytes));
  for (let at = 0; at < bytes; at += buffer.length) {
    const piece = buffer.subarray(0, Math.min(buffer.length, bytes - at));
    snapshot.readPages(block, pageIndex((offset + at) / pageSize), piece.length / pageSize, piece);
    await write(piece);
    signal?.throwIfAborted();
    onProgress?.(at + piece.length);
  }
};
