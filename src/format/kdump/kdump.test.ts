// The parts of a kdump-compressed dump, each against a plain way to make the same.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { type FrameRange, frameBitmap } from './frame-bitmap.js';
import { kdumpHead } from './head.js';
import { PageDescriptors } from './page-descriptors.js';

const setBits = (bytes: Uint8Array): number =>
  bytes.reduce((sum, byte) => sum + byte.toString(2).replaceAll('0', '').length, 0);

test('a bitmap in pieces has the bits of all ranges and no others, wherever they lie', () => {
  const count = fc.oneof(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1, max: 2_000_000 }));
  const gap = fc.oneof(fc.integer({ min: 0, max: 20 }), fc.integer({ min: 0, max: 2 ** 36 }));
  fc.assert(
    fc.property(fc.array(fc.tuple(gap, count), { minLength: 1, maxLength: 6 }), (steps) => {
      const ranges: FrameRange[] = [];
      let frame = 0;
      for (const [before, frames] of steps) {
        ranges.push({ first: frame + before, count: frames });
        frame += before + frames;
      }
      const bitmapBytes = Math.ceil(frame / 8);
      const pieces = [...frameBitmap(ranges, bitmapBytes)].length;
      assert.ok(pieces > 0);
      const edges = ranges.flatMap(({ first, count: frames }) => [
        first - 1,
        first,
        first + frames - 1,
        first + frames,
      ]);
      const isIn = (edge: number): boolean =>
        ranges.some(({ first, count: frames }) => edge >= first && edge < first + frames);
      const found = new Set<number>();
      let set = 0;
      let end = 0;
      for (const { offset, bytes } of frameBitmap(ranges, bitmapBytes)) {
        assert.ok(offset >= end && offset + bytes.length <= bitmapBytes);
        end = offset + bytes.length;
        set += setBits(bytes);
        for (const edge of edges) {
          const at = Math.floor(edge / 8) - offset;
          if (edge >= 0 && at >= 0 && at < bytes.length && (bytes[at]! & (1 << (edge % 8))) !== 0) {
            found.add(edge);
          }
        }
      }
      assert.deepEqual([...found].sort(), [...new Set(edges.filter(isIn))].sort());
      assert.equal(
        set,
        ranges.reduce((sum, { count: frames }) => sum + frames, 0),
      );
    }),
    { numRuns: 20 },
  );
});

test('descriptors that share their content are what one after the other are', () => {
  for (const count of [0, 1, 2, 3, 100]) {
    const [one, many] = [new PageDescriptors(102), new PageDescriptors(102)];
    for (const descriptors of [one, many]) {
      descriptors.add(0x1_2345_6789a, 77);
    }
    for (let index = 0; index < count; index += 1) {
      one.add(2 ** 40 + 8, 4096);
    }
    many.addShared(2 ** 40 + 8, 4096, count);
    for (const descriptors of [one, many]) {
      descriptors.add(1, 2);
    }
    assert.deepEqual(many.written, one.written);
    const view = Buffer.from(many.written);
    assert.equal(view.length, (count + 2) * 24);
    assert.deepEqual([view.readBigUInt64LE(0), view.readUInt32LE(8), view.readUInt32LE(12)], [0x1_2345_6789an, 77, 1]);
    if (count > 0) {
      assert.deepEqual(
        [view.readBigUInt64LE(24), view.readUInt32LE(32), view.readUInt32LE(36)],
        [2n ** 40n + 8n, 4096, 0],
      );
    }
  }
});

test('page frames above 32 bits: all of the number is in the sub header, and what is in the header is the most it can hold', () => {
  const frameEnd = 2 ** 33 + 1;
  const notes = new Uint8Array(5000).fill(1);
  const vmcoreinfo = new TextEncoder().encode('OSRELEASE=6.1\n');
  const { bytes, bitmaps, descriptorOffset, dataOffset } = kdumpHead({
    notes,
    processors: 2,
    vmcoreinfo,
    uname: { nodename: 'node', release: '6.1', version: `#1 ${'x'.repeat(100)}` },
    physBase: -0x1000n,
    pageCount: 10,
    frameEnd,
  });
  const head = Buffer.from(bytes);
  const u64 = (at: number): bigint => head.readBigUInt64LE(at);
  const names = [0, 1, 2, 3, 4, 5].map((index) => head.toString('latin1', 12 + index * 65, 77 + index * 65));
  assert.deepEqual(
    names.map((name) => name.replace(/\0+$/, '')),
    ['Linux', 'node', '6.1', `#1 ${'x'.repeat(61)}`, 'x86_64', ''],
  );
  assert.equal(head.readUInt32LE(440), 0xffff_ffff);
  assert.equal(u64(4096 + 96), BigInt(frameEnd));
  assert.equal(u64(4096), 2n ** 64n - 0x1000n);
  assert.equal(head.readUInt32LE(460), 2);
  // Header, sub header with 5000 bytes of notes, two bitmaps of 2^30 bytes and a block.
  assert.equal(head.readUInt32LE(432), 2);
  assert.deepEqual(bitmaps, [3 * 4096, 3 * 4096 + 2 ** 30 + 4096]);
  assert.equal(descriptorOffset, 3 * 4096 + 2 ** 31 + 8192);
  assert.equal(dataOffset, descriptorOffset + 240);
  const [textAt, textBytes, noteAt, noteBytes] = [32, 40, 48, 56].map((at) => Number(u64(4096 + at)));
  assert.deepEqual(head.subarray(noteAt, noteAt! + noteBytes!), Buffer.from(notes));
  assert.deepEqual(head.subarray(textAt, textAt! + textBytes!), Buffer.from(vmcoreinfo));
});
