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

/** A dump of version 6 with pages that are plain or packed by zlib. */
export const readKdump = (file: string): ReadAddress => {
  const header = readFile(file, 0, 464);
  assert.equal(header.toString('latin1', 0, 8), 'KDUMP   ');
  const u32 = (at: number): number => header.readUInt32LE(at);
  const machine = header.toString('latin1', 12 + 4 * 65, 12 + 5 * 65).replace(/\0.*$/s, '');
  assert.deepEqual([u32(8), machine, u32(424), u32(428)], [6, 'x86_64', 1, 4096]);
  assert.ok(u32(460) >= 1, 'crash wants a processor');
  const subBlocks = u32(432);
  const bitmapBlocks = u32(436) / 2;
  const frameEnd = u64(readFile(file, 4096, 104), 96);
  assert.equal(u32(440), Math.min(frameEnd, 0xffff_ffff));
  assert.ok(bitmapBlocks * 4096 * 8 >= frameEnd);
  const bitmap2 = (1 + subBlocks + bitmapBlocks) * 4096;
  const descriptors = bitmap2 + bitmapBlocks * 4096;
  const isSet = (frame: number): boolean =>
    (readFile(file, bitmap2 + Math.floor(frame / 8), 1)[0]! & (1 << (frame % 8))) > 0;
  /** Pages in the file before a frame. */
  const pagesBefore = (frame: number): number => {
    const whole = Math.floor(frame / 8);
    let count = 0;
    for (const byte of readFile(file, bitmap2, whole)) {
      count += byte === 0 ? 0 : byte === 0xff ? 8 : byte.toString(2).replaceAll('0', '').length;
    }
    for (let bit = whole * 8; bit < frame; bit += 1) {
      count += isSet(bit) ? 1 : 0;
    }
    return count;
  };
  const page = (frame: number): Buffer | undefined => {
    if (frame >= frameEnd || !isSet(frame)) {
      return undefined;
    }
    const descriptor = readFile(file, descriptors + 24 * pagesBefore(frame), 24);
    const [bytes, flags] = [descriptor.readUInt32LE(8), descriptor.readUInt32LE(12)];
    const content = readFile(file, u64(descriptor, 0), bytes);
    const plain = flags === 1 ? inflateSync(content) : content;
    assert.equal(plain.length, 4096);
    return plain;
  };
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
