// Free page hints from driver to engine, step by step: what each status does with what the guest sends.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { ALL_FEATURES, balloonSetup, DATA_PAGE } from '../../test/balloon-kit.js';
import { DIMM_START, HIGH_START, LOW_BYTES } from '../../test/device-kit.js';
import { guestAddress } from '../memory/index.js';
import { BalloonFeature } from './balloon.js';
import { HINT_ID_MIN, HINT_RING_ENTRIES, HintWord, nextHintId } from './hint-exchange.js';
import { FULL_RING_MS } from './hint-receiver.js';
import { Interrupt } from './registers.js';

const FIRST_ID = HINT_ID_MIN + 1;
const noAcknowledge = ALL_FEATURES & ~BalloonFeature.acknowledgeHints;

describe('a round of hints', () => {
  test('shows the id from the request to the end marker, also once started', () => {
    const { driver, engine, serve, taken } = balloonSetup();
    driver.start(noAcknowledge);
    assert.deepEqual([driver.commandId, engine.status], [0, 'stop']);
    engine.request();
    assert.deepEqual([driver.commandId, engine.status], [FIRST_ID, 'requested']);
    assert.equal(driver.virtio.takeInterrupts() & Interrupt.configuration, Interrupt.configuration);
    driver.send(FIRST_ID);
    serve();
    assert.deepEqual([driver.commandId, engine.status], [FIRST_ID, 'start']);
    driver.send(undefined, [DATA_PAGE, 4], [DATA_PAGE + 8, 1]);
    driver.send(0);
    serve();
    // What was hinted before the end is still to be had: the guest is done, the engine is not.
    assert.deepEqual([driver.commandId, engine.status], [0, 'stop']);
    assert.deepEqual(taken(), [`pc.ram:${DATA_PAGE}+4`, `pc.ram:${DATA_PAGE + 8}+1`]);
    assert.equal(engine.stale, 0);
    engine.done();
    assert.deepEqual([driver.commandId, engine.status], [1, 'done']);
    assert.equal(driver.virtio.takeInterrupts() & Interrupt.configuration, Interrupt.configuration);
  });

  // FH-6
  test('hints that nobody asked for, or not yet, or not any more, are ignored and their elements returned', () => {
    const { driver, engine, serve, taken } = balloonSetup();
    driver.start();
    const hintNow = (): void => {
      const stale = engine.stale;
      const head = driver.send(undefined, [DATA_PAGE, 1]);
      serve();
      assert.deepEqual(taken(), []);
      assert.deepEqual(driver.returned(), [head]);
      assert.equal(engine.stale, stale + 1);
    };
    hintNow(); // stop
    engine.request();
    hintNow(); // requested
    driver.send(FIRST_ID);
    driver.send(0);
    serve();
    driver.returned();
    hintNow(); // ended by the guest
    driver.send(FIRST_ID); // which cannot start the same command again
    serve();
    driver.returned();
    hintNow();
    engine.done();
    hintNow(); // done: a driver that answers after the end
  });

  // FH-5, FH-7
  test('a stale start does not start, and nothing of an old id passes once it was stopped', () => {
    const { driver, engine, serve, taken } = balloonSetup();
    driver.start(noAcknowledge);
    engine.request();
    driver.send(FIRST_ID, [DATA_PAGE, 1]);
    serve();
    engine.stop();
    assert.equal(driver.commandId, 0);
    assert.deepEqual(taken(), []);
    assert.equal(engine.stale, 1);
    driver.send(undefined, [DATA_PAGE + 1, 1]);
    serve();
    engine.request();
    assert.deepEqual(taken(), []);
    for (const id of [FIRST_ID, FIRST_ID + 2, FIRST_ID - 1, 1, 0, 5, 0xffffffff]) {
      driver.send(id, [DATA_PAGE + 2, 1]);
      serve();
      assert.equal(engine.status, 'requested', `id ${id}`);
    }
    assert.deepEqual(taken(), []);
    driver.send(FIRST_ID + 1, [DATA_PAGE + 3, 1]);
    serve();
    assert.deepEqual(taken(), [`pc.ram:${DATA_PAGE + 3}+1`]);
  });

  // FH-9
  test('an end marker for an old command does not stop the new one', () => {
    const { driver, engine, serve, taken } = balloonSetup();
    driver.start(noAcknowledge);
    engine.request();
    driver.send(FIRST_ID);
    serve();
    engine.stop();
    engine.request();
    driver.send(0); // meant for the first
    serve();
    assert.equal(engine.status, 'requested');
    driver.send(FIRST_ID + 1, [DATA_PAGE, 1]);
    serve();
    assert.equal(engine.status, 'start');
    assert.deepEqual(taken(), [`pc.ram:${DATA_PAGE}+1`]);
  });

  // FH-10, FH-11
  test('every request has a new id, and ids wrap without ever being 0 or 1', () => {
    const { driver, engine, shared, serve, taken } = balloonSetup();
    driver.start(noAcknowledge);
    new Int32Array(shared.hints)[HintWord.lastId] = 0xfffffffe;
    const ids: number[] = [];
    for (let round = 0; round < 3; round += 1) {
      engine.request();
      ids.push(driver.commandId);
      driver.send(driver.commandId, [DATA_PAGE, 1]);
      serve();
      assert.equal(taken().length, 1);
      engine.stop();
    }
    assert.deepEqual(ids, [0xffffffff, HINT_ID_MIN, HINT_ID_MIN + 1]);
    fc.assert(
      fc.property(fc.integer({ min: HINT_ID_MIN, max: 0xffffffff }), (id) => {
        assert.equal(nextHintId(id | 0) >>> 0, id === 0xffffffff ? HINT_ID_MIN : id + 1);
      }),
    );
  });

  // FH-22
  test('a driver that never answers, or is not there, costs nothing', () => {
    const { driver, engine, serve, taken } = balloonSetup();
    engine.request();
    assert.equal(engine.status, 'stop');
    engine.done();
    driver.start();
    for (let round = 0; round < 3; round += 1) {
      engine.request();
      serve();
      assert.equal(engine.status, 'requested');
      assert.deepEqual(taken(), []);
      engine.stop();
    }
    engine.done();
    assert.equal(driver.commandId, 1);
  });

  // FH-13
  test('without the feature nothing is shown', () => {
    const { driver, engine } = balloonSetup();
    driver.start(ALL_FEATURES & ~BalloonFeature.freePageHint);
    engine.request();
    engine.done();
    assert.deepEqual([driver.commandId, engine.status], [0, 'stop']);
  });
});

