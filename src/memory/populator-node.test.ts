import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { BackgroundPopulator } from './populator-node.js';
import { Segment } from './segment.js';

const MIB = 2 ** 20;
const skip = process.platform === 'linux' ? false : 'needs /proc';
const residentBytes = (): number => Number(readFileSync('/proc/self/statm', 'utf8').split(' ')[1]) * 4096;

test('what is asked for becomes resident, and no store of another thread is lost', {
  skip,
  timeout: 60_000,
}, async () => {
  const populator = new BackgroundPopulator();
  try {
    for (const segment of [Segment.create({ ramBytes: 128 * MIB }), Segment.create({ ramBytes: 128 * MIB })]) {
      const before = residentBytes();
      populator.populate(segment, 32 * MIB, 96 * MIB);
      // Meanwhile this thread stores to every page, as loading does; each page has its own value.
      for (let round = 1; round <= 3; round += 1) {
        for (let page = (32 * MIB) / 4096; page < (96 * MIB) / 4096; page += 7) {
          segment.words[page * 1024] = page * 4 + round;
        }
      }
      while (residentBytes() - before < 63 * MIB) {
        await sleep(5);
      }
      for (let page = (32 * MIB) / 4096; page < (96 * MIB) / 4096; page += 1) {
        const stored = (page - (32 * MIB) / 4096) % 7 === 0;
        assert.equal(segment.words[page * 1024], stored ? page * 4 + 3 : 0);
      }
    }
  } finally {
    await populator.close();
  }
});
