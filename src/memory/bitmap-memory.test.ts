import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bindBitmapTwin } from '../../kernels/twin/bitmap-twin.js';
import { BitmapMemory } from './bitmap-memory.js';

test('bitmaps are apart, aligned to a cache line, and zero again when their place is reused', () => {
  const bitmaps = BitmapMemory.create(2 ** 20);
  const first = bitmaps.allocate(1);
  const second = bitmaps.allocate(64 * 8 + 1);
  const third = bitmaps.allocate(1);
  assert.deepEqual([first % 64, second % 64, third % 64], [0, 0, 0]);
  assert.ok(first > 0, 'address 0 means "none"');
  assert.deepEqual([second - first, third - second], [64, 128]);

  bitmaps.words.fill(-1, second / 4, third / 4);
  bitmaps.free(second, 64 * 8 + 1);
  assert.equal(bitmaps.allocate(1000), second);
  assert.deepEqual(bitmaps.words.subarray(second / 4, third / 4), new Int32Array(32));
});

test('a full memory, and a thread that is not the owner, get typed errors', () => {
  const bitmaps = BitmapMemory.create(2 ** 16);
  bitmaps.allocate(2 ** 18);
  assert.throws(() => bitmaps.allocate(2 ** 18), { code: 'BITMAP_MEMORY_EXHAUSTED', kind: 'failed', value: 2 ** 18 });
  assert.throws(() => BitmapMemory.attach(bitmaps.memory).allocate(1), { code: 'NOT_OWNER', kind: 'usage' });
});

test('the kernels can be replaced by twins that call a step hook', () => {
  let steps = 0;
  const bitmaps = BitmapMemory.create(2 ** 16, (memory) => bindBitmapTwin(memory, () => (steps += 1)));
  bitmaps.kernels.setRange(bitmaps.allocate(64), 0, 64);
  assert.ok(steps > 0);
});
