import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GUEST_PAGE_SIZE, NORMAL_RECORD_BYTES } from '../../kernels/kernels.js';
import { LIST_SLOT_PAGES, SEGMENT_RAM_BYTES, Segment, SLOT_COUNT, STAGING_SLOT_BYTES } from './segment.js';

test('the control tail follows the RAM, its areas do not overlap, and attaching finds the same layout', () => {
  for (const ramBytes of [64 * GUEST_PAGE_SIZE, SEGMENT_RAM_BYTES]) {
    const segment = Segment.create({ ramBytes });
    assert.equal(segment.ramBytes, ramBytes);
    assert.ok(segment.writtenBitmap >= ramBytes);
    assert.ok(segment.listArea >= segment.writtenBitmap + ramBytes / GUEST_PAGE_SIZE / 8);
    assert.ok(segment.listSlot(1) >= segment.listSlot(0) + LIST_SLOT_PAGES * 4);
    assert.ok(segment.resultArea >= segment.listSlot(SLOT_COUNT - 1) + LIST_SLOT_PAGES * 4);
    // A result slot takes the zero bitmap of as many pages as a list slot lists.
    assert.ok(segment.resultSlot(1) >= segment.resultSlot(0) + LIST_SLOT_PAGES / 8);
    assert.ok(segment.staging >= segment.resultSlot(SLOT_COUNT));
    assert.equal(segment.stagingSlot(3) % GUEST_PAGE_SIZE, 0);
    assert.ok(STAGING_SLOT_BYTES > 256 * NORMAL_RECORD_BYTES);
    assert.ok(segment.bytes.length >= segment.stagingSlot(SLOT_COUNT));
    assert.ok(segment.bytes.length < 2 ** 31);

    const attached = Segment.attach(segment.memory);
    assert.equal(attached.ramBytes, ramBytes);
    assert.equal(attached.staging, segment.staging);
  }
});

test('a segment size that is no power of two, or too small, is refused', () => {
  for (const ramBytes of [0, 32 * GUEST_PAGE_SIZE, 96 * GUEST_PAGE_SIZE, 2 * SEGMENT_RAM_BYTES]) {
    assert.throws(() => Segment.create({ ramBytes }), RangeError);
  }
});

test('markWritten sets the bits of every page it touches, and no other', () => {
  const segment = Segment.create({ ramBytes: 256 * GUEST_PAGE_SIZE });
  segment.markWritten(31 * GUEST_PAGE_SIZE + 4095, 34 * GUEST_PAGE_SIZE + 2);
  const pages = Array.from({ length: 256 }, (_, page) => page).filter(
    (page) => (segment.words[segment.writtenBitmap / 4 + (page >>> 5)]! >>> (page & 31)) & 1,
  );
  assert.deepEqual(
    pages,
    Array.from({ length: 36 }, (_, index) => 31 + index),
  );
});

test('reset makes a range read as zero and forgets that it was written, and touches nothing else', () => {
  const segment = Segment.create({ ramBytes: 256 * GUEST_PAGE_SIZE });
  for (let page = 0; page < 256; page += page < 128 ? 1 : 2) {
    segment.bytes[page * GUEST_PAGE_SIZE + page] = 7;
  }
  segment.markWritten(0, 256 * GUEST_PAGE_SIZE);
  segment.reset(64 * GUEST_PAGE_SIZE, 128 * GUEST_PAGE_SIZE);
  const isZero = Array.from({ length: 256 }, (_, page) => segment.kernels.isZeroPage(page * GUEST_PAGE_SIZE));
  assert.deepEqual(isZero, [...new Array(64).fill(0), ...new Array(128).fill(1), ...new Array(32).fill([0, 1]).flat()]);
  const written = segment.words.subarray(segment.writtenBitmap / 4, segment.writtenBitmap / 4 + 8);
  assert.deepEqual([...written], [-1, -1, 0, 0, 0, 0, -1, -1]);
});
