import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { RamBlock } from './ram-block.js';
import { RamBlockList } from './ram-block-list.js';

const SEGMENT_PAGES = 64;
const PAGES = 3 * SEGMENT_PAGES + 5;

/** A block of three whole segments and a rest, with every page's number in its first and last byte. */
const numberedBlock = (): RamBlock => {
  const list = RamBlockList.create({ segmentBytes: SEGMENT_PAGES * GUEST_PAGE_SIZE });
  const block = list.add({ name: 'pc.ram', usedLength: PAGES * GUEST_PAGE_SIZE });
  for (let page = 0; page < PAGES; page += 1) {
    block.write(page * GUEST_PAGE_SIZE, Uint8Array.of(page));
    block.write((page + 1) * GUEST_PAGE_SIZE - 1, Uint8Array.of(page));
  }
  return block;
};

test('ranges are split at segment borders, in order, without gap or overlap', () => {
  const block = numberedBlock();
  fc.assert(
    fc.property(fc.integer({ min: 0, max: PAGES }), fc.integer({ min: 0, max: PAGES }), (one, other) => {
      const [first, end] = [Math.min(one, other), Math.max(one, other)];
      let next = first;
      block.forEachRange(first, end - first, (extent, from, count) => {
        assert.equal(from, next);
        assert.ok(count > 0 && from + count <= extent.firstPage + extent.pageCount);
        for (let page: number = from; page < from + count; page += 1) {
          const address = extent.address + (page - extent.firstPage) * GUEST_PAGE_SIZE;
          assert.equal(extent.segment.bytes[address], page);
          assert.equal(extent.segment.bytes[address + GUEST_PAGE_SIZE - 1], page);
        }
        next += count;
      });
      assert.equal(next, end);
    }),
  );
});

test('bytes come back from where they were written, across extents', () => {
  const block = numberedBlock();
  const length = PAGES * GUEST_PAGE_SIZE;
  const oracle = block.read(0, length);
  fc.assert(
    fc.property(
      fc.nat(length - 1),
      fc.integer({ min: 0, max: 2 * SEGMENT_PAGES * GUEST_PAGE_SIZE }),
      (offset, size) => {
        const bytes = new Uint8Array(Math.min(size, length - offset)).fill(offset + size);
        block.write(offset, bytes);
        oracle.set(bytes, offset);
        assert.deepEqual(block.read(0, length), oracle);
      },
    ),
    { numRuns: 20 },
  );
});

test('nothing reaches beyond the used length', () => {
  const list = RamBlockList.create({ segmentBytes: SEGMENT_PAGES * GUEST_PAGE_SIZE });
  const block = list.add({ name: 'rom', usedLength: GUEST_PAGE_SIZE, maxLength: 3 * GUEST_PAGE_SIZE });
  assert.throws(() => block.read(GUEST_PAGE_SIZE - 1, 2), RangeError);
  assert.throws(() => block.write(GUEST_PAGE_SIZE, Uint8Array.of(1)), RangeError);
  assert.throws(() => block.read(-1, 1), RangeError);
  assert.throws(() => block.forEachRange(0, 2, () => {}), RangeError);
  assert.equal(block.extentOf(2).pageCount, 3, 'extents cover the maximum length');
  assert.throws(() => block.extentOf(3), RangeError);
});

test('what write and markWritten touched counts as written', () => {
  const block = numberedBlock();
  const { segment } = block.extents[1]!;
  assert.deepEqual([...segment.words.subarray(segment.writtenBitmap / 4, segment.writtenBitmap / 4 + 2)], [-1, -1]);

  const fresh = RamBlockList.create({ segmentBytes: SEGMENT_PAGES * GUEST_PAGE_SIZE }).add({
    name: 'fresh',
    usedLength: 2 * SEGMENT_PAGES * GUEST_PAGE_SIZE,
  });
  fresh.markWritten(SEGMENT_PAGES - 1, 2);
  const written = fresh.extents.map(({ segment: { words, writtenBitmap } }) => [
    words[writtenBitmap / 4],
    words[writtenBitmap / 4 + 1],
  ]);
  assert.deepEqual(written, [
    [0, -(2 ** 31)],
    [1, 0],
  ]);
});

// G-9
test('a block that is not migrated has no send and received bitmaps', () => {
  const list = RamBlockList.create({ segmentBytes: SEGMENT_PAGES * GUEST_PAGE_SIZE });
  const ignored = list.add({ name: 'shared', usedLength: GUEST_PAGE_SIZE, ignored: true, shared: true });
  const local = list.add({ name: 'local', usedLength: GUEST_PAGE_SIZE, migratable: false });
  for (const { bitmaps, migrated } of [ignored, local]) {
    assert.equal(migrated, false);
    assert.throws(() => bitmaps.send, { code: 'RAM_BLOCK_NOT_MIGRATED' });
    assert.throws(() => bitmaps.received, { code: 'RAM_BLOCK_NOT_MIGRATED' });
    assert.ok(bitmaps.remote > 0 && bitmaps.snapshot > 0);
  }
});
