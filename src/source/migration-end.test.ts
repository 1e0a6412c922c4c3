// What the engine owes everybody when a migration ends, and before it says that it may end.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PAGE, RecordingSink, ScriptedGuest } from '../../test/source-kit.js';
import type { RamBlock } from '../memory/ram-block.js';
import { MigrationSource } from './migration-source.js';
import { defaultParameters } from './parameters.js';

/** A sink that counts how often it is told to drop everything. */
class CountingSink extends RecordingSink {
  aborts = 0;

  override abort(reason: Error): void {
    this.aborts += 1;
    super.abort(reason);
  }
}

const source = (guest: ScriptedGuest, sink: RecordingSink, downtimeLimit = defaultParameters.downtimeLimit) =>
  new MigrationSource({ guest, sink, parameters: { ...defaultParameters, downtimeLimit } });

const marksOf = ({ blocks: { bitmaps } }: ScriptedGuest, block: RamBlock): number =>
  bitmaps.kernels.countRange(block.bitmaps.remote, 0, block.usedPages);

// TS-17, G-3: a store costs nothing outside of migrations, and no layer keeps bits that nobody will ask for
for (const end of ['completed', 'cancelled', 'failed'] as const) {
  test(`a migration that is ${end} leaves no log, no tracking and no throttle on`, async () => {
    const guest = new ScriptedGuest([100]);
    const [block] = guest.blocks.blocks;
    const throttled: number[] = [];
    guest.throttle = (percentage) => throttled.push(percentage);
    const sink = new RecordingSink();
    const migration = source(guest, sink);
    sink.beforeRead = () => {
      assert.ok(guest.blocks.dirty.migrationTracking);
      guest.store(block!, 5, 1);
      assert.ok(marksOf(guest, block!) > 0, 'the log records');
      if (end === 'cancelled') {
        migration.cancel();
      } else if (end === 'failed') {
        throw new Error('a full disk');
      }
      sink.beforeRead = () => {};
    };
    assert.equal((await migration.run()).status, end);
    assert.equal(guest.blocks.dirty.migrationTracking, false);
    assert.equal(throttled.at(-1) ?? 0, 0);
    const before = marksOf(guest, block!);
    for (let page = 0; page < 100; page += 1) {
      guest.store(block!, page, 7);
    }
    assert.equal(marksOf(guest, block!), before, 'the log still records');
  });
}

// PL-4: whoever cancels one instant after the end must not take down what both sides have agreed on
for (const end of ['completed', 'cancelled', 'failed'] as const) {
  test(`a cancel after the migration is ${end} does nothing at all`, async () => {
    const guest = new ScriptedGuest([100]);
    const sink = new CountingSink();
    sink.failIn = end === 'failed' ? 'devices' : undefined;
    const migration = source(guest, sink);
    if (end === 'cancelled') {
      sink.beforeRead = () => migration.cancel();
    }
    const report = await migration.run();
    assert.equal(report.status, end);
    const { aborts } = sink;
    const { running, resumes } = guest;
    assert.equal(migration.cancel(), false, 'a cancel has no effect any more');
    assert.equal(migration.fail(new Error('too late')), false);
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(migration.state.value, end);
    assert.notEqual(migration.error?.message, 'too late');
    assert.deepEqual([sink.aborts, guest.running, guest.resumes], [aborts, running, resumes]);
    assert.equal(migration.report()['error-desc'], report['error-desc']);
  });
}

// PL-10, PL-11: an estimate says that little is left, since the log was not asked; only what a sync finds counts
test('what the guest wrote since the last sync is known before it is stopped, and sent first if it is too much', async () => {
  const guest = new ScriptedGuest([1000]);
  const [block] = guest.blocks.blocks;
  const sink = new RecordingSink();
  sink.limit = 100;
  let written = false;
  sink.afterRead = ({ pages, count }) => {
    // In the first pass, behind its cursor: no send bitmap has it before a sync.
    if (!written && pages[count - 1] === 999) {
      written = true;
      for (let page = 0; page < 500; page += 1) {
        guest.store(block!, page, 9);
      }
    }
  };
  let sentBeforeStop = -1;
  guest.beforeStop = () => {
    sentBeforeStop = [...sink.delivered.values()].filter((value) => value === 9).length;
  };
  const report = await source(guest, sink, 0).run();
  assert.equal(report.status, 'completed');
  assert.equal(sentBeforeStop, 500, 'pages that nobody knew of were sent while the guest stood still');
  assert.ok(report.ram['downtime-bytes'] < 500 * PAGE, `${report.ram['downtime-bytes']} bytes in the downtime`);
});

// G-2: an empty bitmap whose counter is not 0 has lost pages; the destination must not run on that
test('a counter that disagrees with the bitmap fails the migration at its end, and the guest runs on', async () => {
  const guest = new ScriptedGuest([100, 100]);
  const { kernels } = guest.blocks.bitmaps;
  const sink = new RecordingSink();
  guest.beforeStop = () => {
    for (const block of guest.blocks.blocks) {
      guest.store(block, 3, 1);
      guest.store(block, 50, 1);
    }
    sink.afterRead = ({ block }) => {
      // Somebody else's hands in a bitmap that is the engine's own.
      if (block.name === 'block0') {
        kernels.testAndClearRange(guest.blocks.blocks[1]!.bitmaps.send, 0, 10);
      }
    };
  };
  const report = await source(guest, sink).run();
  assert.deepEqual([report.status, sink.calls.includes('devices'), guest.running], ['failed', false, true]);
  assert.match(report['error-desc']!, /counter says 1 pages?/);
});
