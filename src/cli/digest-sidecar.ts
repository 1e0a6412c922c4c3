// FILE.digest: what the memory in FILE was when it was written, MiB by MiB, and the device state. QEMU loads a file with
// flipped bytes without a word; `verify` and `send` look here first.

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { channelError } from '../channel/channel-error.js';
import { OutputFile } from '../channel/output-file-node.js';
import { writeFully } from '../channel/write-fully-node.js';
import type { Snapshot } from '../format/index.js';
import { MappedRamSnapshot } from '../format/mapped-ram/snapshot.js';
import { DIGEST_CHUNK_BYTES, DIGEST_PAGE_BYTES, type DigestedBlock, RamDigest } from '../format/ram-digest.js';
import type { StreamConfiguration } from '../format/stream/configuration.js';
import type { DeviceTail } from '../format/stream/device-tail.js';
import { RamferryError } from '../memory/errors.js';
import { Segment } from '../memory/segment.js';
import { pageIndex } from '../memory/units.js';
import { inSlices, type MemoryFile, type Surroundings } from './read-memory-file.js';

const FORMAT = 'ramferry digest 2';

/** How every digest begins, whatever its version. */
const HEAD = '{"format":"ramferry digest ';

/** The sidecar's JSON. */
interface Sidecar {
  readonly format: typeof FORMAT;
  /** Which file it is of. By content, so that a copy keeps its digest, and not by time. */
  readonly of: FileIdentity;
  readonly blocks: readonly DigestedBlock[];
  /** SHA-256 of all device sections and their description. */
  readonly devices: string;
}

interface FileIdentity {
  readonly bytes: number;
  readonly head: string;
  /** Of a mapped-ram file: what stands in it, since such files of one guest agree in all the rest. */
  readonly fingerprint?: string;
}

export const NO_DIGEST_HELP = 'do not write OUT.digest, which verify and send check the file against';

/** Whether an output can have a sidecar: a device or a pipe cannot. */
export const hasSidecar = (out: string): boolean => fs.statSync(out).isFile();

export const sidecarPath = (file: string): string => `${file}.digest`;

/**
 * Refuses an output whose sidecar would replace a file that is no digest, before anything is written.
 * @throws RamferryError `FILE_EXISTS`
 */
export const refuseForeignSidecar = (out: string): void => {
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
  hasDigest ? [out, sidecarPath(out)] : [out];

const sha256 = (...parts: readonly (Uint8Array | string)[]): string => {
  const hash = createHash('sha256');
  for (const part of parts) {
    hash.update(part);
  }
  return hash.digest('hex');
};

/** What the head of a file says, in a form that does not depend on which bytes say it; the reader checks those. */
const headOf = (
  { machine, uuid }: Pick<StreamConfiguration, 'machine' | 'uuid'>,
  blocks: readonly { readonly name: string; readonly usedLength: number }[],
): string => {
  // In any order: which one a writer takes means nothing.
  const geometry = blocks.map(({ name, usedLength }) => `${name}\0${usedLength}`).sort();
  return sha256(JSON.stringify([machine, uuid ?? '', geometry]));
};

const devicesOf = ({ early, sections, description }: DeviceTail): string =>
  sha256(JSON.stringify([early.length, sections.length]), early, sections, description);

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
  { file, sizeBytes, libvirt }: MemoryFile,
  snapshot: Snapshot,
  surroundings: Surroundings,
): Promise<DigestCheck | undefined> => {
  const path = sidecarPath(file);
  if (libvirt !== undefined || !fs.existsSync(path)) {
    return undefined;
  }
  const sidecar = readSidecar(path);
  const { configuration, setup, summary } = snapshot;
  const isOfIt =
    sidecar?.of.bytes === sizeBytes &&
    sidecar.of.head === headOf(configuration, setup.blocks) &&
    sidecar.of.fingerprint === (snapshot instanceof MappedRamSnapshot ? snapshot.fingerprint : undefined);
  if (sidecar === undefined || !isOfIt) {
    const notChecked = `${path} ${sidecar === undefined ? 'is no digest' : 'is of another file'}: the content was not checked.`;
    return { file: path, notChecked, mismatches: [], mismatchCount: 0 };
  }
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
    const saved = savedBlocks.get(name) ?? {};
    for (const key of Object.keys({ ...saved, ...mebibytes })) {
      const mebibyte = Number(key);
      if (mebibytes[mebibyte] !== saved[mebibyte]) {
        const pagesOffset = setup.blocks[index]!.mapped?.pagesOffset;
        differs(() => memoryDiffers(file, path, name, mebibyte, pagesOffset));
      }
    }
  });
  if (devicesOf(summary.tail) !== sidecar.devices) {
    differs(() => devicesDiffer(file, path, summary.devices[0]?.offset));
  }
  return { file: path, mismatches, mismatchCount };
};

/** Undefined if it is none of ours. It is small, but nobody says so: a larger one than any guest needs is not read. */
const readSidecar = (path: string): Sidecar | undefined => {
  try {
    if (fs.statSync(path).size > SIDECAR_LIMIT_BYTES) {
      return undefined;
    }
    const sidecar = JSON.parse(fs.readFileSync(path, 'utf8')) as Partial<Sidecar> | null;
    const isObject = (value: unknown): boolean => typeof value === 'object' && value !== null;
    const isOurs =
      isObject(sidecar) &&
      sidecar!.format === FORMAT &&
      isObject(sidecar!.of) &&
      Array.isArray(sidecar!.blocks) &&
      sidecar!.blocks.every((block) => isObject(block) && isObject(block.mebibytes));
    return isOurs ? (sidecar as Sidecar) : undefined;
  } catch (error) {
    if (error instanceof SyntaxError) {
      return undefined;
    }
    throw channelError(error, 'read', path);
  }
};

/** 19 bytes for each MiB of guest memory: enough for 10 TiB. */
const SIDECAR_LIMIT_BYTES = 200e6;

const REPLACED = 'The file was damaged, or another one of the same guest was written over it without its digest.';

const memoryDiffers = (
  file: string,
  sidecar: string,
  block: string,
  mebibyte: number,
  pagesOffset: number | undefined,
): RamferryError => {
  const start = mebibyte * DIGEST_CHUNK_BYTES;
  const place = pagesOffset === undefined ? '' : `, at byte ${pagesOffset + start} of the file`;
  return new RamferryError(
    'failed',
    'DIGEST_MISMATCH',
    `MiB ${mebibyte} of RAM block "${block}" (from offset 0x${start.toString(16)} in it${place}) is not what ${sidecar} says.`,
    {
      file,
      value: block,
      hint: REPLACED,
      ...(pagesOffset !== undefined && { offset: pagesOffset + start }),
    },
  );
};

const devicesDiffer = (file: string, sidecar: string, offset: number | undefined): RamferryError =>
  new RamferryError(
    'failed',
    'DIGEST_MISMATCH',
    `The device state${offset === undefined ? '' : ` (from byte ${offset} of the file on)`} is not what ${sidecar} says.`,
    { file, hint: REPLACED, ...(offset !== undefined && { offset }) },
  );

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
