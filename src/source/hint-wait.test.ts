import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HintWait } from './hint-wait.js';

const PAGES_8_GIB = 2 ** 21;
const GBIT = 125_000_000;

// FH-22
test('a guest that never answers is given up after a share of what copying takes, and after a second at the latest', () => {
  for (const [maxBandwidth, periodMs] of [
    [0, 85],
    [10 * GBIT, 137],
    [GBIT, 999],
  ] as const) {
    const wait = new HintWait('auto', maxBandwidth, PAGES_8_GIB, 0);
    wait.update('requested', 0, periodMs);
    assert.equal(wait.holding, true, `${maxBandwidth} at ${periodMs} ms`);
    wait.update('requested', 0, periodMs + 1);
    assert.equal(wait.holding, false, `${maxBandwidth} after ${periodMs} ms`);
  }
});

test('a small guest gets time to answer too', () => {
  const wait = new HintWait('auto', 0, 64, 0);
  wait.update('requested', 0, 9);
  assert.equal(wait.holding, true);
});

// 1250 bytes a microsecond: 305 pages a millisecond, 6.9 s for all of them, of which 5 % are 343 ms.
const tenGbit = (): HintWait => new HintWait('auto', 10 * GBIT, PAGES_8_GIB, 0);

test('the wait goes on while it saves more than it costs, however unevenly hints come', () => {
  const wait = tenGbit();
  wait.update('start', 5, 300);
  assert.equal(wait.holding, true, 'a slow start');
  let pages = 0;
  for (let now = 320; now <= 5000; now += 20) {
    pages += now % 200 === 0 ? 0 : 7000;
    wait.update('start', pages, now);
    assert.equal(wait.holding, true, `at ${now} ms`);
  }
});

test('a sweep slower than copying costs 5 % at most, and the wait is over for good', () => {
  const wait = tenGbit();
  let now = 0;
  while (wait.holding && now < 10_000) {
    now += 10;
    wait.update('start', now * 200, now);
  }
  const lost = now - (now * 200) / 305;
  assert.ok(lost > 330 && lost < 350, `${lost} ms`);
  wait.update('start', now * 2000, now + 10);
  assert.equal(wait.holding, false);
});

test('what was saved is not spent on waiting for a guest that stands still', () => {
  const wait = tenGbit();
  wait.update('start', 1e6, 100);
  wait.update('start', 1e6, 440);
  assert.equal(wait.holding, true);
  wait.update('start', 1e6, 444);
  assert.equal(wait.holding, false);
});

test('the same sweep is waited for where the line is slower', () => {
  const wait = new HintWait('auto', GBIT, PAGES_8_GIB, 0);
  wait.update('start', 100 * 1001, 1001);
  assert.equal(wait.holding, true);
});

test("the guest's end marker ends the wait, whatever its limit", () => {
  for (const limit of ['auto', 60_000] as const) {
    const wait = new HintWait(limit, 0, PAGES_8_GIB, 0);
    wait.update('start', 5, 1);
    wait.update('stop', 5, 2);
    assert.equal(wait.holding, false);
  }
});

test('a number of milliseconds is kept, off and 0 hold back nothing', () => {
  const wait = new HintWait(500, 0, PAGES_8_GIB, 1000);
  wait.update('requested', 0, 1499);
  assert.equal(wait.holding, true);
  wait.update('requested', 0, 1500);
  assert.equal(wait.holding, false);
  for (const limit of ['off', 0] as const) {
    assert.equal(new HintWait(limit, 0, PAGES_8_GIB, 0).holding, false);
  }
});