describe('ranges', () => {
  test('are split at blocks, rounded inward, and end where memory ends', () => {
    const { driver, engine, serve, taken } = balloonSetup();
    driver.start(noAcknowledge);
    engine.request();
    driver.send(driver.commandId);
    const hint = (address: number, length: number): string[] => {
      driver.hints.add([], [{ address: guestAddress(address), length }]);
      serve();
      return taken();
    };
    assert.deepEqual(hint(DIMM_START + 100, 3 * GUEST_PAGE_SIZE), ['dimm0:1+2']); // FH-19
    assert.deepEqual(hint(DIMM_START + 1, 2 * GUEST_PAGE_SIZE - 2), []);
    assert.deepEqual(hint(DIMM_START, 0), []); // FH-27
    assert.deepEqual(hint(HIGH_START, GUEST_PAGE_SIZE), ['pc.ram:256+1']);
    assert.equal(engine.outside, 0);
    // FH-4: reported once for each hint, however much is missing
    assert.deepEqual(hint(LOW_BYTES - GUEST_PAGE_SIZE, 2 ** 32 - 1), ['pc.ram:255+1']);
    assert.deepEqual(hint(DIMM_START + LOW_BYTES - GUEST_PAGE_SIZE, LOW_BYTES), ['dimm0:255+1']);
    assert.deepEqual(hint(2 ** 52, GUEST_PAGE_SIZE), []);
    assert.equal(engine.outside, 3);
  });

  // FH-3, FH-19, FH-21: garbage, overlaps, duplicates
  test('name exactly the pages that lie whole in a buffer, up to where memory ends', () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(DIMM_START + 2 * LOW_BYTES), fc.nat(3 * LOW_BYTES)), { minLength: 1, maxLength: 4 }),
        (buffers) => {
          const { driver, engine, machine, serve, taken } = balloonSetup();
          driver.start(noAcknowledge);
          engine.request();
          driver.send(driver.commandId);
          driver.hints.add(
            [],
            buffers.map(([address, length]) => ({ address: guestAddress(address), length })),
          );
          serve();
          const expected = new Set<string>();
          for (const [address, length] of buffers) {
            const blockAt = (at: number): [string, number] | undefined => {
              const region = machine.regions.find(
                ({ guestAddress: start, bytes, offset, block }) =>
                  at >= start && at < start + Math.min(bytes, block.usedLength - offset),
              );
              return region && [region.block.name, (region.offset + at - region.guestAddress) / GUEST_PAGE_SIZE];
            };
            if (blockAt(address) === undefined) {
              continue;
            }
            for (
              let page = Math.ceil(address / GUEST_PAGE_SIZE) * GUEST_PAGE_SIZE;
              page + GUEST_PAGE_SIZE <= address + length;
              page += GUEST_PAGE_SIZE
            ) {
              const found = blockAt(page);
              if (found === undefined) {
                break;
              }
              expected.add(found.join(':'));
            }
          }
          const pages = taken().flatMap((range) => {
            const [block, first, count] = range.split(/[:+]/) as [string, string, string];
            return Array.from({ length: Number(count) }, (_, index) => `${block}:${Number(first) + index}`);
          });
          assert.deepEqual([...new Set(pages)].sort(), [...expected].sort());
        },
      ),
      { numRuns: 50 },
    );
  });
});

