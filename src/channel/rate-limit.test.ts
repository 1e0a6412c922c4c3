import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { RATE_WINDOW_MS, RateLimit } from './rate-limit.js';

// PL-27
test('over any run of whole windows no more leaves than their budgets and one unit each', () => {
  const units = fc.array(fc.record({ byteCount: fc.nat(3000), takesMs: fc.nat(40) }), {
    minLength: 50,
    maxLength: 400,
  });
  fc.assert(
    fc.property(fc.integer({ min: 10, max: 100_000 }), units, fc.nat(1_000_000), (limit, sent, start) => {
      const rate = new RateLimit(limit, start);
      const times: { at: number; byteCount: number }[] = [];
      let now = start;
      for (const { byteCount, takesMs } of sent) {
        const pauseMs = rate.exceededFor(now);
        assert.ok(pauseMs >= 0 && pauseMs <= RATE_WINDOW_MS);
        now += pauseMs;
        assert.equal(rate.exceededFor(now), 0, 'after the pause the sender may go on');
        rate.spent(byteCount);
        times.push({ at: now, byteCount });
        now += takesMs;
      }
      const largest = Math.max(...sent.map(({ byteCount }) => byteCount));
      const perWindow = Math.floor(limit / 10) + largest;
      // Any run of `count` windows' length touches at most count + 1 windows of the limiter.
      for (const count of [1, 3, 10]) {
        for (const { at: from } of times) {
          const bytes = times
            .filter(({ at }) => at >= from && at < from + count * RATE_WINDOW_MS)
            .reduce((sum, { byteCount }) => sum + byteCount, 0);
          assert.ok(bytes <= (count + 1) * perWindow, `${bytes} bytes in ${count} windows of ${perWindow}`);
        }
      }
    }),
    { numRuns: 30 },
  );
});

test('a saturated sender reaches its limit, to a unit per window', () => {
  const rate = new RateLimit(1_000_000, 0);
  let sent = 0;
  for (let now = 0; now < 10_000; now += 0.01) {
    now += rate.exceededFor(now);
    assert.equal(rate.exceededFor(now), 0);
    rate.spent(4096);
    sent += 4096;
  }
  assert.ok(sent >= 9_900_000 && sent <= 100 * (100_000 + 4096), `${sent}`);
});

// PL-32
test('a window is never closed early, and its budget is fresh afterwards', () => {
  const rate = new RateLimit(1000, 50);
  rate.spent(100);
  assert.equal(rate.exceededFor(60), 0, 'the budget itself is allowed');
  rate.spent(1);
  assert.equal(rate.exceededFor(60), 90);
  assert.equal(rate.exceededFor(149.5), 1);
  assert.equal(rate.exceededFor(150), 0);
  rate.spent(101);
  assert.equal(rate.exceededFor(249), 1);
});

test('0 is unlimited, and so is what rounds to it; a limit can be lifted within the window', () => {
  for (const limit of [0, 9]) {
    const rate = new RateLimit(limit, 0);
    rate.spent(1e12);
    assert.equal(rate.exceededFor(1), 0);
  }
  const rate = new RateLimit(1000, 0);
  rate.spent(1e9);
  assert.equal(rate.exceededFor(1), 99);
  rate.setLimit(0);
  assert.equal(rate.exceededFor(1), 0);
});

test('says how much room the window has, so that the last unit can be made to fit', () => {
  const limit = new RateLimit(10_000, 0);
  assert.equal(limit.left, 1000);
  limit.spent(700);
  assert.equal(limit.left, 300);
  limit.spent(700);
  assert.equal(limit.left, 0);
  assert.equal(limit.exceededFor(100), 0);
  assert.equal(limit.left, 1000);
  limit.setLimit(0);
  assert.equal(limit.left, Number.POSITIVE_INFINITY);
});
