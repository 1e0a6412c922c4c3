// A postcopy whose link breaks, and its recovery: everything arrives once, and only what is missing is sent again.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Cut } from '../../test/postcopy-destination.js';
import { assertArrived, completed, fill, type Setting, setUp } from '../../test/postcopy-kit.js';
import { PAGE, ScriptedGuest } from '../../test/source-kit.js';
import { nextTurn, until } from '../../test/until.js';
import { receivedBitmap } from '../format/stream/return-path.js';
import { MigrationSource } from './migration-source.js';
import { defaultParameters } from './parameters.js';
import { PostcopySink } from './postcopy-sink.js';
import type { MigrationReport } from './statistics.js';

// RC-8
test('with release-ram a broken link cannot be mended', async () => {
  const { guest, destination, source, reached } = setUp({
    cut: { toDestination: 40 * PAGE },
    postcopy: { releaseWith: () => {} },
  });
  fill(guest);
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-paused');
  assert.throws(() => source.recoverPostcopy(async () => destination.connect()), { code: 'RELEASE_RAM' });
  assert.equal(source.state.value, 'postcopy-paused');
  source.fail(new Error('given up'));
  assert.equal((await running).status, 'failed');
});

/** Runs a postcopy whose links break as `cuts` say, one after the other; the last link holds. */
const recoverThrough = async (cuts: readonly Cut[], setting: Setting = {}): Promise<MigrationReport> => {
  const { guest, blocks, destination, source, reached } = setUp({ ...setting, ...(cuts[0] && { cut: cuts[0] }) });
  fill(guest, 2);
  let asked = 0;
  destination.onRecord = () => {
    const block = blocks[(asked += 1) % blocks.length]!;
    const page = (asked * 37) % block.usedPages;
    const first = page - (page % (block.hostPageSize / PAGE));
    if (destination.isRunning && asked % 31 === 0 && destination.placed(block.name).content[first]! < 0) {
      destination.request(block.name, first, block.hostPageSize);
    }
  };
  const running = source.run();
  source.startPostcopy();
  for (const cut of [...cuts.slice(1), {}]) {
    await until(() => source.state.ended || source.state.value === 'postcopy-paused');
    if (source.state.ended) {
      break;
    }
    // Lost with the package: no QEMU comes back from there.
    if (!destination.isRunning) {
      source.fail(new Error('given up'));
      return running;
    }
    let connections = 0;
    source.recoverPostcopy(async () => {
      connections += 1;
      return connections === 1 ? destination.connect(cut) : destination.connectPreempt();
    });
    await reached('postcopy-recover-setup').catch(() => {});
    await nextTurn();
  }
  const report = await running;
  completed(report);
  // RC-1, RC-3, RC-5: the destination refuses a page that it has, and would miss one that it has not.
  assertArrived(guest, destination);
  for (const { name, usedPages } of blocks) {
    assert.deepEqual(Array.from(destination.placed(name).placed), new Array(usedPages).fill(1));
  }
  return report;
};

// RC-1, RC-2, RC-3, RC-4, RC-5, RC-6, RC-7, RC-9, RC-11, PC-15
test('links that break at any byte, in either direction, during recovery too: everything arrives once', async () => {
  const cut = fc.oneof(
    fc.record({ toDestination: fc.integer({ min: 1, max: 120 * PAGE }) }),
    fc.record({ toDestination: fc.integer({ min: 1, max: 200 }) }),
    fc.record({ toSource: fc.integer({ min: 1, max: 200 }) }),
  );
  let recoveries = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.array(cut, { minLength: 1, maxLength: 5 }),
      fc.constantFrom(1, 4, 64),
      fc.boolean(),
      async (cuts, hostPages, preempt) => {
        const pages = hostPages === 64 ? [128, 64] : [100, 40, 8];
        const setting = { pages, hostPageSize: hostPages * PAGE, preempt };
        const report = await recoverThrough([{ toDestination: 500 + 60 * PAGE }, ...cuts], setting);
        recoveries += report.ramferry.postcopy!.recoveries;
      },
    ),
    { numRuns: process.env['RAMFERRY_SLOW'] === '1' ? 400 : 60 },
  );
  assert.ok(recoveries > 40, `${recoveries}`);
});

// RC-8, RC-10, PC-4
test('only a paused postcopy is recovered; without a link to take it is paused again; the log rests', async () => {
  const { guest, destination, source, reached } = setUp({ postcopy: { isLazy: true } });
  assert.throws(() => source.recoverPostcopy(async () => destination.connect()), { code: 'NOT_PAUSED' });
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-active');
  await nextTurn();
  destination.request('block0', 5);
  await until(() => destination.placed('block0').content[5]! >= 0);
  // What is still noted after the stop is not looked at.
  guest.mark(guest.blocks.find('block0')!, 5, 1);
  destination.request('block0', 7);
  await nextTurn();
  source.pausePostcopy();
  await reached('postcopy-paused');
  const before = source.report();
  source.recoverPostcopy(async () => {
    throw new Error('nobody listens');
  });
  await reached('postcopy-recover-setup');
  await reached('postcopy-paused');
  assert.match(source.report()['error-desc']!, /nobody listens/);
  source.recoverPostcopy(async () => destination.connect());
  await reached('postcopy-active');
  source.finishPostcopy();
  const report = await running;
  completed(report);
  assert.deepEqual(report.ramferry.logClears, before.ramferry.logClears);
  assert.equal(report.ram['dirty-sync-count'], before.ram['dirty-sync-count']);
  assertArrived(guest, destination);
});