describe('acknowledge mode', () => {
  // FH-29
  test('an element returns when its ranges were applied, in order, and not before', () => {
    const { driver, engine, serve, device } = balloonSetup();
    driver.start();
    assert.ok(engine.acknowledged);
    engine.request();
    const heads = [driver.send(driver.commandId), driver.send(undefined, [128, 1]), driver.send(undefined, [129, 1])];
    serve();
    assert.deepEqual(driver.returned(), heads.slice(0, 1));
    const range = { blockId: 0, firstPage: 0, pageCount: 0 };
    assert.ok(engine.next(range));
    serve();
    assert.deepEqual(driver.returned(), []);
    const doorbell = device.virtio.doorbell;
    engine.acknowledge();
    assert.notEqual(device.virtio.doorbell, doorbell);
    serve();
    assert.deepEqual(driver.returned(), heads.slice(1, 2));
    engine.stop(); // dropped
    serve();
    assert.deepEqual(driver.returned(), heads.slice(2));
  });

  test('without it, an element returns when its ranges are in the ring', () => {
    const { driver, engine, serve } = balloonSetup();
    driver.start(noAcknowledge);
    assert.ok(!engine.acknowledged);
    engine.request();
    driver.send(driver.commandId, [128, 1]);
    serve();
    assert.equal(driver.returned().length, 1);
  });
});

describe('a full ring', () => {
  const fill = (features: bigint, now: () => number) => {
    const setup = balloonSetup({ now });
    const { driver, engine, serve } = setup;
    driver.start(features);
    engine.request();
    driver.send(driver.commandId);
    // One element of many ranges, repeated: 32 descriptors each.
    const ranges = Array.from({ length: 32 }, (_, index) => [DATA_PAGE + 2 * index, 1] as const);
    for (let count = 0; count <= HINT_RING_ENTRIES; count += 32) {
      driver.send(undefined, ...ranges);
      serve();
      driver.returned();
    }
    return setup;
  };

  test('makes the guest wait, never the engine, and goes on as the engine takes', () => {
    const { engine, driver, serve, taken, device } = fill(noAcknowledge, () => 0);
    assert.equal(driver.hints.inFlight, 1);
    const doorbell = device.virtio.doorbell;
    assert.equal(taken().length, HINT_RING_ENTRIES);
    assert.notEqual(device.virtio.doorbell, doorbell);
    serve();
    assert.equal(taken().length, 32);
    assert.equal(driver.returned().length, 1);
    assert.equal(engine.dropped, 0);
  });

  test('drops hints when the engine does not come back for long', () => {
    let clock = 0;
    const { engine, driver, serve, taken } = fill(noAcknowledge, () => clock);
    clock += FULL_RING_MS - 1;
    serve();
    assert.equal(driver.hints.inFlight, 1);
    clock += 1;
    serve();
    assert.equal(driver.returned().length, 1);
    assert.equal(engine.dropped, 32);
    assert.equal(taken().length, HINT_RING_ENTRIES);
  });

  test('is no obstacle to a stop, nor to the next round', () => {
    const { engine, driver, serve, taken } = fill(noAcknowledge, () => 0);
    engine.stop();
    serve();
    driver.returned();
    assert.equal(driver.hints.inFlight, 0);
    assert.equal(engine.stale, HINT_RING_ENTRIES + 32);
    engine.request();
    driver.send(driver.commandId, [DATA_PAGE, 1]);
    serve();
    assert.equal(taken().length, 1);
  });
});

describe('a reset', () => {
  // FH-24
  test('ends hinting: what was hinted before is void, and the same id cannot be started again', () => {
    const { driver, engine, serve, taken } = balloonSetup();
    driver.start();
    engine.request();
    driver.send(FIRST_ID, [DATA_PAGE, 1]);
    serve();
    driver.virtio.requestReset();
    serve();
    assert.ok(driver.virtio.isReset);
    assert.equal(engine.status, 'stop');
    assert.deepEqual(taken(), []);
    driver.start();
    assert.equal(driver.commandId, 0);
    driver.send(FIRST_ID, [DATA_PAGE, 1]);
    serve();
    assert.deepEqual(taken(), []);
    engine.stop();
    engine.request();
    driver.send(FIRST_ID + 1, [DATA_PAGE, 1]);
    serve();
    assert.equal(taken().length, 1);
  });

  test('waits for a range that is being applied', () => {
    const { driver, engine, serve, device } = balloonSetup();
    driver.start();
    engine.request();
    driver.send(FIRST_ID, [DATA_PAGE, 1]);
    serve();
    assert.ok(engine.next({ blockId: 0, firstPage: 0, pageCount: 0 }));
    driver.virtio.requestReset();
    assert.ok(device.service());
    assert.ok(!driver.virtio.isReset);
    engine.acknowledge();
    serve();
    assert.ok(driver.virtio.isReset);
  });
});
