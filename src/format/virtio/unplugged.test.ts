// Which RAM block is the region of which memory device: read from size and content, and wrong in no case.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { RamSetup } from '../stream/stream-handler.js';
import { forEachUnplugged, type PluggedBlocks, pluggedOfBlocks } from './unplugged.js';
import type { VirtioMemEarlyState } from './virtio-mem.js';

const BLOCK = 2 ** 21;
const BLOCKS = 12;
const REGION = BLOCKS * BLOCK;

const bitmap = (blocks: readonly number[]): Uint8Array => {
  const bytes = new Uint8Array(8);
  for (const block of blocks) {
    bytes[block >>> 3]! |= 1 << (block & 7);
  }
  return bytes;
};

const device = (blocks: readonly number[], blockSize = BLOCK): VirtioMemEarlyState => ({
  address: 2 ** 32,
  regionSize: REGION,
  blockSize,
  node: 0,
  pluggedSize: blocks.length * blockSize,
  plugged: bitmap(blocks),
});

const setup = (lengths: readonly number[]): RamSetup => ({
  sectionId: 1,
  targetPageSize: 4096,
  totalBytes: 0,
  blocks: lengths.map((usedLength, index) => ({
    index,
    name: `block${index}`,
    usedLength,
    address: undefined,
    lengthOffset: 0,
  })),
});

/** Device blocks that are not plugged, one by one. */
const unplugged = (plugged: PluggedBlocks | undefined): number[] | undefined => {
  if (plugged === undefined) {
    return undefined;
  }
  const found: number[] = [];
  forEachUnplugged(plugged, (offset, length) => {
    for (let at = offset; at < offset + length; at += BLOCK) {
      found.push(at / BLOCK);
    }
  });
  return found;
};

const emptyOutside =
  (contents: readonly (readonly number[])[]) =>
  (block: number, offset: number, length: number): boolean =>
    !contents[block]!.some((index) => index * BLOCK >= offset && index * BLOCK < offset + length);

const subset = fc.uniqueArray(fc.nat(BLOCKS - 1));

test('runs of unplugged blocks are what the bitmap leaves out', () => {
  fc.assert(
    fc.property(subset, (plugged) => {
      const expected = Array.from({ length: BLOCKS }, (_, block) => block).filter((block) => !plugged.includes(block));
      assert.deepEqual(unplugged(device(plugged)), expected);
    }),
  );
});

// RD-14: whatever is stored is never called discarded, and what a region has plugged neither
test('no matching of devices and blocks ever calls discarded what is stored, or plugged in its own region', () => {
  const regions = fc.array(fc.record({ plugged: subset, stored: fc.array(fc.nat(BLOCKS - 1)) }), { maxLength: 3 });
  const ordinary = fc.array(subset, { maxLength: 2 });
  fc.assert(
    fc.property(regions, ordinary, fc.boolean(), (devices, others, turned) => {
      const contents = devices.map(({ plugged, stored }) => stored.filter((block) => plugged.includes(block)));
      // Of an ordinary block everything is memory.
      const plugged = [...devices.map((one) => one.plugged), ...others.map(() => [...Array(BLOCKS).keys()])];
      const all = [...contents, ...others];
      const order = all.map((_, index) => (turned ? all.length - 1 - index : index));
      const found = pluggedOfBlocks(
        setup(order.map(() => REGION)),
        devices.map((one) => device(one.plugged)),
        emptyOutside(order.map((index) => all[index]!)),
      );
      for (const [position, index] of order.entries()) {
        for (const block of unplugged(found[position]) ?? []) {
          assert.ok(!all[index]!.includes(block));
          assert.ok(!plugged[index]!.includes(block), `block ${block} of ${index}`);
        }
      }
    }),
  );
});

test('a region is found by its size; two alike share what both leave out; an ordinary block of that size spoils it', () => {
  const outside = (blocks: readonly number[]): number[] =>
    Array.from({ length: BLOCKS }, (_, block) => block).filter((block) => !blocks.includes(block));
  const nothing = emptyOutside([[], [], []]);
  const one = pluggedOfBlocks(setup([2 ** 28, REGION, 4096]), [device([0, 1])], nothing);
  assert.deepEqual(one.map(unplugged), [undefined, outside([0, 1]), undefined]);
  const two = pluggedOfBlocks(setup([REGION, REGION]), [device([0, 1]), device([0, 5])], emptyOutside([[1], []]));
  assert.deepEqual(two.map(unplugged), [outside([0, 1]), outside([0, 1, 5])]);
  const spoilt = pluggedOfBlocks(setup([REGION, REGION]), [device([0])], nothing);
  assert.deepEqual(spoilt, [undefined, undefined]);
  const told = pluggedOfBlocks(setup([REGION, REGION]), [device([0])], emptyOutside([[7], []]));
  assert.deepEqual(told.map(unplugged), [undefined, outside([0])]);
});
