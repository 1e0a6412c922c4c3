// FILE.digest: what the memory in FILE was when it was written, MiB by MiB, and the device state. QEMU loads a file with
// flipped bytes without a word; `verify`, `send`, `serve` and `clone` look here (guest/digest-sidecar-node.ts reads it).

import fs from 'node:fs';
import { channelError } from '../channel/channel-error.js';
import { OutputFile } from '../channel/output-file-node.js';
import { writeFully } from '../channel/write-fully-node.js';
import type { Snapshot } from '../format/index.js';
import { DIGEST_CHUNK_BYTES, DIGEST_PAGE_BYTES, RamDigest } from '../format/ram-digest.js';
import type { StreamConfiguration } from '../format/stream/configuration.js';
import type { DeviceTail } from '../format/stream/device-tail.js';
import {
  devicesDiffer,
  devicesOf,
  FORMAT,
  findSidecar,
  headOf,
  memoryDiffers,
  type Sidecar,
  sidecarPath,
} from '../guest/digest-sidecar-node.js';
import { SavedMebibytes } from '../guest/saved-mebibytes.js';
import { RamferryError } from '../memory/errors.js';
import { Segment } from '../memory/segment.js';
import { pageIndex } from '../memory/units.js';
import { inSlices, type MemoryFile, type Surroundings } from './read-memory-file.js';
import { isStdout, STDOUT } from './stdout-output.js';

/** How every digest begins, whatever its version. */
const HEAD = '{"format":"ramferry digest ';

export const NO_DIGEST_HELP = 'do not write OUT.digest, which verify and send check the file against';

/** Whether an output can have a sidecar: a device or a pipe cannot. */
export const hasSidecar = (out: string): boolean => !isStdout(out) && fs.statSync(out).isFile();

/**
 * Refuses an output whose sidecar would replace a file that is no digest, before anything is written.
 * @throws RamferryError `FILE_EXISTS`
 */
export const refuseForeignSidecar = (out: string): void => {
  if (isStdout(out)) {
    return;
  }
  const path = sidecarPath(out);
  const stat = fs.statSync(path, { throwIfNoEntry: false });
  if (stat === undefined || (stat.isFile() && (stat.size === 0 || headOfFile(path) === HEAD))) {
    return;
  }
  throw new RamferryError('usage', 'FILE_EXISTS', `${path} is there already, and is no digest that may be replaced.`, {
    file: path,
    hint: 'name another output, or write it with --no-digest',
  });
};

const headOfFile = (path: string): string => {
  try {
    const descriptor = fs.openSync(path, 'r');
    try {
      const head = Buffer.alloc(HEAD.length);
      return head.toString('latin1', 0, fs.readSync(descriptor, head));
    } finally {
      fs.closeSync(descriptor);
    }
  } catch (error) {
    throw channelError(error, 'read', path);
  }
};

/** What a run writes that makes `out`, for `FilesOfRun`. */
export const outputsWithSidecar = (out: string, hasDigest: boolean): string[] =>
  isStdout(out) ? [STDOUT] : hasDigest ? [out, sidecarPath(out)] : [out];

/** What a file is: all that goes into its sidecar but the memory. */
export interface DigestedFile {
  readonly configuration: Pick<StreamConfiguration, 'machine' | 'uuid'>;
  readonly tail: DeviceTail;
  /** Of a mapped-ram file that carries one. */
  readonly fingerprint?: string | undefined;
}

/** Writes the sidecar of a complete file; resolves with its path. */
export const writeSidecar = async (
  file: string,
  { configuration, tail, fingerprint }: DigestedFile,
  digest: RamDigest,
): Promise<string> => {
  const blocks = digest.blocks();
  const sidecar: Sidecar = {
    format: FORMAT,
    of: {
      bytes: fs.statSync(file).size,
      head: headOf(configuration, blocks),
      ...(fingerprint !== undefined && { fingerprint }),
    },
    blocks,
    devices: devicesOf(tail),
  };
  const path = sidecarPath(file);
  let output: OutputFile | undefined;
  try {
    output = OutputFile.open(path);
    const text = Buffer.from(`${JSON.stringify(sidecar)}\n`);
    writeFully(output.descriptor, text, 0, text.length, 0);
    await output.commit();
    return path;
  } catch (error) {
    const { message } = channelError(error, 'write', path);
    throw new RamferryError('failed', 'DIGEST_NOT_WRITTEN', `${file} is complete, but its digest is not: ${message}`, {
      file: path,
      hint: 'use the file without it, or --no-digest',
      cause: error,
    });
  } finally {
    output?.abort();
  }
};

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

/** Compares a whole file with its sidecar; resolves with undefined if it has none. Reads all of its memory. */
export const checkSidecar = async (
  { file, sizeBytes, wrappings }: MemoryFile,
  snapshot: Snapshot,
  surroundings: Surroundings,
): Promise<DigestCheck | undefined> => {
  const found = findSidecar({ file, fileBytes: sizeBytes, wrappings }, snapshot);
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
  const current = (await digestOf(snapshot, surroundings)).blocks();
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
export const digestOf = async (snapshot: Snapshot, surroundings: Surroundings): Promise<RamDigest> => {
  const { blocks, targetPageSize, totalBytes } = snapshot.setup;
  const digest = new RamDigest(blocks);
  const segment = Segment.create({ ramBytes: DIGEST_CHUNK_BYTES });
  let block = 0;
  let offset = 0;
  await inSlices(surroundings, 'checking the digest', totalBytes, () => {
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
