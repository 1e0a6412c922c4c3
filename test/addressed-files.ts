// Guest memory in files that have guest-physical addresses, read as their readers do: by code that shares nothing with what wrote them.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import { inflateSync } from 'node:zlib';

/** Bytes at a guest-physical address; undefined if the file has none there. */
export type ReadAddress = (address: number, length: number) => Buffer | undefined;

const readFile = (file: string, position: number, length: number): Buffer => {
  const bytes = Buffer.alloc(length);
  const descriptor = fs.openSync(file, 'r');
  try {
    assert.equal(
      fs.readSync(descriptor, bytes, 0, length, position),
      length,
      `${file} ends before ${position + length}`,
    );
  } finally {
    fs.closeSync(descriptor);
  }
  return bytes;
};

const u64 = (bytes: Buffer, at: number): number => Number(bytes.readBigUInt64LE(at));

/** Bytes of a file that are memory from an address on. */
interface Run {
  readonly address: number;
  readonly bytes: number;
  readonly position: number;
}

const inRuns =
  (file: string, runs: readonly Run[]): ReadAddress =>
  (address, length) => {
    const found = runs.filter((run) => address >= run.address && address + length <= run.address + run.bytes);
    assert.ok(found.length <= 1, `${found.length} places have ${address}`);
    return found[0] && readFile(file, found[0].position + address - found[0].address, length);
  };

/** Offsets are addresses. */
export const readRaw =
  (file: string): ReadAddress =>
  (address, length) =>
    address + length <= fs.statSync(file).size ? readFile(file, address, length) : undefined;

/** By the physical addresses of the segments to be loaded. */
export const readElf = (file: string): ReadAddress => {
  const header = readFile(file, 0, 64);
  const entryBytes = header.readUInt16LE(54);
  const entries = readFile(file, u64(header, 32), header.readUInt16LE(56) * entryBytes);
  const runs: Run[] = [];
  for (let at = 0; at < entries.length; at += entryBytes) {
    if (entries.readUInt32LE(at) === 1) {
      runs.push({ position: u64(entries, at + 8), address: u64(entries, at + 24), bytes: u64(entries, at + 32) });
    }
  }
  return inRuns(file, runs);
};

/** From header to header, to the end of the file. */
export const readLime = (file: string): ReadAddress => {
  const runs: Run[] = [];
  const { size } = fs.statSync(file);
  for (let at = 0; at < size; ) {
    const header = readFile(file, at, 32);
    assert.deepEqual([header.toString('latin1', 0, 4), header.readUInt32LE(4)], ['EMiL', 1]);
    assert.deepEqual(header.subarray(24), Buffer.alloc(8));
    const run = { position: at + 32, address: u64(header, 8), bytes: u64(header, 16) - u64(header, 8) + 1 };
    const before = runs.at(-1);
    assert.ok(before === undefined || run.address >= before.address + before.bytes, 'ranges ascend');
    runs.push(run);
    at = run.position + run.bytes;
    assert.ok(at <= size, `${file} ends inside a range`);
  }
  return inRuns(file, runs);
};

/** A kdump-compressed dump. */
export interface Kdump {
  /** Page frames that are in it, ascending. */
  readonly frames: readonly number[];
  /** As `uname -a` prints it: system, node, release, version, machine, domain. */
  readonly uname: readonly string[];
  readonly processors: number;
  /** One more than the highest page frame number. */
  readonly frameEnd: number;
  readonly notes: Buffer;
  readonly vmcoreinfo: Buffer;
  readonly physBase: bigint;
  page(frame: number): Buffer | undefined;
}

