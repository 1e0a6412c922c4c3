import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { RunAllocator } from './run-allocator.js';

const SPACE = 64;

/** What the allocator must do, on one cell per unit: the shortest free run that is long enough, the lowest of equals. */
const bestFit = (isFree: readonly boolean[], boundary: number, length: number): number | undefined => {
  let best: { start: number; length: number } | undefined;
  for (let start = 0; start < SPACE; ) {
    let end = start;
    while (end < SPACE && isFree[end] && (end === start || end % boundary !== 0)) {
      end += 1;
    }
    if (end - start >= length && (best === undefined || end - start < best.length)) {
      best = { start, length: end - start };
    }
    start = Math.max(end, start + 1);
  }
  return best?.start;
};

// DM-28
test('placement is best fit, and the same for the same sequence of calls', () => {
  fc.assert(
    fc.property(
      fc.constantFrom(8, 16, Number.POSITIVE_INFINITY),
      fc.array(fc.record({ take: fc.boolean(), value: fc.integer({ min: 1, max: 12 }) }), { maxLength: 60 }),
      (boundary, steps) => {
        const allocator = new RunAllocator(boundary);
        const isFree = new Array<boolean>(SPACE).fill(true);
        for (let start = 0; start < SPACE; start += 8) {
          allocator.free(start, 8);
        }
        const taken: { start: number; length: number }[] = [];
        for (const { take, value } of steps) {
          if (take || taken.length === 0) {
            const length = Math.min(value, boundary);
            const expected = bestFit(isFree, boundary, length);
            assert.equal(allocator.allocate(length), expected);
            if (expected !== undefined) {
              isFree.fill(false, expected, expected + length);
              taken.push({ start: expected, length });
            }
          } else {
            const [run] = taken.splice(value % taken.length, 1);
            allocator.free(run!.start, run!.length);
            isFree.fill(true, run!.start, run!.start + run!.length);
          }
        }
      },
    ),
  );
});
