// The engine around the bitmaps: how a migration ends, and what it says of itself.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RecordingSink, ScriptedGuest } from '../../test/source-kit.js';
import { MigrationSource, type MigrationSourceOptions } from './migration-source.js';
import { changeParameters, defaultParameters } from './parameters.js';
import type { MigrationReport } from './statistics.js';
import { createTrace, type TraceName } from './trace.js';

const source = (
  guest: ScriptedGuest,
  sink: RecordingSink,
  options: Partial<MigrationSourceOptions> = {},
): MigrationSource => new MigrationSource({ guest, sink, parameters: defaultParameters, ...options });

const assertDelivered = (guest: ScriptedGuest, sink: RecordingSink): void => {
  for (const block of guest.blocks.blocks) {
    for (let page = 0; page < block.usedPages; page += 1) {
      assert.equal(sink.delivered.get(`${block.name}:${page}`), guest.load(block, page), `${block.name} page ${page}`);
    }
  }
};

test('changes are checked against the parameters in effect, and one that is refused changes nothing', () => {
  const parameters = changeParameters(defaultParameters, { cpuThrottleInitial: 50 });
  const engine = source(new ScriptedGuest([1]), new RecordingSink(), { parameters });
  assert.throws(() => engine.setParameters({ maxCpuThrottle: 30 }), { code: 'PARAMETER_RANGE' });
  engine.setParameters({ cpuThrottleInitial: 20 });
  engine.setParameters({ maxCpuThrottle: 30 });
  assert.throws(() => engine.setParameters({ cpuThrottleInitial: 50, maxBandwidth: 1 }), { code: 'PARAMETER_RANGE' });
  engine.setParameters({ cpuThrottleInitial: 30 });
});

// ST-4, ST-6, ST-7, ST-8, ST-9, PL-9
test('a guest that does not write: every page once, zero and normal add up', async () => {
  const guest = new ScriptedGuest([100, 30]);
  const sink = new RecordingSink();
  guest.store(guest.blocks.blocks[0]!, 7, 9);
  const report = await source(guest, sink).run();
  assert.equal(report.status, 'completed');
  assert.equal(report.ram.normal, 1);
  assert.equal(report.ram.duplicate, 129);
  assert.equal(report.ram.total, 130 * 4096);
  assert.equal(report.ram.remaining, 0);
  assert.ok(report.ram['dirty-sync-count'] >= 2);
  assert.ok(report.downtime! <= report['total-time'] + 1);
  assert.ok(report.ram.transferred >= report.ram['precopy-bytes'] + report.ram['downtime-bytes']);
  assert.equal(guest.stops, 1);
  assert.equal(guest.running, false);
  assertDelivered(guest, sink);
});

// PL-34, G-7, G-8
test('a guest that writes until it is stopped: the last stores travel', async () => {
  const guest = new ScriptedGuest([300, 300]);
  const sink = new RecordingSink();
  let value = 1;
  sink.afterRead = ({ block, pages, count }) => {
    if (guest.running && value < 200) {
      guest.store(block, pages[count - 1]!, (value += 1));
    }
  };
  guest.beforeStop = () => {
    for (const block of guest.blocks.blocks) {
      guest.store(block, 299, 250);
    }
  };
  const report = await source(guest, sink).run();
  assert.equal(report.status, 'completed');
  assert.equal(sink.delivered.get('block0:299'), 250);
  assert.equal(sink.delivered.get('block1:299'), 250);
  assertDelivered(guest, sink);
  assert.ok(report.ramferry.iterations.length >= 2);
});

// CB-15
for (const [name, parameters] of Object.entries({
  'shift 6': { clearBitmapShift: 6 },
  'shift 12': { clearBitmapShift: 12 },
  'shift 18': { clearBitmapShift: 18 },
  'shift 31': { clearBitmapShift: 31 },
  'eager clearing': { eagerClear: true },
})) {
  test(`the destination's memory does not depend on the clear bitmap: ${name}`, async () => {
    const guest = new ScriptedGuest([1000, 77]);
    const sink = new RecordingSink();
    let count = 0;
    sink.beforeRead = ({ block, pages }) => {
      if (guest.running && count < 500) {
        count += 1;
        guest.store(block, (pages[0]! * 7 + count) % block.usedPages, count & 255);
      }
    };
    const report = await source(guest, sink, { parameters: changeParameters(defaultParameters, parameters) }).run();
    assert.equal(report.status, 'completed');
    assertDelivered(guest, sink);
  });
}

