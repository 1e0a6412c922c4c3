// Free page hints, the engine's end (spec/algorithms.md 3(f)). Schedules: schedules.test.ts. Rings, ids and markers are
// the device's, and tested there.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { PAGE, RecordingSink, ScriptedGuest, ScriptedHints } from '../../test/source-kit.js';
import type { RamBlock } from '../memory/ram-block.js';
import { MigrationSource, type MigrationSourceOptions } from './migration-source.js';
import { changeParameters, defaultParameters } from './parameters.js';
import type { MigrationReport } from './statistics.js';

interface World {
  readonly guest: ScriptedGuest;
  readonly hints: ScriptedHints;
  readonly sink: RecordingSink;
  readonly block: RamBlock;
}

const world = (pages: readonly number[] = [512]): World => {
  const guest = new ScriptedGuest(pages);
  const hints = new ScriptedHints();
  guest.hints = hints;
  const sink = new RecordingSink();
  // Small batches: hints come between them.
  sink.limit = 16;
  return { guest, hints, sink, block: guest.blocks.blocks[0]! };
};

const migrate = (
  { guest, sink }: World,
  options: Partial<Omit<MigrationSourceOptions, 'guest' | 'sink'>> = {},
): Promise<MigrationReport> => new MigrationSource({ guest, sink, parameters: defaultParameters, ...options }).run();

/** Runs once, at the first request. */
const atFirstRequest = ({ hints }: World, act: () => void): void => {
  hints.onRequest = () => {
    if (hints.id === 1) {
      act();
    }
  };
};

/** Every page holds at the destination what it holds here, those that are free excepted. */
const assertDelivered = ({ guest, sink }: World, isFree: (page: number) => boolean = () => false): void => {
  for (const block of guest.blocks.blocks) {
    for (let page = 0; page < block.usedPages; page += 1) {
      if (!isFree(page)) {
        assert.equal(
          sink.delivered.get(`${block.name}:${page}`),
          guest.load(block, page),
          `${block.name} page ${page}`,
        );
      }
    }
  }
};

for (const acknowledged of [false, true]) {
  const mode = acknowledged ? 'acknowledged' : 'unacknowledged';

  // FH-1, FH-2, FH-15, FH-18, FH-21, FH-28
  test(`${mode}: what is hinted does not travel, counts once, and does not come back`, async () => {
    const it = world();
    it.hints.acknowledged = acknowledged;
    // Marks that the sync has seen must not bring the pages back.
    for (let page = 0; page < 512; page += 1) {
      it.guest.store(it.block, page, 7);
    }
    atFirstRequest(it, () => {
      it.hints.hint(it.block, 100, 100);
      it.hints.hint(it.block, 150, 100);
      it.hints.hint(it.block, 100, 100);
      it.hints.hint(it.block, 300, 0);
      it.hints.end();
    });
    const report = await migrate(it);
    assert.equal(report.status, 'completed');
    assert.deepEqual(report.ramferry.hints, { pages: 300, honoured: 150, stale: 0 });
    assert.equal(report.ram.normal + report.ram.duplicate, 512 - 150);
    assert.equal(it.sink.delivered.has('block0:249'), false);
    assertDelivered(it, (page) => page >= 100 && page < 250);
  });

  // FH-14
  test(`${mode}: a page written after its hint was applied is sent`, async () => {
    const it = world();
    it.hints.acknowledged = acknowledged;
    atFirstRequest(it, () => {
      it.hints.hint(it.block, 0, 256);
      it.hints.end();
    });
    it.sink.beforeRead = () => {
      if (it.guest.running) {
        it.guest.store(it.block, 77, 3);
      }
    };
    await migrate(it);
    assert.equal(it.sink.delivered.get('block0:77'), 3);
    assertDelivered(it, (page) => page < 256 && page !== 77);
  });

  // CB-15
  for (const [name, parameters] of Object.entries({
    'shift 6': { clearBitmapShift: 6 },
    'shift 18': { clearBitmapShift: 18 },
    'shift 31': { clearBitmapShift: 31 },
    'eager clearing': { eagerClear: true },
  })) {
    test(`${mode}: the destination's memory does not depend on the clear bitmap: ${name}`, async () => {
      const it = world([1000, 77]);
      it.hints.acknowledged = acknowledged;
      let count = 0;
      it.hints.onRequest = () => it.hints.hint(it.block, 500 + it.hints.id, 300);
      it.sink.beforeRead = ({ block, pages }) => {
        if (it.guest.running && count < 300) {
          count += 1;
          it.guest.store(block, (pages[0]! * 7 + count) % block.usedPages, count & 255);
        }
      };
      const report = await migrate(it, { parameters: changeParameters(defaultParameters, parameters) });
      assert.equal(report.status, 'completed');
      assert.ok(report.ramferry.hints.honoured > 0);
      // A free page that was written after its last hint is there; one that was not may be.
      assertDelivered(it, (page) => page >= 501 && page < 820 && !it.sink.delivered.has(`block0:${page}`));
    });
  }

  // FH-21, FH-29, G-2, G-8
  test(`${mode}: whatever is hinted and taken back, every page in use arrives`, async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer(), fc.integer({ min: 6, max: 9 }), async (seed, clearBitmapShift) => {
        const it = world([300, 64]);
        it.hints.acknowledged = acknowledged;
        const guest = new ForgetfulGuest(it, seed);
        it.hints.onRequest = () => guest.act();
        it.hints.onAcknowledge = () => guest.acknowledged();
        it.sink.beforeRead = () => guest.act();
        it.sink.afterRead = () => guest.act();
        it.guest.beforeStop = () => guest.act();
        const report = await migrate(it, {
          parameters: changeParameters(defaultParameters, { clearBitmapShift, hintWaitMs: 'off' }),
        });
        assert.equal(report.status, 'completed', report['error-desc']);
        assertDelivered(it, (page) => guest.free.has(page));
      }),
      { numRuns: process.env['RAMFERRY_SLOW'] === '1' ? 2000 : 60 },
    );
  });
}

