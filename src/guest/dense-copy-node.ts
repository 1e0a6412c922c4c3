// A block's memory in order, zeros included: for what is no file that reads as zero where nothing was written.

import type { Snapshot } from '../format/snapshot.js';
import { pageIndex } from '../memory/units.js';

/** Bytes at a time; with pages of up to 64 KiB, whole pages. */
const PIECE_BYTES = 1024 * 1024;

export interface DenseCopyOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (doneBytes: number) => void;
}

/** Gives all of a block to `write`, piece by piece; the piece is used again when `write` has resolved. */
export const copyDensely = async (
  snapshot: Snapshot,
  block: number,
  write: (bytes: Uint8Array) => Promise<void>,
  { signal, onProgress }: DenseCopyOptions = {},
): Promise<void> => {
  const { blocks, targetPageSize: pageSize } = snapshot.setup;
  const { usedLength } = blocks[block]!;
  const buffer = new Uint8Array(Math.min(PIECE_BYTES, usedLength));
  for (let at = 0; at < usedLength; at += buffer.length) {
    const piece = buffer.subarray(0, Math.min(buffer.length, usedLength - at));
    snapshot.readPages(block, pageIndex(at / pageSize), piece.length / pageSize, piece);
    await write(piece);
    signal?.throwIfAborted();
    onProgress?.(at + piece.length);
  }
};
