// Whole migrations: a workload guest whose threads write all the time, the engine in its own thread, a socket, the
// destination engine. The oracle is demo's: original and migrated guest take the same number of further steps, and
// then both memories must be equal to the byte.

import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { listen } from '../channel/listen-node.js';
import { openChannel } from '../channel/open-channel-node.js';
import { MemoryTarget } from '../destination/memory-target.js';
import { MigrationDestination } from '../destination/migration-destination.js';
import { deviceStates } from '../format/stream/device-tail.js';
import { digestBlocks } from '../guest/digest-node.js';
import type { WorkloadOptions } from '../guest/workload/workload-guest-node.js';
import { WorkloadGuest } from '../guest/workload/workload-guest-node.js';
import { attachWorkloadGuest } from '../guest/workload/workload-source.js';
import type { RamferryError } from '../memory/errors.js';
import { RamBlockList } from '../memory/ram-block-list.js';
import { MigrationSource } from '../source/migration-source.js';
import { defaultParameters, type MigrationParameters } from '../source/parameters.js';
import type { MigrationReport } from '../source/statistics.js';
import { StreamSink } from '../source/stream-sink.js';
import { Migration, type MigrationOptions } from './migration.js';

const MIB = 2 ** 20;
const STEPS_AFTER = 3000;

const folder = mkdtempSync(join(tmpdir(), 'ramferry-test-'));
after(() => rmSync(folder, { recursive: true, force: true }));
let sockets = 0;
const socketUri = (): string => `unix:${join(folder, `${(sockets += 1)}.sock`)}`;
const fileUri = (): string => `file:${join(folder, `${(sockets += 1)}.mig`)}`;

interface Received {
  readonly status: string;
  readonly error: Error | undefined;
  readonly guest: WorkloadGuest | undefined;
}

/** A destination in this process. */
async function receive(uri: string, segmentBytes?: number): Promise<Received> {
  const listener = await listen(uri);
  const channel = await listener.accept();
  await listener.close();
  const blocks = RamBlockList.create(segmentBytes === undefined ? {} : { segmentBytes });
  let guest: WorkloadGuest | undefined;
  const destination = new MigrationDestination({
    channel,
    target: new MemoryTarget({ blocks, memoryLimit: 2 ** 30 }),
    commit: async ({ summary }) => {
      guest = WorkloadGuest.restore(blocks, deviceStates(summary.tail, summary.devices));
      await guest.boot();
    },
  });
  const { status } = await destination.run();
  return { status, error: destination.error, guest };
}

const busyGuest = (options: Partial<WorkloadOptions> = {}): WorkloadGuest =>
  WorkloadGuest.create({
    memoryBytes: 48 * MIB,
    workingSetBytes: 24 * MIB,
    rate: 200 * MIB,
    segmentBytes: 16 * MIB,
    ...options,
  });

const migration = (guest: WorkloadGuest, uri: string, options: Partial<MigrationOptions> = {}): Migration =>
  new Migration({
    guest: { kind: 'workload', shared: guest.share() },
    blocks: guest.blocks,
    uri,
    retryMs: 5000,
    ...options,
  });

/** Both guests go on for the same number of steps; then they must be the same. */
async function assertTwins(original: WorkloadGuest, migrated: WorkloadGuest): Promise<void> {
  for (const guest of [original, migrated]) {
    guest.limitSteps(STEPS_AFTER);
    guest.takeBack();
    await guest.resume();
    await guest.finished();
    await guest.stop();
    assert.equal(guest.verify().bad + guest.counters().bad, 0);
  }
  assert.deepEqual(digestBlocks(migrated.blocks), digestBlocks(original.blocks));
}

async function migrateAndCompare(
  options: Partial<WorkloadOptions>,
  parameters: Partial<MigrationParameters>,
): Promise<MigrationReport> {
  const original = busyGuest(options);
  await original.start();
  const uri = socketUri();
  const receiving = receive(uri);
  // Slow enough for several passes.
  const { report, error } = await migration(original, uri, {
    parameters: { maxBandwidth: 300 * MIB, downtimeLimit: 30, ...parameters },
  }).ended;
  assert.equal(error, undefined);
  assert.equal(report.status, 'completed');
  const { guest: migrated, status } = await receiving;
  assert.equal(status, 'completed');
  await assertTwins(original, migrated!);
  await original.shutdown();
  await migrated!.shutdown();
  return report;
}

