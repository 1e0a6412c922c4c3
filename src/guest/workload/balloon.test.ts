// The balloon of the workload guest, driver and device in their threads; the engine's part is played by the test.

import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { HintedRange, HintSource } from '../../source/guest.js';
import { MAX_ORDER_PAGES } from './page-allocator.js';
import { WorkloadGuest, type WorkloadOptions } from './workload-guest-node.js';

const MIB = 2 ** 20;

const guests: WorkloadGuest[] = [];
afterEach(() => Promise.all(guests.splice(0).map((guest) => guest.shutdown())));

const started = async (options: Partial<WorkloadOptions> = {}) => {
  const guest = WorkloadGuest.create({
    memoryBytes: 64 * MIB,
    segmentBytes: 32 * MIB,
    workingSetBytes: 12 * MIB,
    workload: 'idle',
    freePageHints: true,
    ...options,
  });
  guests.push(guest);
  await guest.start();
  return { guest, hints: guest.source.hints! };
};

/** Takes hints until `done` says so, `milliseconds` at most. Returns the ranges as `block id:first+count`. */
const take = async (hints: HintSource, done: () => boolean, milliseconds = 10_000): Promise<HintedRange[]> => {
  const taken: HintedRange[] = [];
  const range = { blockId: 0, firstPage: 0, pageCount: 0 };
  for (const until = performance.now() + milliseconds; ; await sleep(1)) {
    const isDone = done();
    while (hints.next(range)) {
      taken.push({ ...range });
    }
    if (isDone || performance.now() > until) {
      assert.ok(isDone, 'in time');
      return taken;
    }
  }
};

const swept = (hints: HintSource) => () => hints.status === 'stop';

const assertIntact = (guest: WorkloadGuest): void => {
  const { bad, staleTables } = guest.verify();
  assert.deepEqual([bad, staleTables, guest.counters().bad], [0, [], 0]);
};

describe('balloon of the workload guest', () => {
  for (const acknowledgeHints of [true, false]) {
    const kind = acknowledgeHints ? 'acknowledged' : 'as Linux has it';

    test(`${kind}: reports all that is free in whole blocks, once, and takes it back at the end`, async () => {
      const { guest, hints } = await started({ acknowledgeHints, pagePoison: true });
      assert.equal(hints.acknowledged, acknowledgeHints);
      hints.request();
      const ranges = await take(hints, swept(hints));
      // 52 MiB are free; what is no whole block at the edges of the two writers' regions is not reported.
      assert.ok(ranges.length >= 10 && ranges.length <= 13, `${ranges.length} blocks`);
      assert.ok(ranges.every(({ firstPage, pageCount }) => firstPage % 1024 === 0 && pageCount === MAX_ORDER_PAGES));
      assert.equal(new Set(ranges.map(({ firstPage }) => firstPage)).size, ranges.length);
      hints.acknowledge();
      hints.stop();
      hints.request();
      assert.deepEqual(await take(hints, swept(hints)), [], 'what is held is not reported again');
      hints.done();
      await guest.balloonIdle();
      await guest.stop();
      // FH-30: the poison is there again, or the verifier would complain.
      assertIntact(guest);
      await guest.resume();
      hints.request();
      assert.equal((await take(hints, swept(hints))).length, ranges.length);
    });

    // FH-29, FH-14
    test(`${kind}: under pressure the guest takes back blocks that were ${acknowledgeHints ? 'acknowledged, no others' : 'reported'}`, async () => {
      const { guest, hints } = await started({
        acknowledgeHints,
        workload: 'build',
        workingSetBytes: 64 * MIB,
        rate: MIB,
      });
      const busy = async (): Promise<number> => {
        const before = guest.counters();
        guest.setRate(0);
        for (let waited = 0; waited < 300 && guest.counters().blocksTakenBack === before.blocksTakenBack; waited += 1) {
          await sleep(1);
        }
        guest.setRate(MIB);
        return guest.counters().blocksTakenBack - before.blocksTakenBack;
      };
      hints.request();
      // Not acknowledged yet, if that matters.
      const ranges = await take(hints, () => hints.status === 'stop');
      assert.ok(ranges.length > 0);
      const early = await busy();
      assert.equal(early > 0, !acknowledgeHints, `${early} blocks were taken back before they were acknowledged`);
      hints.acknowledge();
      const late = await busy();
      assert.ok(early + late > 0);
      hints.done();
      await guest.balloonIdle();
      await guest.stop();
      assertIntact(guest);
    });
  }

  // FH-23
  test('a guest that is stopped in the middle goes on under the same id', async () => {
    const { guest, hints } = await started({ memoryBytes: 256 * MIB, initOnAlloc: true });
    hints.request();
    await take(hints, () => guest.counters().blocksReported >= 5);
    await guest.stop();
    const { blocksReported } = guest.counters();
    assert.ok(blocksReported < 50, `${blocksReported} blocks`);
    await sleep(20);
    assert.equal(guest.counters().blocksReported, blocksReported);
    assertIntact(guest);
    await guest.resume();
    await take(hints, swept(hints));
    assert.ok(guest.counters().blocksReported > 55);
  });

  // FH-9, FH-11
  test('a new id in the middle of a sweep: the rest is reported under the new one', async () => {
    const { guest, hints } = await started({ memoryBytes: 256 * MIB, initOnAlloc: true });
    let blocks = 0;
    for (let round = 0; round < 4; round += 1) {
      hints.request();
      const before = guest.counters().blocksReported;
      blocks += (await take(hints, () => guest.counters().blocksReported > before + 3)).length;
      hints.acknowledge();
      hints.stop();
    }
    hints.request();
    blocks += (await take(hints, swept(hints))).length;
    // What was in the ring when an id ended is lost to the migration, and to nobody else; how much that is, is up to the scheduler.
    assert.ok(blocks > 0 && blocks + hints.stale >= guest.counters().blocksReported, `${blocks}, ${hints.stale} stale`);
    hints.done();
    await guest.balloonIdle();
    await guest.stop();
    assertIntact(guest);
  });
});
