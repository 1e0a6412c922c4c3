// Orders to an engine in its own thread: whatever comes, and whenever, none of them ends the thread.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Worker } from 'node:worker_threads';
import { WorkloadGuest } from '../guest/workload/workload-guest-node.js';
import { changeParameters, defaultParameters, type MigrationParameters } from '../source/parameters.js';
import { Migration, type MigrationOptions } from './migration.js';

const MIB = 2 ** 20;

/** Reads everything and says nothing. */
const silent = net.createServer((socket) => socket.on('error', () => {}).resume());
silent.listen(0, '127.0.0.1');
after(() => silent.close());
const silentUri = (): string => `tcp:127.0.0.1:${(silent.address() as net.AddressInfo).port}`;

const runningGuest = async (): Promise<WorkloadGuest> => {
  const guest = WorkloadGuest.create({ memoryBytes: 16 * MIB, rate: MIB, segmentBytes: 32 * MIB });
  await guest.start();
  return guest;
};

const start = (guest: WorkloadGuest, options: Partial<MigrationOptions> = {}): Migration => {
  const migration = new Migration({
    guest: { kind: 'workload', shared: guest.share() },
    blocks: guest.blocks,
    uri: silentUri(),
    parameters: { maxBandwidth: MIB },
    ...options,
  });
  migration.ended.catch(() => {});
  return migration;
};

test('changes are checked against the parameters in effect, and an impossible one is refused at once', async () => {
  const guest = await runningGuest();
  const migration = start(guest, { parameters: { maxBandwidth: MIB, cpuThrottleInitial: 50 } });
  assert.throws(() => migration.setParameters({ maxCpuThrottle: 30 }), { code: 'PARAMETER_RANGE' });
  migration.setParameters({ cpuThrottleInitial: 20 });
  migration.setParameters({ maxCpuThrottle: 30 });
  assert.throws(() => migration.setParameters({ cpuThrottleInitial: 50 }), { code: 'PARAMETER_RANGE' });
  migration.cancel();
  await migration.ended.catch(() => {});
  await guest.shutdown();
});

test('orders that make no sense when they arrive are said in the report', { timeout: 60_000 }, async () => {
  const guest = await runningGuest();
  const created = once(process, 'worker');
  let isActive = (): void => {};
  const active = new Promise<void>((resolve) => {
    isActive = resolve;
  });
  const migration = start(guest, { onStatus: (status) => status === 'active' && isActive() });
  const ended = migration.ended.catch((error) => assert.fail(`an order has ended the engine: ${error.message}`));
  const [engine] = (await created) as [Worker];
  // As from a program of another version, or an order that was overtaken; before the engine is there, and after.
  for (const orders of [1, 2]) {
    engine.postMessage({ type: 'set-parameters', changes: { maxCpuThrottle: 1, cpuThrottleInitial: 99 } });
    engine.postMessage({ type: 'start-postcopy' });
    engine.postMessage({ type: 'recover-postcopy', uri: 'no URI' });
    await (orders === 1 ? Promise.race([active, ended]) : sleep(20));
  }
  migration.cancel();
  const { report, error } = await ended;
  assert.equal(report.status, 'cancelled');
  assert.equal(error?.code, 'CANCELLED');
  const refused = report.ramferry.warnings.filter((warning) => warning.startsWith('An order was refused: '));
  assert.equal(refused.length, 6, report.ramferry.warnings.join('\n'));
  assert.ok(guest.source.isRunning());
  await guest.shutdown();
});

for (const how of ['cancel', 'abandonPostcopy'] as const) {
  test(`${how} ends the wait for a destination that does not listen`, { timeout: 60_000 }, async () => {
    const guest = await runningGuest();
    const started = performance.now();
    const migration = start(guest, { uri: 'unix:/nowhere/at/all', retryMs: 40_000, postcopy: { prefetchPages: 0 } });
    await sleep(300);
    migration[how]();
    await assert.rejects(migration.ended, { code: how === 'cancel' ? 'CANCELLED' : 'POSTCOPY_ABANDONED' });
    assert.ok(performance.now() - started < 30_000);
    assert.ok(guest.source.isRunning());
    // In the very moment of the start, too.
    const other = start(guest, { uri: 'unix:/nowhere/at/all', retryMs: 40_000, postcopy: { prefetchPages: 0 } });
    other[how]();
    await assert.rejects(other.ended, { code: how === 'cancel' ? 'CANCELLED' : 'POSTCOPY_ABANDONED' });
    await guest.shutdown();
  });
}

test('cancelled while its file is opened: nothing unfinished is there any more when that is said', {
  timeout: 60_000,
}, async (t) => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-'));
  t.after(() => fs.rmSync(folder, { recursive: true, force: true }));
  const guest = await runningGuest();
  t.after(() => guest.shutdown());
  for (let attempt = 0; attempt < 5; attempt += 1) {
    const migration = start(guest, { uri: `file:${path.join(folder, 'out')}`, returnPath: false });
    // The moment is short, and over when this thread has slept.
    for (const deadline = performance.now() + 20_000; fs.readdirSync(folder).length === 0; ) {
      assert.ok(performance.now() < deadline, 'no file is made');
    }
    migration.cancel();
    await migration.ended.catch(() => {});
    assert.deepEqual(fs.readdirSync(folder), []);
  }
});

test('a thread that cannot be started leaves the guest alone', { timeout: 60_000 }, async () => {
  const guest = await runningGuest();
  // Its description cannot be posted: nothing is claimed afterwards.
  const shared = { ...guest.share(), extra: () => {} };
  assert.throws(() => start(guest, { guest: { kind: 'workload', shared } }), { name: 'DataCloneError' });
  assert.ok(guest.source.isRunning());
  const migration = start(guest);
  migration.cancel();
  await migration.ended.catch(() => {});
  await guest.shutdown();
});

for (const [what, changes, code] of [
  ['a name that there is not', { maxBandwith: 5 }, 'PARAMETER_UNKNOWN'],
  ['undefined', { downtimeLimit: undefined }, 'PARAMETER_RANGE'],
  ['not a number', { downtimeLimit: Number.NaN }, 'PARAMETER_RANGE'],
  ['a switch that is neither on nor off', { autoConverge: 'yes' }, 'PARAMETER_RANGE'],
  ['a word', { hintWaitMs: 'soon' }, 'PARAMETER_RANGE'],
] as const) {
  test(`a parameter is refused: ${what}`, () => {
    const partial = changes as unknown as Partial<MigrationParameters>;
    assert.throws(() => changeParameters(defaultParameters, partial), { code });
  });
}