// CB-15, CB-18: the shift changes how often the log is cleared, and nothing else
test('shifts 3 to 40 and eager clearing: equal memory, fewer calls the larger the chunks', {
  timeout: 120_000,
}, async (t) => {
  const calls: Record<string, number> = {};
  for (const [requested, used] of [
    [3, 6],
    [6, 6],
    [12, 12],
    [18, 18],
    [31, 31],
    [40, 31],
  ] as const) {
    const report = await migrateAndCompare({}, { clearBitmapShift: requested });
    const { logClears, iterations, parameters, warnings } = report.ramferry;
    calls[requested] = logClears.calls / iterations.length;
    assert.equal(parameters['clear-bitmap-shift'], used);
    assert.equal(warnings.length, requested === used ? 0 : 1);
    // CB-13: at most one call for each chunk of each block a pass; the blocks have 12288, 256 and 32 pages
    const chunks = [12288, 256, 32].reduce((sum, pages) => sum + Math.ceil(pages / 2 ** used), 0);
    assert.ok(logClears.calls <= chunks * iterations.length, `${logClears.calls} calls`);
  }
  const eager = await migrateAndCompare({}, { eagerClear: true });
  calls['eager'] = eager.ramferry.logClears.calls / eager.ramferry.iterations.length;
  t.diagnostic(`log clear calls a pass: ${JSON.stringify(calls)}`);
  assert.ok(calls[6]! > calls[12]! && calls[12]! > calls[18]!);
  assert.equal(Math.ceil(calls[18]!) <= 3, true);
});

for (const workload of ['idle', 'fillfree', 'build'] as const) {
  test(`a guest that runs ${workload} arrives as it left`, { timeout: 60_000 }, async () => {
    await migrateAndCompare({ workload }, {});
  });
}

test('filtered marks carry a migration as well', { timeout: 60_000 }, async () => {
  await migrateAndCompare({ barrier: 'filtered' }, { clearBitmapShift: 6 });
});

// TH-2, TH-3: a guest faster than the line converges when it is slowed down, and runs freely afterwards
test('auto-converge ends what would not end', { timeout: 60_000 }, async () => {
  const report = await migrateAndCompare(
    { rate: 0 },
    { maxBandwidth: 60 * MIB, downtimeLimit: 60, autoConverge: true, cpuThrottleInitial: 70, cpuThrottleIncrement: 15 },
  );
  assert.ok(report['total-time'] > 2000);
});

// PL-4, PL-36, G-10
test('cancelled at any moment the guest runs on, and another attempt succeeds', { timeout: 120_000 }, async () => {
  const guest = busyGuest();
  await guest.start();
  for (let attempt = 0; attempt < 12; attempt += 1) {
    const uri = socketUri();
    const receiving = receive(uri);
    const running = migration(guest, uri, { parameters: { maxBandwidth: 500 * MIB } });
    await sleep(attempt * 17);
    running.cancel();
    const end = await running.ended.catch((error: Error) => ({ report: undefined, error }));
    const received = await receiving.catch(() => undefined);
    if (end.report?.status === 'completed') {
      assert.equal(received?.status, 'completed');
      await received?.guest?.shutdown();
      guest.takeBack();
      await guest.resume();
      continue;
    }
    assert.notEqual(received?.status, 'completed');
    await received?.guest?.shutdown();
    const before = guest.counters().pagesWritten;
    await sleep(50);
    assert.ok(guest.counters().pagesWritten > before, 'the guest runs on');
  }
  await guest.stop();
  assert.equal(guest.verify().bad, 0);
  await guest.resume();
  const uri = socketUri();
  const receiving = receive(uri);
  assert.equal((await migration(guest, uri).ended).report.status, 'completed');
  const { guest: migrated } = await receiving;
  await assertTwins(guest, migrated!);
  await guest.shutdown();
  await migrated!.shutdown();
});