// TH-6: with a pass that takes a minute, throttling still gets its syncs, and its steps
test('auto-converge syncs every five seconds in the middle of a pass', async () => {
  const guest = new ScriptedGuest([2000]);
  const throttled: number[] = [];
  guest.throttle = (percentage) => throttled.push(percentage);
  let now = 0;
  const sink = new RecordingSink();
  sink.limit = 20;
  sink.afterRead = ({ block, pages, count }) => {
    now += 500;
    for (const page of pages.subarray(0, now < 40_000 ? count : 0)) {
      guest.store(block, page, 1);
    }
  };
  const report = await source(guest, sink, {
    parameters: changeParameters(defaultParameters, { autoConverge: true }),
    clock: { now: () => now, sleep: async () => {}, yield: async () => {} },
  }).run();
  assert.equal(report.status, 'completed');
  assert.ok(report.ram['dirty-sync-count'] > 8, `${report.ram['dirty-sync-count']} syncs`);
  // TH-1, TH-3
  assert.deepEqual(throttled.slice(0, 2), [20, 30]);
  assert.equal(throttled.at(-1), 0);
});

// CB-18
for (const [requested, used] of [
  [0, 6],
  [3, 6],
  [40, 31],
  [255, 31],
] as const) {
  test(`clear-bitmap-shift ${requested} is clamped to ${used}, said once`, async () => {
    const report = await source(new ScriptedGuest([64]), new RecordingSink(), {
      parameters: changeParameters(defaultParameters, { clearBitmapShift: requested }),
    }).run();
    assert.equal(report.ramferry.parameters['clear-bitmap-shift'], used);
    assert.equal(report.ramferry.warnings.length, 1);
    assert.match(report.ramferry.warnings[0]!, new RegExp(`${requested}.*using ${used}`));
  });
}

// PL-3, PL-4, PL-36, G-10
for (const hangIn of ['ready', 'flush', 'finish'] as const) {
  test(`a cancel while the sink hangs in ${hangIn} leaves the guest running, and another attempt works`, async () => {
    const guest = new ScriptedGuest([100]);
    const sink = new RecordingSink();
    sink.hangIn = hangIn;
    const migration = source(guest, sink);
    const ended = migration.run();
    await new Promise((resolve) => setTimeout(resolve, 20));
    migration.cancel();
    const report = await ended;
    assert.equal(report.status, 'cancelled');
    assert.equal(guest.running, true);
    migration.cancel();
    assert.equal(migration.state.value, 'cancelled');
    const retry = new RecordingSink();
    guest.store(guest.blocks.blocks[0]!, 1, 5);
    assert.equal((await source(guest, retry).run()).status, 'completed');
    assertDelivered(guest, retry);
  });
}

// PL-5, PL-36
for (const failIn of ['start', 'write', 'flush', 'devices', 'finish'] as const) {
  test(`a failure in ${failIn} is reported and leaves the guest running`, async () => {
    const guest = new ScriptedGuest([100]);
    const sink = new RecordingSink();
    sink.failIn = failIn;
    const migration = source(guest, sink);
    const report = await migration.run();
    assert.equal(report.status, 'failed');
    assert.equal(report['error-desc'], `${failIn} failed`);
    assert.equal(report.downtime, undefined);
    assert.equal(guest.running, true);
    migration.fail(new Error('later'));
    assert.equal(migration.error?.message, `${failIn} failed`);
  });
}

test('a paused guest is migrated and stays paused when that fails', async () => {
  const guest = new ScriptedGuest([10]);
  guest.running = false;
  const sink = new RecordingSink();
  sink.failIn = 'devices';
  assert.equal((await source(guest, sink).run()).status, 'failed');
  assert.equal(guest.running, false);
});

