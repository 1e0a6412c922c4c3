import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { CLEAR_BITMAP_SHIFT_DEFAULT, ClearBitmap, clampClearBitmapShift, type PageRange } from './clear-bitmap.js';

const all = (bitmap: ClearBitmap, first: number, count: number): PageRange[] => {
  const ranges: PageRange[] = [];
  bitmap.takeRange(first, count, (range) => ranges.push(range));
  return ranges;
};

describe('clear-bitmap-shift', () => {
  // CB-18, CB-9
  test('is clamped to 6..31 for every 8-bit value, and a clamp says which value is used', () => {
    for (let requested = 0; requested <= 255; requested += 1) {
      const { shift, warning } = clampClearBitmapShift(requested);
      assert.equal(shift, Math.min(31, Math.max(6, requested)));
      assert.equal(warning !== undefined, shift !== requested);
      if (warning !== undefined) {
        assert.match(warning, new RegExp(`${requested}.*using ${shift}$`));
      }
    }
    assert.equal(clampClearBitmapShift(-1).shift, 6);
    assert.equal(2 ** CLEAR_BITMAP_SHIFT_DEFAULT * 4096, 2 ** 30);
  });

  test('that is no whole number is refused', () => {
    assert.throws(() => clampClearBitmapShift(6.5), { code: 'CLEAR_BITMAP_SHIFT' });
    assert.throws(() => clampClearBitmapShift(Number.NaN), { code: 'CLEAR_BITMAP_SHIFT' });
  });
});

describe('ClearBitmap', () => {
  test('owes nothing before it is armed, everything after, and each chunk once', () => {
    const bitmap = new ClearBitmap(1000, 1000, 6);
    assert.deepEqual(all(bitmap, 0, 1000), []); // CB-6
    bitmap.arm(0, 1000);
    for (let page = 0; page < 1000; page += 1) {
      assert.ok(bitmap.owed(page)); // CB-7
    }
    assert.deepEqual(bitmap.take(70), { firstPage: 64, pageCount: 64 });
    assert.equal(bitmap.take(127), undefined); // CB-5
    assert.ok(!bitmap.owed(64));
    assert.ok(bitmap.owed(63) && bitmap.owed(128));
    assert.equal(all(bitmap, 0, 1000).length, 15);
    assert.deepEqual(all(bitmap, 0, 1000), []); // CB-11
  });

  // CB-8
  test('trims the last chunk to the used length, not to the maximum', () => {
    const bitmap = new ClearBitmap(1000, 5000, 6);
    bitmap.arm(0, 1000);
    assert.deepEqual(bitmap.take(999), { firstPage: 960, pageCount: 40 });
  });

  // CB-14
  test('of one chunk that covers the block gives the whole block', () => {
    const bitmap = new ClearBitmap(1000, 1000, 31);
    bitmap.arm(0, 1000);
    assert.deepEqual(all(bitmap, 3, 990), [{ firstPage: 0, pageCount: 1000 }]);
  });

  // CB-7
  test('refuses pages outside the block instead of touching another bit', () => {
    const bitmap = new ClearBitmap(100, 128, 6);
    for (const touch of [
      () => bitmap.owed(100),
      () => bitmap.take(-1),
      () => bitmap.arm(90, 11),
      () => bitmap.takeRange(100, 1, () => {}),
      () => bitmap.take(Number.NaN),
    ]) {
      assert.throws(touch, { code: 'PAGE_OUTSIDE_BLOCK' });
    }
  });

  // CB-21 (edges), and the arming defect of 2(g): a range that starts inside a chunk must not lose its last chunk
  test('agrees with a set of chunk numbers for every range', () => {
    const range = fc.tuple(fc.nat(699), fc.nat(700)).map(([first, count]) => [first, Math.min(count, 700 - first)]);
    const step = fc.tuple(fc.constantFrom('arm', 'takeRange', 'take'), range);
    fc.assert(
      fc.property(fc.integer({ min: 6, max: 9 }), fc.array(step, { maxLength: 12 }), (shift, steps) => {
        const bitmap = new ClearBitmap(700, 800, shift);
        const chunk = 2 ** shift;
        const model = new Set<number>();
        for (const [what, [first, count]] of steps as ['arm' | 'takeRange' | 'take', [number, number]][]) {
          const chunks = new Set(Array.from({ length: count }, (_, i) => Math.floor((first + i) / chunk)));
          const owing = [...chunks].filter((n) => model.has(n));
          const pages = (n: number) => ({ firstPage: n * chunk, pageCount: Math.min(chunk, 700 - n * chunk) });
          if (what === 'arm') {
            bitmap.arm(first, count);
            for (const n of chunks) {
              model.add(n);
            }
          } else if (what === 'takeRange') {
            assert.deepEqual(all(bitmap, first, count), owing.map(pages));
            for (const n of owing) {
              model.delete(n);
            }
          } else {
            const n = Math.floor(first / chunk);
            assert.deepEqual(bitmap.take(first), model.has(n) ? pages(n) : undefined);
            model.delete(n);
          }
          for (let n = 0; n * chunk < 700; n += 1) {
            assert.equal(bitmap.owed(n * chunk), model.has(n));
          }
        }
      }),
    );
  });

  // CB-25: 64 TiB, page numbers beyond 2^32
  test('computes chunk starts of blocks beyond 16 TiB', () => {
    const pages = 2 ** 34 + 5;
    for (const shift of [18, 31]) {
      const bitmap = new ClearBitmap(pages, pages, shift);
      bitmap.arm(0, pages);
      const page = 2 ** 33 + 2 ** 32 + 7;
      const start = Math.floor(page / 2 ** shift) * 2 ** shift;
      assert.deepEqual(bitmap.take(page), { firstPage: start, pageCount: 2 ** shift });
      assert.deepEqual(bitmap.take(pages - 1), { firstPage: 2 ** 34, pageCount: 5 });
      assert.ok(bitmap.owed(page - 2 ** 32), 'a page 2^32 below is another chunk');
    }
  });
});