/** A dump of version 6 with pages that are plain or packed by zlib. */
export const openKdump = (file: string): Kdump => {
  const header = readFile(file, 0, 464);
  assert.equal(header.toString('latin1', 0, 8), 'KDUMP   ');
  const u32 = (at: number): number => header.readUInt32LE(at);
  assert.deepEqual([u32(8), u32(424), u32(428)], [6, 1, 4096]);
  const subHeader = readFile(file, 4096, 104);
  const frameEnd = u64(subHeader, 96);
  const bitmapBytes = (u32(436) / 2) * 4096;
  assert.ok(bitmapBytes * 8 >= frameEnd);
  assert.equal(u32(440), Math.min(frameEnd, 0xffff_ffff));
  const bitmaps = (1 + u32(432)) * 4096;
  const bitmap = readFile(file, bitmaps + bitmapBytes, bitmapBytes);
  assert.ok(bitmap.equals(readFile(file, bitmaps, bitmapBytes)), 'the bitmaps differ');
  const frames: number[] = [];
  for (let byte = 0; byte < bitmap.length; byte += 1) {
    for (let bit = 0; bit < 8 && bitmap[byte] !== 0; bit += 1) {
      if ((bitmap[byte]! & (1 << bit)) !== 0) {
        frames.push(byte * 8 + bit);
      }
    }
  }
  const indexes = new Map(frames.map((frame, index) => [frame, index]));
  const part = (at: number): Buffer => readFile(file, u64(subHeader, at), u64(subHeader, at + 8));
  return {
    frames,
    uname: [0, 1, 2, 3, 4, 5].map((index) =>
      header.toString('latin1', 12 + index * 65, 77 + index * 65).replace(/\0.*$/s, ''),
    ),
    processors: u32(460),
    frameEnd,
    notes: part(48),
    vmcoreinfo: part(32),
    physBase: subHeader.readBigInt64LE(0),
    page(frame) {
      const index = indexes.get(frame);
      if (index === undefined) {
        return undefined;
      }
      const descriptor = readFile(file, bitmaps + 2 * bitmapBytes + 24 * index, 24);
      const [bytes, flags] = [descriptor.readUInt32LE(8), descriptor.readUInt32LE(12)];
      const content = readFile(file, u64(descriptor, 0), bytes);
      const plain = flags === 1 ? inflateSync(content) : content;
      assert.equal(plain.length, 4096);
      return plain;
    },
  };
};

export const readKdump = (file: string): ReadAddress => {
  const { uname, processors, page } = openKdump(file);
  assert.ok(uname[2] !== '' && uname[3] !== '' && uname[4] === 'x86_64', 'drgn wants them');
  assert.ok(processors >= 1, 'crash wants a processor');
  return (address, length) => {
    const at = address % 4096;
    return page(Math.floor(address / 4096))?.subarray(at, at + length);
  };
};

/** The file that a flattened dump is of. */
export const unflatten = (bytes: Buffer): Buffer => {
  assert.equal(bytes.toString('latin1', 0, 16), 'makedumpfile\0\0\0\0');
  assert.deepEqual([bytes.readBigInt64BE(16), bytes.readBigInt64BE(24)], [1n, 1n]);
  const pieces: [position: number, content: Buffer][] = [];
  let at = 4096;
  for (; bytes.readBigInt64BE(at) >= 0n; ) {
    const length = Number(bytes.readBigInt64BE(at + 8));
    pieces.push([Number(bytes.readBigInt64BE(at)), bytes.subarray(at + 16, at + 16 + length)]);
    at += 16 + length;
  }
  assert.deepEqual([bytes.readBigInt64BE(at), bytes.readBigInt64BE(at + 8), bytes.length], [-1n, -1n, at + 16]);
  const file = Buffer.alloc(Math.max(...pieces.map(([position, { length }]) => position + length)));
  for (const [position, content] of pieces) {
    content.copy(file, position);
  }
  return file;
};

/** What `convert` can write with guest-physical addresses, and how to read it. */
export const ADDRESSED_FORMATS: readonly {
  /** Behind `--to`. */
  readonly args: readonly string[];
  readonly read: (file: string) => ReadAddress;
}[] = [
  { args: ['raw', '--by-address'], read: readRaw },
  { args: ['elf'], read: readElf },
  { args: ['kdump'], read: readKdump },
  { args: ['lime'], read: readLime },
];
