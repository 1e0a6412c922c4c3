import assert from 'node:assert/strict';
import { test } from 'node:test';
import { defaultParameters } from './parameters.js';
import { Throttle } from './throttle.js';

const judge = (throttle: Throttle, dirtied: number, transferred: number): boolean =>
  throttle.judge(dirtied, transferred, defaultParameters);

// TH-1
test('two periods that do not converge make a step: initial, then increments, up to the maximum', () => {
  const throttle = new Throttle();
  const seen: number[] = [];
  for (let period = 0; period < 40; period += 1) {
    if (judge(throttle, 100, 100)) {
      seen.push(throttle.percentage);
    }
  }
  assert.deepEqual(seen.slice(0, 10), [20, 30, 40, 50, 60, 70, 80, 90, 99, 99]);
});

// TH-7
test('below the trigger ratio nothing is throttled', () => {
  const throttle = new Throttle();
  for (let period = 0; period < 10; period += 1) {
    assert.equal(judge(throttle, 50, 100), false);
  }
  assert.equal(throttle.percentage, 0);
});

// spec/algorithms.md 16, number 16
test('a good period takes a strike back', () => {
  const throttle = new Throttle();
  judge(throttle, 100, 100);
  judge(throttle, 10, 100);
  assert.equal(judge(throttle, 100, 100), false);
});
