// Guest memory by guest-physical address: across blocks and holes, what is not there, and what it costs.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { acpiTables, clockDevice, pcStream, type TestPc } from '../../test/pc-memory.js';
import { patternPage } from '../../test/streams.js';
import { openSnapshot } from './open-snapshot.js';
import { physicalMap } from './physical-map.js';
import { PhysicalMemory } from './physical-memory.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const PAGE = 4096;

const openMemory = (pc: TestPc) => {
  const bytes = pcStream(pc);
  const io = { reads: 0, fails: false };
  const readAt = (position: number, target: Uint8Array): void => {
    io.reads += 1;
    if (io.fails) {
      target.fill(0xee);
      throw new Error('the disk is gone');
    }
    target.set(bytes.subarray(position, position + target.length));
  };
  const snapshot = openSnapshot(readAt, bytes.length);
  const memory = new PhysicalMemory(snapshot, physicalMap(snapshot));
  io.reads = 0;
  return { memory, io };
};

/** Pages of different content. */
const page = (seed: number, count = 1): Uint8Array => {
  const bytes = new Uint8Array(count * PAGE);
  for (let index = 0; index < count; index += 1) {
    bytes.set(patternPage(seed + index), index * PAGE);
  }
  return bytes;
};

const read = (memory: PhysicalMemory, address: number, bytes: number): Uint8Array => {
  const target = new Uint8Array(bytes).fill(0xaa);
  memory.read(address, target);
  return target;
};

/** Two nodes with the hole in the second: block a at 0, block b at 1 GiB and, from its second GiB on, at 4 GiB. */
const twoNodes: TestPc = {
  blocks: [
    { name: 'b', usedLength: 2 * GIB },
    { name: 'a', usedLength: GIB },
  ],
  devices: [clockDevice(2 * GIB, GIB)],
  tables: acpiTables([
    { address: 0, bytes: 640 * 1024 },
    { address: MIB, bytes: GIB - MIB },
    { node: 1, address: GIB, bytes: GIB },
    { node: 1, address: 4 * GIB, bytes: GIB },
  ]),
  pages: [
    { block: 'a', offset: GIB - 2 * PAGE, content: page(1, 2) },
    { block: 'b', offset: 0, content: page(3, 3) },
    { block: 'b', offset: GIB - PAGE, content: page(7, 2) },
  ],
};

test('any bytes are read, in pieces of pages, across pages and across blocks whose addresses adjoin', () => {
  const { memory } = openMemory(twoNodes);
  const expected = new Uint8Array(7 * PAGE);
  expected.set(page(1, 5), PAGE);
  const start = GIB - 3 * PAGE;
  for (const [from, bytes] of [
    [0, expected.length],
    [PAGE + 5, 20],
    [3 * PAGE - 1, 2],
    [3 * PAGE - 10, 2 * PAGE + 20],
    [PAGE, PAGE],
    [2 * PAGE, 3 * PAGE + 1],
    [6 * PAGE, 0],
  ] as const) {
    assert.deepEqual(read(memory, start + from, bytes), expected.subarray(from, from + bytes), `${bytes} from ${from}`);
  }
  // What follows in the block lies elsewhere in the address space.
  assert.deepEqual(read(memory, 2 * GIB - PAGE, PAGE), patternPage(7));
  assert.deepEqual(read(memory, 4 * GIB, PAGE), patternPage(8));
});

test('a hole is an error that names its first byte, or false', () => {
  const { memory } = openMemory(twoNodes);
  const target = new Uint8Array(16);
  for (const [address, first] of [
    [2 * GIB - 8, 2 * GIB],
    [3 * GIB, 3 * GIB],
    [4 * GIB - 1, 4 * GIB - 1],
    [5 * GIB - 15, 5 * GIB],
    [2 ** 52, 2 ** 52],
  ] as const) {
    assert.equal(memory.tryRead(address, target), false);
    assert.equal(memory.isHole(first), true);
    assert.throws(() => memory.read(address, target), {
      kind: 'failed',
      code: 'NO_MEMORY',
      message: `The guest has no memory at address 0x${first.toString(16)}.`,
      value: `0x${first.toString(16)}`,
    });
  }
  assert.equal(memory.tryRead(2 * GIB - 16, target), true);
  assert.equal(memory.isHole(GIB), false);
});

test('memory whose address the file does not say is not taken for a hole', () => {
  const { memory } = openMemory({
    blocks: ['a', 'b'].map((name) => ({ name, usedLength: GIB })),
    devices: [clockDevice(2 * GIB)],
    tables: acpiTables([
      { address: 0, bytes: 640 * 1024 },
      { address: MIB, bytes: GIB - MIB },
      { node: 1, address: GIB, bytes: GIB },
    ]),
  });
  assert.equal(memory.tryRead(PAGE, new Uint8Array(1)), false);
  assert.equal(memory.isHole(PAGE), false);
  assert.throws(() => memory.read(PAGE, new Uint8Array(1)), {
    code: 'NO_MEMORY',
    message: "No memory at address 0x1000 is known: the file does not say where all of the guest's memory lies.",
    hint: '--at a=0x0 --at b=0x40000000',
  });
});

test('memory that the file leaves out is not read as zero', () => {
  const { memory } = openMemory({
    blocks: [{ name: 'mem', usedLength: 64 * MIB, address: 0 }],
    devices: [clockDevice(64 * MIB)],
    capabilities: ['x-ignore-shared'],
  });
  assert.equal(memory.tryRead(PAGE, new Uint8Array(1)), false);
  assert.equal(memory.isHole(PAGE), false);
  assert.throws(() => memory.read(PAGE, new Uint8Array(1)), { code: 'MEMORY_ELSEWHERE', value: 'mem' });
});

test('a page is read from the file once, and a page that is not stored never', () => {
  const { memory, io } = openMemory(twoNodes);
  read(memory, 4096, 100);
  read(memory, MIB, 64 * PAGE);
  assert.equal(io.reads, 0);
  for (let at = 0; at < PAGE; at += 8) {
    read(memory, GIB + at, 8);
  }
  assert.deepEqual(read(memory, GIB, PAGE), patternPage(3));
  assert.equal(io.reads, 1);
});

test('pages that share a slot of the cache are not mixed up, nor is half a page kept that could not be read', () => {
  const seeds = Array.from({ length: 600 }, (_, index) => index);
  const { memory, io } = openMemory({
    blocks: [{ name: 'pc.ram', usedLength: 8 * MIB }],
    devices: [clockDevice(8 * MIB)],
    pages: [{ block: 'pc.ram', offset: 0, content: page(0, seeds.length) }],
  });
  const check = (seed: number): void =>
    assert.deepEqual(read(memory, seed * PAGE + 8, 8), patternPage(seed).subarray(8, 16), `page ${seed}`);
  [...seeds, ...seeds.toReversed(), 3, 259, 3, 515, 259].forEach(check);
  io.fails = true;
  assert.throws(() => read(memory, 3 * PAGE, 8), /the disk is gone/);
  io.fails = false;
  check(259);
  check(3);
});
