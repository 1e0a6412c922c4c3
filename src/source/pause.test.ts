import assert from 'node:assert/strict';
import { test } from 'node:test';
import { systemClock } from './clock.js';
import { Pause } from './pause.js';

// B13: a wait leaves nothing behind, neither at a signal nor as a timer
test('each wait has a signal of its own, with one listener that is gone afterwards', async () => {
  const signals = new Set<AbortSignal>();
  let added = 0;
  let removed = 0;
  const pause = new Pause({
    ...systemClock,
    sleep: (_milliseconds, signal) => {
      assert.ok(signal !== undefined && !signals.has(signal));
      signals.add(signal);
      const { addEventListener, removeEventListener } = signal;
      signal.addEventListener = (...args: Parameters<typeof addEventListener>) => {
        added += 1;
        addEventListener.apply(signal, args);
      };
      signal.removeEventListener = (...args: Parameters<typeof removeEventListener>) => {
        removed += 1;
        removeEventListener.apply(signal, args);
      };
      return systemClock.sleep(0, signal);
    },
  });
  for (let count = 0; count < 50; count += 1) {
    assert.equal(await pause.sleep(0), false);
  }
  assert.deepEqual([signals.size, added, removed], [50, 50, 50]);
});

test('a wait is cut short, and none begins after the end', async () => {
  const pause = new Pause(systemClock);
  const waiting = pause.sleep(60_000);
  pause.interrupt();
  assert.equal(await waiting, true);
  const last = pause.sleep(60_000);
  pause.end();
  assert.equal(await last, true);
  assert.equal(await pause.sleep(60_000), true);
});
