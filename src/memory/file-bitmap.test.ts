// The bitmap that a mapped-ram file will have, at indexes whose 32-bit arithmetic goes wrong as well.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FileBitmap } from './file-bitmap.js';

/** Pages just before and behind these. The memory of the bitmap is only reserved. */
const PAGE_COUNTS = [200, 2 ** 31 + 100, 2 ** 32 + 100];

const step = fc.record({
  sets: fc.boolean(),
  first: fc.integer({ min: 0, max: 199 }),
  count: fc.constantFrom(1, 1, 31, 32, 33, 100),
});

// CB-25: a byte address or a page index of any block is exact.
for (const pageCount of PAGE_COUNTS) {
  test(`set and clear against a set of numbers, ${pageCount} pages`, { timeout: 60_000 }, () => {
    const base = pageCount - 200;
    fc.assert(
      fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
        const bitmap = new FileBitmap(pageCount);
        const expected = new Set<number>();
        for (const { sets, first, count } of steps) {
          const pages = Array.from({ length: Math.min(count, 200 - first) }, (_, index) => base + first + index);
          if (sets) {
            bitmap.set(base + first, pages.length);
            for (const page of pages) {
              expected.add(page);
            }
          } else {
            const were = pages.filter((page) => expected.delete(page)).length;
            assert.equal(bitmap.clear(base + first, pages.length), were);
          }
        }
        for (let page = base; page < pageCount; page += 1) {
          assert.equal(bitmap.has(page), expected.has(page), `page ${page}`);
          const byte = bitmap.bytes[Math.floor(page / 8)]!;
          assert.equal((byte & (1 << (page % 8))) !== 0, expected.has(page), `bit of page ${page}`);
        }
        // What 32-bit arithmetic would hit instead.
        for (const page of [base - 2 ** 31, base - 2 ** 32].filter((other) => other >= 0)) {
          assert.equal(bitmap.has(page), false);
        }
      }),
      { numRuns: pageCount > 1000 ? 20 : 100 },
    );
  });
}
