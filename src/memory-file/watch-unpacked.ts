// Looks at data while they are unpacked. A few kilobytes can unpack to more than all disks hold: what is no memory file is
// refused by its first bytes, and what is one may become as long as the memory that it announces allows.

import { SnapshotIndexer } from '../format/open-snapshot.js';
import { RamferryError } from '../memory/errors.js';
import { shellCommand } from '../memory/shell-command.js';
import type { CopyStep } from './unnamed-copy-node.js';

/** Enough for the RAM blocks' list, which is at the beginning of a stream. */
const HEAD_BYTES = 1024 * 1024;

const GIB = 2 ** 30;

/** Of what does not say how much memory it holds, such as a disk image. */
const UNKNOWN_LIMIT_BYTES = 64 * GIB;

/** A guest that goes on writing while it is saved has its pages in the stream several times. */
const MOST_ROUNDS = 64;

/** Throws if what begins so is not wanted. */
export type UnpackedCheck = (head: Uint8Array) => void;

/** A step of the copy that hands on what it gets. */
export const watchUnpacked = (file: string, format: string, check: UnpackedCheck): CopyStep =>
  async function* (pieces) {
    let head: Uint8Array[] | undefined = [];
    let limitBytes = Number.POSITIVE_INFINITY;
    let bytes = 0;
    const look = (): void => {
      const first = Buffer.concat(head!);
      head = undefined;
      check(first);
      limitBytes = limitOf(first);
    };
    for await (const piece of pieces) {
      bytes += piece.length;
      if (bytes > limitBytes) {
        throw tooLong(file, format, limitBytes);
      }
      if (head === undefined) {
        yield piece;
        continue;
      }
      head.push(piece);
      if (bytes >= HEAD_BYTES) {
        const held = head;
        look();
        yield* held;
      }
    }
    if (head !== undefined) {
      const held: Uint8Array[] = head;
      look();
      yield* held;
    }
  };

const tooLong = (file: string, format: string, limitBytes: number): RamferryError =>
  new RamferryError(
    'invalid',
    'UNPACKED_SIZE',
    `The ${format} data in ${file} unpack to more than ${limitBytes} bytes, which no guest of its size needs.`,
    {
      file,
      value: limitBytes,
      hint: `If it is what you expect, unpack it yourself: ${shellCommand`${format} -dc ${file} > ${file}.mig`}`,
    },
  );

/** How long what begins with `head`, of at least what one step of the indexer reads, may become. */
const limitOf = (head: Uint8Array): number => {
  const indexer = new SnapshotIndexer((position, target) => {
    target.fill(0);
    target.set(head.subarray(position, position + target.length));
  }, Number.MAX_SAFE_INTEGER);
  try {
    indexer.advance();
  } catch {
    // Cut or damaged: whoever reads it says so.
  }
  const { setup } = indexer.soFar;
  return setup === undefined ? UNKNOWN_LIMIT_BYTES : GIB + MOST_ROUNDS * setup.totalBytes;
};
