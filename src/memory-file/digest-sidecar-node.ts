// FILE.digest as it is read: what the memory in FILE was when it was written, MiB by MiB, and the device state.

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { channelError } from '../channel/channel-error.js';
import { MappedRamSnapshot } from '../format/mapped-ram/snapshot.js';
import { parseJson } from '../format/parse-json.js';
import { DIGEST_CHUNK_BYTES, type DigestedBlock } from '../format/ram-digest.js';
import type { Snapshot } from '../format/snapshot.js';
import type { StreamConfiguration } from '../format/stream/configuration.js';
import type { DeviceTail } from '../format/stream/device-tail.js';
import { RamferryError } from '../memory/errors.js';
import { SavedMebibytes } from './saved-mebibytes.js';

export const FORMAT = 'ramferry digest 2';

/** The sidecar's JSON. */
export interface Sidecar {
  readonly format: typeof FORMAT;
  /** Which file it is of. By content, so that a copy keeps its digest, and not by time. */
  readonly of: FileIdentity;
  readonly blocks: readonly DigestedBlock[];
  /** SHA-256 of all device sections and their description. */
  readonly devices: string;
}

/** The same as it is read: there may be millions of MiBs in it. */
export interface SavedSidecar extends Omit<Sidecar, 'blocks'> {
  readonly blocks: readonly { readonly name: string; readonly mebibytes: SavedMebibytes }[];
}

interface FileIdentity {
  readonly bytes: number;
  readonly head: string;
  /** Of a mapped-ram file: what stands in it, since such files of one guest agree in all the rest. */
  readonly fingerprint?: string;
}

export const sidecarPath = (file: string): string => `${file}.digest`;

const sha256 = (...parts: readonly (Uint8Array | string)[]): string => {
  const hash = createHash('sha256');
  for (const part of parts) {
    hash.update(part);
  }
  return hash.digest('hex');
};

/** What the head of a file says, in a form that does not depend on which bytes say it; the reader checks those. */
export const headOf = (
  { machine, uuid }: Pick<StreamConfiguration, 'machine' | 'uuid'>,
  blocks: readonly { readonly name: string; readonly usedLength: number }[],
): string => {
  // In any order: which one a writer takes means nothing.
  const geometry = blocks.map(({ name, usedLength }) => `${name}\0${usedLength}`).sort();
  return sha256(JSON.stringify([machine, uuid ?? '', geometry]));
};

export const devicesOf = ({ early, iterable, sections, description }: DeviceTail): string =>
  iterable === undefined
    ? sha256(JSON.stringify([early.length, sections.length]), early, sections, description)
    : sha256(JSON.stringify([early.length, iterable.length, sections.length]), early, iterable, sections, description);

/** A file that may have a sidecar. */
export interface SidecarOwner {
  /** Path. */
  readonly file: string;
  readonly fileBytes: number;
  /** What is around its stream: a digest is of QEMU's own files alone. */
  readonly wrappings: readonly unknown[];
}

/** What was found beside a file: its digest, or a sentence that says why what is there cannot be compared with it. */
export type FoundSidecar =
  | { readonly path: string; readonly sidecar: SavedSidecar; readonly notChecked?: undefined }
  | { readonly path: string; readonly sidecar?: undefined; readonly notChecked: string };

/** The sidecar of an opened file; undefined if it has none. */
export const findSidecar = (
  { file, fileBytes, wrappings }: SidecarOwner,
  snapshot: Snapshot,
): FoundSidecar | undefined => {
  const path = sidecarPath(file);
  if (wrappings.length > 0 || !fs.existsSync(path)) {
    return undefined;
  }
  const sidecar = readSidecar(path);
  const { configuration, setup } = snapshot;
  const isOfIt =
    sidecar?.of.bytes === fileBytes &&
    sidecar.of.head === headOf(configuration, setup.blocks) &&
    sidecar.of.fingerprint === (snapshot instanceof MappedRamSnapshot ? snapshot.fingerprint : undefined);
  if (sidecar === undefined || !isOfIt) {
    const what = sidecar === undefined ? 'is no digest' : 'is of another file';
    return { path, notChecked: `${path} ${what}: the content was not checked.` };
  }
  return { path, sidecar };
};

/**
 * Undefined if it is none of ours. It is small, but nobody says so: a larger one than any guest needs is not read. Nor is what
 * is no file: a named pipe would keep this thread, and the whole process, for ever.
 */
const readSidecar = (path: string): SavedSidecar | undefined => {
  try {
    const stat = fs.statSync(path);
    return !stat.isFile() || stat.size > SIDECAR_LIMIT_BYTES ? undefined : parseSidecar(fs.readFileSync(path));
  } catch (error) {
    if (error instanceof SyntaxError) {
      return undefined;
    }
    throw channelError(error, 'read', path);
  }
};

const MEBIBYTES = '"mebibytes":{';

/**
 * The MiBs are taken out of the text, and only what is left of it is read as JSON: of 50 MB of MiBs that makes 1.2 GB.
 * Throws SyntaxError where it is no JSON.
 */
const parseSidecar = (bytes: Buffer): SavedSidecar | undefined => {
  const lists: SavedMebibytes[] = [];
  const rest: Buffer[] = [];
  let at = 0;
  // In no string is there one, where quotes have backslashes.
  for (let found = bytes.indexOf(MEBIBYTES); found >= 0; found = bytes.indexOf(MEBIBYTES, at)) {
    const start = found + MEBIBYTES.length;
    const end = bytes.indexOf('}', start);
    const list = end < 0 ? undefined : SavedMebibytes.parse(bytes, start, end);
    if (list === undefined || lists.length === RAM_BLOCKS_MAX) {
      return undefined;
    }
    rest.push(bytes.subarray(at, start - 1), Buffer.from(`${lists.length}`));
    lists.push(list);
    at = end + 1;
  }
  rest.push(bytes.subarray(at));
  const length = rest.reduce((sum, piece) => sum + piece.length, 0);
  if (length > REST_LIMIT_BYTES) {
    return undefined;
  }
  const sidecar = parseJson(Buffer.concat(rest).toString('utf8')) as Partial<Sidecar> | null;
  const isObject = (value: unknown): boolean => typeof value === 'object' && value !== null;
  const isOurs =
    isObject(sidecar) &&
    sidecar!.format === FORMAT &&
    isObject(sidecar!.of) &&
    Array.isArray(sidecar!.blocks) &&
    sidecar!.blocks.every((block) => isObject(block) && lists[Number(block.mebibytes)] !== undefined);
  if (!isOurs) {
    return undefined;
  }
  const { format, of, blocks, devices } = sidecar as Sidecar;
  return {
    format,
    of,
    devices,
    blocks: blocks.map(({ name, mebibytes }) => ({ name, mebibytes: lists[Number(mebibytes)]! })),
  };
};

/** 19 bytes for each MiB of guest memory: enough for 10 TiB. */
const SIDECAR_LIMIT_BYTES = 200e6;

/** As many as a stream may have, and what is said of each besides its MiBs. */
const RAM_BLOCKS_MAX = 4096;
const REST_LIMIT_BYTES = 4 * 2 ** 20;

const REPLACED = 'The file was damaged, or another one of the same guest was written over it without its digest.';

export const memoryDiffers = (
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

export const devicesDiffer = (file: string, sidecar: string, offset: number | undefined): RamferryError =>
  new RamferryError(
    'failed',
    'DIGEST_MISMATCH',
    `The device state${offset === undefined ? '' : ` (from byte ${offset} of the file on)`} is not what ${sidecar} says.`,
    { file, hint: REPLACED, ...(offset !== undefined && { offset }) },
  );
