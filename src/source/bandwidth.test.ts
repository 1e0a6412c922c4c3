import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BandwidthWindow } from './bandwidth.js';

const limits = { downtimeLimit: 300, availSwitchoverBandwidth: 0, fixedMs: 0 };

// PL-31
test('the threshold is bytes per millisecond times milliseconds', () => {
  const window = new BandwidthWindow(0, 300);
  window.update(100, 1_000_000, 250, limits, 0);
  assert.equal(window.expected, 10_000);
  assert.equal(window.threshold, 3_000_000);
  assert.equal(window.mbps, 80);
  assert.equal(window.pagesPerSecond, 2500);
});

// PL-32
test('a window is never closed early', () => {
  const window = new BandwidthWindow(0, 300);
  assert.equal(window.update(99.9, 1_000_000, 0, limits, 0), undefined);
  assert.equal(window.threshold, 0);
  assert.equal(window.residualThreshold, 300_000);
  window.update(100, 1000, 0, limits, 0);
  assert.equal(window.residualThreshold, window.threshold);
});

// PL-33
test('an explicit switchover bandwidth decides, whatever is measured', () => {
  const window = new BandwidthWindow(0, 300);
  window.update(100, 5, 0, { ...limits, availSwitchoverBandwidth: 2_000_000 }, 0);
  assert.equal(window.threshold, 2000 * 300);
});

// spec/algorithms.md 16, number 14: a fetch must not depress the bandwidth
test('time spent in a log sync is not transfer time', () => {
  const window = new BandwidthWindow(0, 300);
  window.exclude(50);
  window.update(100, 1_000_000, 0, limits, 0);
  assert.equal(window.expected, 20_000);
});

test('fixed costs of the switchover leave less for RAM, and never less than nothing', () => {
  const window = new BandwidthWindow(0, 300);
  window.update(100, 1_000_000, 0, { ...limits, fixedMs: 100 }, 0);
  assert.equal(window.threshold, 2_000_000);
  window.update(200, 2_000_000, 0, { ...limits, fixedMs: 400 }, 0);
  assert.equal(window.threshold, 0);
});

// ST-12
test('the expected downtime stays as it was in a window that moved next to nothing', () => {
  const window = new BandwidthWindow(0, 300);
  window.update(100, 10_000, 0, limits, 5_000_000);
  assert.equal(window.expectedDowntime, 300);
  window.update(200, 2_010_000, 0, limits, 5_000_000);
  assert.equal(window.expectedDowntime, Math.round(5_000_000 / (2_010_000 / 200)));
});
