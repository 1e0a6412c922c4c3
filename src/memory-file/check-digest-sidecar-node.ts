// A file compared with its FILE.digest.

import { DIGEST_CHUNK_BYTES, DIGEST_PAGE_BYTES, RamDigest } from '../format/ram-digest.js';
import type { Snapshot } from '../format/snapshot.js';
import type { RamferryError } from '../memory/errors.js';
import { Segment } from '../memory/segment.js';
import { pageIndex } from '../memory/units.js';
import { devicesDiffer, devicesOf, findSidecar, memoryDiffers, type SidecarOwner } from './digest-sidecar-node.js';
import { SavedMebibytes } from './saved-mebibytes.js';
import type { Slices } from './slices-node.js';

/** What comparing a file with its sidecar showed. */
export interface DigestCheck {
  /** The sidecar's path. */
  readonly file: string;
  /** Set if it could not be compared: it is of another file, or no sidecar at all. */
  readonly notChecked?: string;
  /** The first 100, in the order of the file. */
  readonly mismatches: readonly RamferryError[];
  readonly mismatchCount: number;
}

const MOST_MISMATCHES = 100;

/** Compares a whole file with its sidecar; resolves with undefined if it has none. Reads all of its memory. @param slices how the work is cut (`inTurns`) */
export const checkSidecar = async (
  owner: SidecarOwner,
  snapshot: Snapshot,
  slices: Slices,
): Promise<DigestCheck | undefined> => {
  const { file } = owner;
  const found = findSidecar(owner, snapshot);
  if (found === undefined) {
    return undefined;
  }
  const { path, sidecar, notChecked } = found;
  if (notChecked !== undefined) {
    return { file: path, notChecked, mismatches: [], mismatchCount: 0 };
  }
  const { setup, summary } = snapshot;
  const mismatches: RamferryError[] = [];
  let mismatchCount = 0;
  const differs = (make: () => RamferryError): void => {
    mismatchCount += 1;
    if (mismatchCount <= MOST_MISMATCHES) {
      mismatches.push(make());
    }
  };
  const savedBlocks = new Map(sidecar.blocks.map((block) => [block.name, block.mebibytes]));
  const current = (await digestOf(snapshot, slices)).blocks();
  current.forEach(({ name, mebibytes }, index) => {
    if (snapshot.elsewhere.has(index)) {
      return;
    }
    const saved = savedBlocks.get(name) ?? SavedMebibytes.none;
    const pagesOffset = setup.blocks[index]!.mapped?.pagesOffset;
    const compare = (mebibyte: number): void => {
      if (mebibytes[mebibyte] !== saved.get(mebibyte)) {
        differs(() => memoryDiffers(file, path, name, mebibyte, pagesOffset));
      }
    };
    // Both ascend: each MiB of either once, in order.
    let next = 0;
    for (const key of Object.keys(mebibytes)) {
      for (; saved.numbers[next]! < Number(key); next += 1) {
        compare(saved.numbers[next]!);
      }
      next += saved.numbers[next] === Number(key) ? 1 : 0;
      compare(Number(key));
    }
    saved.numbers.subarray(next).forEach(compare);
  });
  if (devicesOf(summary.tail) !== sidecar.devices) {
    differs(() => devicesDiffer(file, path, summary.devices[0]?.offset));
  }
  return { file: path, mismatches, mismatchCount };
};

/** Digest of an opened file's memory. */
export const digestOf = async (snapshot: Snapshot, slices: Slices): Promise<RamDigest> => {
  const { blocks, targetPageSize, totalBytes } = snapshot.setup;
  const digest = new RamDigest(blocks);
  const segment = Segment.create({ ramBytes: DIGEST_CHUNK_BYTES });
  let block = 0;
  let offset = 0;
  await slices('checking the digest', totalBytes, () => {
    const { usedLength } = blocks[block]!;
    const from = offset;
    // What is not there stays zero. Pages smaller than those of the digest are read together.
    const present = snapshot.nextPresent(block, pageIndex(from / targetPageSize)) * targetPageSize;
    offset = present < usedLength ? Math.floor(present / DIGEST_PAGE_BYTES) * DIGEST_PAGE_BYTES : usedLength;
    if (offset < usedLength) {
      const bytes = segment.bytes.subarray(0, Math.min(DIGEST_CHUNK_BYTES, usedLength - offset));
      snapshot.readPages(block, pageIndex(offset / targetPageSize), bytes.length / targetPageSize, bytes);
      digest.setInSegment(block, offset, segment, 0, bytes.length);
      offset += bytes.length;
    }
    const done = offset - from;
    if (offset === usedLength) {
      block += 1;
      offset = 0;
    }
    return done;
  });
  return digest;
};