// RC-5
test('a host page that a broken link has cut in two is sent whole, from its start', async () => {
  const hostPages = 64;
  const { guest, destination, source, reached } = setUp({
    pages: [4 * hostPages],
    hostPageSize: hostPages * PAGE,
    parameters: { maxPostcopyBandwidth: 100 * PAGE },
  });
  fill(guest);
  // The limit makes the first batch end within its host page.
  destination.onRecord = () => source.pausePostcopy();
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-paused');
  destination.onRecord = () => {};
  source.setParameters({ maxPostcopyBandwidth: 0 });
  assert.ok(destination.bytesIn > PAGE && destination.bytesIn < hostPages * PAGE, `${destination.bytesIn}`);
  source.recoverPostcopy(async () => destination.connect());
  completed(await running);
  assertArrived(guest, destination);
});

// RC-6, RC-7, RC-9: nothing is sent before the last answer of this connection, whatever the ones before have said
test('a recovery waits for every answer, and ends again in a pause if a link breaks meanwhile', async () => {
  const { guest, destination, source, reached } = setUp({ cut: { toDestination: 40 * PAGE } });
  fill(guest);
  const running = source.run();
  source.startPostcopy();
  const pages = (): number => destination.steps.filter((step) => step.startsWith('page')).length;
  for (const answers of ['nothing', 'bitmaps', 'all', 'nothing', 'bitmaps'] as const) {
    await reached('postcopy-paused');
    const before = pages();
    destination.answersInRecovery = answers;
    source.recoverPostcopy(async () => destination.connect({ toDestination: 10 * PAGE }));
    await reached('postcopy-recover');
    if (answers === 'all') {
      await reached('postcopy-active');
      continue;
    }
    for (let turn = 0; turn < 20; turn += 1) {
      await nextTurn();
    }
    assert.deepEqual([source.state.value, pages()], ['postcopy-recover', before]);
    source.pausePostcopy();
  }
  await reached('postcopy-paused');
  destination.answersInRecovery = 'all';
  source.recoverPostcopy(async () => destination.connect());
  completed(await running);
  assertArrived(guest, destination);
});

// RC-6, spec/qemu-wire-format.md 5.5
for (const [what, answer, sentence] of [
  ['a bitmap of another size', receivedBitmap('block0', new Uint8Array(16)), /"block0" has 16 bytes, expected are 8/],
  [
    'a bitmap without its end mark',
    receivedBitmap('block0', new Uint8Array(8)).fill(0, -8),
    /"block0" ends without its end mark/,
  ],
  ['a bitmap of an unknown block', receivedBitmap('elsewhere', new Uint8Array(8)), /"elsewhere", unasked/],
  ['a bitmap twice', Buffer.concat([1, 2].map(() => receivedBitmap('block0', new Uint8Array(8)))), /"block0", unasked/],
  [
    'an acknowledgement that is none',
    Uint8Array.of(0, 6, 0, 4, 0, 0, 0, 0),
    /acknowledges the resume with 0 instead of 1/,
  ],
] as const) {
  test(`a destination that answers a recovery with ${what} is left paused, and can be recovered`, async () => {
    const { guest, destination, source, reached, statuses } = setUp({ cut: { toDestination: 40 * PAGE } });
    fill(guest);
    const running = source.run();
    source.startPostcopy();
    await reached('postcopy-paused');
    destination.answersInRecovery = 'nothing';
    source.recoverPostcopy(async () => destination.connect());
    await reached('postcopy-recover');
    destination.say(answer);
    await reached('postcopy-paused');
    assert.match(source.report()['error-desc']!, sentence);
    destination.answersInRecovery = 'all';
    source.recoverPostcopy(async () => destination.connect());
    completed(await running);
    assertArrived(guest, destination);
    assert.equal(statuses.filter((status) => status === 'postcopy-paused').length, 2);
  });
}

// RC-1, RC-12; spec/qemu-wire-format.md 5.6
test('a source that comes new to an interrupted postcopy sends what is missing, and nothing else', async () => {
  const first = setUp({ cut: { toDestination: 40 * PAGE } });
  const { guest, destination } = first;
  fill(guest);
  const interrupted = first.source.run();
  first.source.startPostcopy();
  await first.reached('postcopy-paused');
  first.source.fail(new Error('the server is gone'));
  await interrupted;
  const source = new MigrationSource({
    guest,
    sink: new PostcopySink(destination.connect()),
    parameters: defaultParameters,
    postcopy: { prefetchPages: 0, recovers: true },
  });
  const report = await source.run();
  completed(report);
  assertArrived(guest, destination);
  assert.ok(report.ram.normal < 60, `${report.ram.normal} pages`);
});

// RD-6
test('what is discarded is out of the send bitmap again after a recovery', async () => {
  const guest = new ScriptedGuest([60]);
  const granule = 16 * PAGE;
  const vmem = guest.blocks.add({ name: 'vmem', usedLength: 8 * granule, discardGranularity: granule });
  vmem.discardManager!.populate(granule, 2 * granule);
  fill(guest);
  const { destination, source, reached } = setUp({ guest, cut: { toDestination: 30 * PAGE } });
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-paused');
  source.recoverPostcopy(async () => destination.connect());
  completed(await running);
  assert.deepEqual(destination.violations, []);
  const { placed } = destination.placed('vmem');
  assert.deepEqual(
    Array.from(placed),
    Array.from(placed, (_, page) => (page >= 16 && page < 48 ? 1 : 0)),
  );
});