test('memory plugged before travels; while it does, plug and unplug are refused by name', {
  timeout: 60_000,
}, async () => {
  const guest = busyGuest();
  await guest.start();
  const dimm = await guest.plug(8 * MIB);
  const uri = socketUri();
  const receiving = receive(uri);
  let isActive = (): void => {};
  const active = new Promise<void>((resolve) => {
    isActive = resolve;
  });
  const running = migration(guest, uri, {
    parameters: { maxBandwidth: 20 * MIB },
    onStatus: (status) => status === 'active' && isActive(),
  });
  const refused = { code: 'GUEST_BUSY', message: /dimm\d cannot be (un)?plugged while a migration of the guest/ };
  // Also before the engine has started.
  assert.throws(() => guest.blocks.remove(dimm), refused);
  await active;
  assert.throws(() => guest.blocks.remove(dimm), refused);
  await assert.rejects(guest.plug(MIB), refused);
  running.setParameters({ maxBandwidth: 0 });
  assert.equal((await running.ended).error, undefined);
  const { guest: migrated } = await receiving;
  await assertTwins(guest, migrated!);
  // It is free again, here and there.
  guest.blocks.remove(dimm);
  await migrated!.plug(MIB);
  await guest.shutdown();
  await migrated!.shutdown();
});

// DM-23
for (const told of ['at once', 'by the shared claim alone']) {
  test(`a resize fails the migration by name; the engine hears of it ${told}`, { timeout: 60_000 }, async () => {
    const guest = busyGuest();
    const rom = guest.blocks.add({ name: 'rom', usedLength: MIB, maxLength: 2 * MIB });
    await guest.start();
    const uri = socketUri();
    const receiving = receive(uri);
    let isActive = (): void => {};
    const active = new Promise<void>((resolve) => {
      isActive = resolve;
    });
    const running = new Migration({
      guest: { kind: 'workload', shared: guest.share() },
      uri,
      retryMs: 10_000,
      parameters: { maxBandwidth: 20 * MIB },
      onStatus: (status) => status === 'active' && isActive(),
      ...(told === 'at once' && { blocks: guest.blocks }),
    });
    await active;
    guest.blocks.resize(rom, 2 * MIB);
    const { report, error } = await running.ended;
    assert.equal(report.status, 'failed');
    assert.deepEqual([error?.code, error?.value], ['GEOMETRY_CHANGED', 'rom']);
    assert.equal((await receiving).status, 'failed');
    assert.ok(guest.source.isRunning());
    assert.equal(guest.blocks.claimedFor, undefined);
    await guest.shutdown();
  });
}

test('a guest is migrated, saved or snapshotted once at a time, whoever asks', { timeout: 60_000 }, async () => {
  const guest = busyGuest();
  await guest.start();
  const uri = socketUri();
  const receiving = receive(uri);
  const first = migration(guest, uri, { parameters: { maxBandwidth: 20 * MIB } });
  const refused = { code: 'GUEST_BUSY', message: /cannot start while a migration of the guest is under way/ };
  const file = fileUri();
  assert.throws(() => migration(guest, uri), refused);
  assert.throws(() => migration(guest, file, { mappedRam: {} }), { ...refused, message: /^A save of this guest/ });
  assert.throws(() => migration(guest, file, { backgroundSnapshot: {} }), refused);
  // An engine in this thread, with the guest's own list and with a copy.
  for (const source of [guest.source, attachWorkloadGuest(guest.share())]) {
    const channel = await openChannel(fileUri(), { direction: 'write' });
    const engine = new MigrationSource({
      guest: source,
      sink: new StreamSink(channel, { returnPath: false }),
      parameters: defaultParameters,
    });
    const { status, ram } = await engine.run();
    assert.deepEqual([status, ram.total], ['failed', 0]);
    assert.equal((engine.error as RamferryError).code, 'GUEST_BUSY');
  }
  // A description that is older than the list.
  first.setParameters({ maxBandwidth: 0 });
  assert.equal((await first.ended).error, undefined);
  const { guest: migrated } = await receiving;
  await assertTwins(guest, migrated!);
  const old = migrated!.share();
  await migrated!.plug(MIB);
  assert.throws(() => new Migration({ guest: { kind: 'workload', shared: old }, uri: file }), {
    code: 'BLOCK_LIST_STALE',
  });
  assert.equal((await migration(migrated!, file, { mappedRam: {} }).ended).error, undefined);
  await guest.shutdown();
  await migrated!.shutdown();
});