/** A guest that frees, hints, takes back and writes pages of its first block at random. */
class ForgetfulGuest {
  /** Pages whose content does not matter. */
  readonly free = new Set<number>();
  readonly #world: World;
  /** Hinted and not yet acknowledged. */
  readonly #pending = new Set<number>();
  #state: number;
  #steps = 400;

  constructor(it: World, seed: number) {
    this.#world = it;
    this.#state = seed;
  }

  acknowledged(): void {
    this.#pending.clear();
  }

  act(): void {
    const { guest, hints, block } = this.#world;
    for (let count = this.#random(6); count > 0 && guest.running && this.#steps > 0; count -= 1) {
      this.#steps -= 1;
      const page = this.#random(300);
      if (this.#random(3) === 0) {
        const last = Math.min(300, page + this.#random(40));
        for (let freed = page; freed < last; freed += 1) {
          this.free.add(freed);
          // What a guest does that clears pages when it allocates them to hint them.
          guest.store(block, freed, 0);
          this.#pending.add(freed);
        }
        if (hints.status === 'requested' || hints.status === 'start') {
          hints.hint(block, page, last - page);
        }
      } else if (!(hints.acknowledged && this.#pending.has(page))) {
        this.free.delete(page);
        guest.store(block, page, 1 + this.#random(255));
      }
    }
  }

  #random(bound: number): number {
    this.#state = (Math.imul(this.#state, 1664525) + 1013904223) >>> 0;
    return Math.floor((this.#state / 2 ** 32) * bound);
  }
}

// The residual hazard of spec/algorithms.md 3(c): QEMU loses this write
test('a page taken back and written before its hint was looked at is sent, though the last sync had its mark', async () => {
  const it = world();
  it.hints.onRequest = () => {
    if (it.hints.id === 2) {
      it.hints.hint(it.block, 0, 64);
      it.guest.store(it.block, 40, 2);
    }
  };
  // Two pages of one chunk are dirty at the second sync: sending one pays the debt of the other.
  it.sink.afterRead = ({ pages }) => {
    if (pages[0] === 496 && it.hints.id === 1) {
      it.guest.store(it.block, 40, 1);
      it.guest.store(it.block, 450, 1);
    }
  };
  const report = await migrate(it, { parameters: changeParameters(defaultParameters, { downtimeLimit: 0 }) });
  assert.equal(report.ramferry.hints.honoured, 1);
  assertDelivered(it);
});

test('acknowledged: what the guest cleared to hint it does not come back, with lazy clearing left as it is', async () => {
  const it = world();
  it.hints.acknowledged = true;
  let acknowledgements = 0;
  it.hints.onAcknowledge = () => {
    acknowledgements += 1;
  };
  atFirstRequest(it, () => {
    for (let page = 128; page < 512; page += 1) {
      it.guest.store(it.block, page, 0);
    }
    it.hints.hint(it.block, 128, 384);
    it.hints.end();
  });
  const report = await migrate(it, { parameters: changeParameters(defaultParameters, { clearBitmapShift: 6 }) });
  assert.equal(report.ram.normal + report.ram.duplicate, 128);
  assert.equal(acknowledgements, 1);
  // CB-6: one clear for the hint, and one for each of the two chunks of which pages were read.
  assert.equal(report.ramferry.logClears.calls, 3);
});

// A store of a device is in dirty memory alone, and another client's sync moves marks there: neither is lost
test('what other layers hold of writes after the request is sent', async () => {
  const it = world();
  atFirstRequest(it, () => {
    it.hints.hint(it.block, 0, 512);
    it.guest.store(it.block, 9, 9);
    it.guest.blocks.dirty.setPage((it.block.ramPage + 10) as never, 4);
    it.guest.log.sync(it.block, false);
    it.hints.end();
  });
  await migrate(it);
  assert.deepEqual([...it.sink.delivered.keys()].sort(), ['block0:10', 'block0:9']);
});

// FH-7, FH-8, FH-11, FH-12: the order around every sync, the first included
test('stop before each sync, a new id after it, done before device state is saved', async () => {
  const it = world();
  const order = it.hints.calls;
  const { sync } = it.guest.log;
  it.guest.log.sync = (block, last) => {
    order.push(last ? 'last sync' : 'sync');
    return sync.call(it.guest.log, block, last);
  };
  const saveDevices = it.guest.saveDevices.bind(it.guest);
  it.guest.saveDevices = () => {
    order.push('devices');
    return saveDevices();
  };
  await migrate(it);
  const text = order.join(' ');
  assert.match(text, /^(stop sync request )+stop last sync done devices done$/);
  assert.equal(it.hints.id, order.filter((call) => call === 'sync').length);
});

// FH-7, FH-8: even if the ring holds something that looks current
test('no hint acts between the stop and the next request, nor after the switchover', async () => {
  const it = world();
  const { sync } = it.guest.log;
  it.guest.log.sync = (block, last) => {
    it.hints.hint(it.block, 0, 512);
    return sync.call(it.guest.log, block, last);
  };
  // What is left for the switchover.
  it.guest.beforeStop = () => it.guest.store(it.block, 5, 9);
  const report = await migrate(it);
  // The hint given before the first request is stale; the one before the last sync is never taken.
  assert.equal(report.ramferry.hints.honoured, 0);
  assertDelivered(it);
});

// FH-13, FH-26
for (const [end, prepare] of Object.entries({
  failure: (it: World): void => {
    it.sink.failIn = 'write';
  },
  'a failing setup': (it: World): void => {
    it.sink.failIn = 'start';
  },
})) {
  test(`after ${end} the guest gets its pages back`, async () => {
    const it = world();
    prepare(it);
    const report = await migrate(it);
    assert.equal(report.status, 'failed');
    assert.equal(it.hints.calls.at(-1), 'done');
    assert.equal(it.guest.running, true);
  });
}

// FH-13
test('after a cancel the guest gets its pages back, in the middle of its sweep too', async () => {
  const it = world();
  it.hints.onRequest = () => it.hints.hint(it.block, 0, 10);
  const migration = new MigrationSource({
    guest: it.guest,
    sink: it.sink,
    parameters: changeParameters(defaultParameters, { hintWaitMs: 60_000 }),
  });
  const running = migration.run();
  setTimeout(() => migration.cancel(), 20);
  assert.equal((await running).status, 'cancelled');
  assert.equal(it.hints.calls.at(-1), 'done');
  assert.equal(it.sink.delivered.size, 0);
});

// AFTER-SYNC with the guest stopped
test('a guest that is paused is not asked', async () => {
  const it = world();
  it.guest.running = false;
  const report = await migrate(it);
  assert.equal(report.status, 'completed');
  assert.equal(it.hints.id, 0);
  assert.equal(it.hints.status, 'done');
});

// FH-4, FH-17, FH-27
test('hints outside the blocks are dropped with one warning; a block that is not migrated is left alone', async () => {
  const it = world([512]);
  it.guest.blocks.add({ name: 'rom', usedLength: 64 * PAGE, ignored: true });
  const rom = it.guest.blocks.blocks.find(({ name }) => name === 'rom')!;
  atFirstRequest(it, () => {
    it.hints.hint({ id: 99 }, 0, 10);
    it.hints.hint(it.block, 500, 100);
    it.hints.hint(it.block, 512, 1);
    it.hints.hint(it.block, 2 ** 31, 2 ** 31);
    it.hints.hint(rom, 0, 64);
    it.hints.outside += 3;
    it.hints.end();
  });
  // Of an earlier migration.
  it.hints.outside = 40;
  it.hints.stale = 7;
  const report = await migrate(it);
  assert.equal(report.status, 'completed');
  assert.deepEqual(report.ramferry.hints, { pages: 12, honoured: 12, stale: 0 });
  assert.deepEqual(report.ramferry.warnings, [
    'The guest hinted what is no guest memory as free, 7 times: that was ignored',
  ]);
});

// FH-20
test('hints for what a RamDiscardManager has discarded are worth nothing: those pages were not to be sent anyway', async () => {
  const it = world([64]);
  const granule = 16 * PAGE;
  const vmem = it.guest.blocks.add({ name: 'vmem', usedLength: 8 * granule, discardGranularity: granule });
  vmem.discardManager!.populate(0, 2 * granule);
  atFirstRequest(it, () => {
    // The second granule, which is populated, and three that are not.
    it.hints.hint(vmem, 16, 4 * 16);
    it.hints.end();
  });
  const report = await migrate(it);
  assert.equal(report.status, 'completed');
  assert.deepEqual(report.ramferry.hints, { pages: 4 * 16, honoured: 16, stale: 0 });
  assert.equal(report.ram.normal + report.ram.duplicate, 64 + 16);
  assertDelivered(it, (page) => page >= 16);
});

test('a driver that broke the protocol is named', async () => {
  const it = world();
  atFirstRequest(it, () => {
    it.hints.isBroken = true;
    it.hints.end();
  });
  const report = await migrate(it);
  assert.equal(report.status, 'completed');
  assert.match(report.ramferry.warnings.join(), /balloon driver broke the protocol/);
  assertDelivered(it);
});

// FH-22
test('a guest that never answers costs no page and hardly any time', async () => {
  const it = world();
  const report = await migrate(it);
  assert.equal(report.status, 'completed');
  assertDelivered(it);
  assert.ok(report['total-time'] < 2000);
});

test('the first pass waits for the sweep, and meanwhile sends only what the sweep has passed over', async () => {
  const it = world();
  const sweep = [0, 16, 32, 64, 300].values();
  let first = sweep.next();
  const timer = setInterval(() => {
    if (first.done === true) {
      it.hints.end();
      clearInterval(timer);
      return;
    }
    it.hints.hint(it.block, first.value, 8);
    first = sweep.next();
  }, 5);
  const order: number[] = [];
  it.sink.beforeRead = ({ pages, count }) => order.push(...pages.subarray(0, count));
  const report = await migrate(it, { parameters: changeParameters(defaultParameters, { hintWaitMs: 60_000 }) });
  assert.equal(report.status, 'completed');
  assert.equal(report.ramferry.hints.honoured, 40, 'nothing was copied before it was hinted');
  assert.deepEqual(order.slice(0, 40), [
    ...Array.from({ length: 8 }, (_, index) => 8 + index),
    ...Array.from({ length: 8 }, (_, index) => 24 + index),
    ...Array.from({ length: 24 }, (_, index) => 40 + index),
  ]);
});