test('a second start of the same migration is refused', async () => {
  const migration = source(new ScriptedGuest([10]), new RecordingSink());
  await migration.run();
  await assert.rejects(migration.run(), { code: 'MIGRATION_IN_PROGRESS' });
});

// ST-11
test('progress is reported with increasing figures', async () => {
  const guest = new ScriptedGuest([2000]);
  const reports: MigrationReport[] = [];
  const sink = new RecordingSink();
  sink.limit = 16;
  let now = 0;
  await source(guest, sink, {
    clock: { now: () => (now += 5), sleep: async () => {}, yield: async () => {} },
    onProgress: (report) => reports.push(report),
  }).run();
  assert.ok(reports.length > 3);
  for (let index = 1; index < reports.length; index += 1) {
    assert.ok(reports[index]!.ram.transferred >= reports[index - 1]!.ram.transferred);
  }
});

// PL-27, PL-30
test('the bandwidth limit holds to within a page a window, and not in the stop-and-copy', async () => {
  const guest = new ScriptedGuest([4000]);
  for (let page = 0; page < 4000; page += 1) {
    guest.store(guest.blocks.blocks[0]!, page, 1);
  }
  const sink = new RecordingSink();
  let now = 0;
  let windowStart = 0;
  let windowBytes = 0;
  let largest = 0;
  let stopped = false;
  guest.beforeStop = () => {
    stopped = true;
    for (let page = 0; page < 1000; page += 1) {
      guest.store(guest.blocks.blocks[0]!, page, 2);
    }
  };
  sink.afterRead = ({ count }) => {
    if (!stopped) {
      windowBytes = now - windowStart >= 100 ? 0 : windowBytes;
      windowStart = now - windowStart >= 100 ? now : windowStart;
      windowBytes += count * 4104;
      largest = Math.max(largest, windowBytes);
    }
  };
  const limit = 10 * 1024 * 1024;
  const report = await source(guest, sink, {
    parameters: changeParameters(defaultParameters, { maxBandwidth: limit }),
    clock: {
      now: () => now,
      sleep: async (milliseconds) => {
        now += milliseconds;
      },
      yield: async () => {
        now += 0.01;
      },
    },
  }).run();
  assert.equal(report.status, 'completed');
  assert.ok(largest <= limit / 10 + 2 * 4104, `${largest} bytes in a window`);
  assert.ok(report['total-time'] >= 1000, `${report['total-time']} ms for 16 MB at 10 MiB/s`);
  assertDelivered(guest, sink);
});

test('trace events come with their arguments, and only those asked for', async () => {
  const seen: [TraceName, readonly (string | number)[]][] = [];
  await source(new ScriptedGuest([64]), new RecordingSink(), {
    trace: createTrace('migration_bitmap_*', (name, values) => seen.push([name, values])),
  }).run();
  assert.deepEqual(seen[0], ['migration_bitmap_sync_start', []]);
  assert.deepEqual(seen[1], ['migration_bitmap_sync_end', [0]]);
  assert.deepEqual(seen[2], ['migration_bitmap_clear_dirty', ['block0', 0, 64 * 4096, 0]]);
  assert.ok(seen.every(([name]) => name.startsWith('migration_bitmap_')));
});

test('parameters out of range are refused with what they expect', () => {
  assert.throws(() => changeParameters(defaultParameters, { downtimeLimit: 2_000_001 }), {
    code: 'PARAMETER_RANGE',
    message: /downtime-limit expects an integer from 0 to 2000000, got 2000001/,
  });
  assert.throws(() => changeParameters(defaultParameters, { maxCpuThrottle: 10 }), { code: 'PARAMETER_RANGE' });
  assert.throws(() => changeParameters(defaultParameters, { hintWaitMs: -1 }), {
    code: 'PARAMETER_RANGE',
    message: /hint-wait expects off, auto or a number of milliseconds, got -1/,
  });
});