test('a destination that is not there, and one that dies, leave the guest running', { timeout: 60_000 }, async () => {
  const guest = busyGuest();
  await guest.start();
  await assert.rejects(migration(guest, socketUri(), { retryMs: 0 }).ended, { code: 'NOT_FOUND' });
  const uri = socketUri();
  const listener = await listen(uri);
  const accepted = listener.accept();
  const running = migration(guest, uri, { parameters: { maxBandwidth: 50 * MIB } });
  const channel = await accepted;
  await sleep(100);
  channel.destroy();
  await listener.close();
  const { report, error } = await running.ended;
  assert.equal(report.status, 'failed');
  assert.ok(error !== undefined);
  const before = guest.counters().pagesWritten;
  await sleep(50);
  assert.ok(guest.counters().pagesWritten > before);
  await guest.shutdown();
});

test('without a return path a guest has moved, and its owner cannot start it a second time; into a file it is saved', async () => {
  const guest = busyGuest();
  await guest.start();
  const saved = migration(guest, fileUri(), { returnPath: false });
  assert.deepEqual([(await saved.ended).report.status, saved.guestOwner], ['completed', 'saved']);
  await guest.resume();
  const moved = migration(guest, 'exec:cat > /dev/null', { returnPath: false });
  assert.deepEqual([(await moved.ended).report.status, moved.guestOwner], ['completed', 'moved']);
  await assert.rejects(guest.resume(), { code: 'GUEST_MOVED' });
  assert.equal(guest.source.isRunning(), false);
  await guest.shutdown();
});

test('a command that takes longer to answer than a socket may is waited for', { timeout: 60_000 }, async () => {
  const guest = WorkloadGuest.create({ memoryBytes: 4 * MIB, segmentBytes: 16 * MIB });
  const { ended } = new Migration({
    guest: { kind: 'workload', shared: guest.share() },
    uri: 'exec:sleep 11; exit 1',
  });
  const { error } = await ended;
  assert.equal(error?.code, 'COMMAND_FAILED');
  await guest.shutdown();
});

test('a guest of ours is not sent with a preempt channel, which no destination of ours has', async () => {
  const guest = busyGuest();
  const { ended } = migration(guest, socketUri(), { postcopy: { prefetchPages: 0, preempt: true } });
  await assert.rejects(ended, { code: 'POSTCOPY_OBSTACLE', message: /ramferry-workload has no destination/ });
  await guest.shutdown();
});

// RC-8
for (const [other, value] of [
  [{ recovers: true }, 'a resumed postcopy'],
  [{ preempt: true }, 'postcopy-preempt'],
] as const) {
  test(`release-ram and ${value} exclude each other`, async () => {
    const guest = busyGuest();
    const postcopy = { prefetchPages: 0, releaseRam: true, ...other };
    assert.throws(() => migration(guest, socketUri(), { postcopy }), { code: 'CAPABILITY_CONFLICT', value });
    await guest.shutdown();
  });
}

test('mapped-ram needs positions: neither with postcopy nor to a socket', async () => {
  const guest = busyGuest();
  await guest.start();
  const mappedRam = {};
  for (const uri of [fileUri(), socketUri()]) {
    assert.throws(() => migration(guest, uri, { mappedRam, postcopy: { prefetchPages: 0 } }), {
      code: 'CAPABILITY_CONFLICT',
      value: 'postcopy-ram',
    });
  }
  for (const uri of ['tcp:127.0.0.1:1', socketUri(), 'exec:cat']) {
    await assert.rejects(migration(guest, uri, { mappedRam }).ended, { code: 'NOT_SEEKABLE', value: uri });
  }
  assert.ok(guest.source.isRunning());
  await guest.shutdown();
});

test('a stream to a file that fails leaves what was there, and the guest running', async () => {
  const guest = busyGuest();
  await guest.start();
  const uri = fileUri();
  const file = uri.slice('file:'.length);
  writeFileSync(file, 'precious');
  let isActive = (): void => {};
  const active = new Promise<void>((resolve) => {
    isActive = resolve;
  });
  const running = migration(guest, uri, {
    returnPath: false,
    parameters: { maxBandwidth: 2 ** 20 },
    onStatus: (status) => status === 'active' && isActive(),
  });
  await active;
  assert.equal(readFileSync(file, 'utf8'), 'precious');
  running.cancel();
  assert.equal((await running.ended).report.status, 'cancelled');
  assert.equal(readFileSync(file, 'utf8'), 'precious');
  assert.deepEqual(
    readdirSync(folder).filter((name) => name.includes('partial')),
    [],
  );
  assert.ok(guest.source.isRunning());
  await guest.shutdown();
});
