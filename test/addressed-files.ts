// Guest memory in files that have guest-physical addresses, read as their readers do: by code that shares nothing with what wrote them.

import assert from 'node:assert/strict';
import fs from 'node:fs';

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
