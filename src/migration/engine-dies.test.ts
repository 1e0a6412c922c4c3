// The engine's thread is killed at some moment, as by memory that ran out. What it did to the guest is undone from outside.
// (For a background snapshot: background-snapshot.test.ts.)

import assert from 'node:assert/strict';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { after, type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Worker } from 'node:worker_threads';
import { HintWord } from '../device/hint-exchange.js';
import { pong } from '../format/stream/return-path.js';
import { Control } from '../guest/workload/control.js';
import { WorkloadGuest, type WorkloadOptions } from '../guest/workload/workload-guest-node.js';
import { Migration, type MigrationOptions } from './migration.js';

const MIB = 2 ** 20;

/** Reads everything, and says that it is there, but nothing else: one that says nothing at all is given up after 10 s. */
const silent = net.createServer((socket) => {
  socket.on('error', () => {}).resume();
  socket.write(pong(1));
});
silent.listen(0, '127.0.0.1');
after(() => silent.close());
const silentUri = (): string => `tcp:127.0.0.1:${(silent.address() as net.AddressInfo).port}`;

/** Reads on only while the guest runs, so that it never has all of a guest that had much left to send. */
async function stallingUri(t: TestContext, guest: WorkloadGuest): Promise<string> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-'));
  const socketPath = path.join(folder, 's');
  const server = net.createServer((socket) => {
    socket.on('error', () => {});
    socket.on('data', () => {
      if (!guest.source.isRunning()) {
        socket.pause();
      }
    });
    t.after(() => socket.destroy());
  });
  server.listen(socketPath);
  await once(server, 'listening');
  t.after(() => {
    server.close();
    fs.rmSync(folder, { recursive: true, force: true });
  });
  return `unix:${socketPath}`;
}

const busyGuest = (options: Partial<WorkloadOptions> = {}): WorkloadGuest =>
  WorkloadGuest.create({
    memoryBytes: 48 * MIB,
    workingSetBytes: 8 * MIB,
    rate: 24 * MIB,
    segmentBytes: 64 * MIB,
    ...options,
  });

/** Other threads need time to get there. */
const untilTrue = async (condition: () => boolean): Promise<void> => {
  for (const deadline = performance.now() + 30_000; !condition(); await sleep(2)) {
    assert.ok(performance.now() < deadline, `it never holds: ${condition}`);
  }
};

interface Started {
  readonly migration: Migration;
  readonly engine: Worker;
  /** Kills the engine; resolves with what `ended` rejects with. */
  kill(): Promise<{ readonly code?: string; readonly message: string; readonly value?: unknown }>;
}

async function start(guest: WorkloadGuest, options: Partial<MigrationOptions>): Promise<Started> {
  const created = once(process, 'worker');
  const migration = new Migration({
    guest: { kind: 'workload', shared: guest.share() },
    blocks: guest.blocks,
    uri: silentUri(),
    ...options,
  });
  migration.ended.catch(() => {});
  const [engine] = (await created) as [Worker];
  return {
    migration,
    engine,
    kill: async () => {
      await engine.terminate();
      return migration.ended.then(
        ({ report, error }) => assert.fail(`the migration ended by itself: ${report.status}, ${error?.message}`),
        (error) => error,
      );
    },
  };
}

/** All that an engine does to a running guest. */
const traces = (guest: WorkloadGuest) => {
  const { control, barrier, balloon } = guest.share();
  const words = (buffer: SharedArrayBuffer) => new Int32Array(buffer);
  return {
    isRunning: guest.source.isRunning(),
    throttle: Atomics.load(words(control), Control.throttle),
    isRecorded: Atomics.load(words(barrier.recording), 0) !== 0,
    isTracked: guest.blocks.dirty.migrationTracking,
    isFrozen: guest.blocks.blocks.some(({ discardManager }) => discardManager?.isFrozen),
    // An id while free pages are asked for.
    isHinted: balloon !== undefined && Atomics.load(words(balloon.device.hints), HintWord.requested) < 0,
  };
};

const untouched = {
  isRunning: true,
  throttle: 0,
  isRecorded: false,
  isTracked: false,
  isFrozen: false,
  isHinted: false,
};

/** Once more, by an engine that lives, which shows that nobody has a claim on the guest any more. */
async function assertRunsAndCanBeMigrated(guest: WorkloadGuest): Promise<void> {
  const before = guest.counters().pagesWritten;
  await untilTrue(() => guest.counters().pagesWritten > before);
  const { migration } = await start(guest, {});
  await sleep(20);
  migration.cancel();
  await migration.ended.catch(() => {});
}

// TS-34, TS-35, TH-2, FH-12, RD-11
test('killed while the guest is throttled, logged, hinted and its discards are frozen: nothing of it is left', {
  timeout: 60_000,
}, async () => {
  const guest = busyGuest({
    memoryBytes: 16 * MIB,
    freePageHints: true,
    virtioMem: { regionBytes: 16 * MIB, blockBytes: 2 * MIB, requestedBytes: 4 * MIB },
  });
  await guest.start();
  assert.deepEqual(traces(guest), untouched);
  const started = await start(guest, {
    // Less than the guest writes, so that it never converges, in passes of less than a second, so that it is throttled soon.
    parameters: { maxBandwidth: 20 * MIB, downtimeLimit: 0, autoConverge: true, throttleTriggerThreshold: 1 },
  });
  await untilTrue(() => traces(guest).throttle > 0 && traces(guest).isHinted);
  const { throttle: _, ...others } = traces(guest);
  assert.deepEqual(others, { isRunning: true, isRecorded: true, isTracked: true, isFrozen: true, isHinted: true });
  const error = await started.kill();
  assert.equal(error.code, 'ENGINE_DIED');
  assert.equal(error.value, 'here');
  assert.equal(started.migration.guestOwner, 'here');
  assert.deepEqual(traces(guest), untouched);
  await assertRunsAndCanBeMigrated(guest);
  await guest.shutdown();
});

for (const isPaused of [false, true]) {
  // TS-34, PL-36
  test(`killed in the switchover: the guest ${isPaused ? 'that its owner pauses stays paused' : 'runs on'}`, {
    timeout: 60_000,
  }, async (t) => {
    const guest = busyGuest({ workingSetBytes: 24 * MIB });
    await guest.start();
    // The switchover comes when 32 MiB are left.
    const started = await start(guest, {
      uri: await stallingUri(t, guest),
      parameters: { downtimeLimit: 2000, maxBandwidth: 16 * MIB },
    });
    await untilTrue(() => !guest.source.isRunning());
    if (isPaused) {
      await guest.stop();
    }
    const error = await started.kill();
    assert.equal(error.code, 'ENGINE_DIED');
    assert.match(error.message, /the guest stays here/);
    assert.deepEqual(traces(guest), { ...untouched, isRunning: !isPaused });
    await guest.resume();
    await assertRunsAndCanBeMigrated(guest);
    await guest.shutdown();
  });
}

// PL-36: whoever has everything may be running the guest, and has had no chance to say so
test('killed when the destination has everything: the guest stands still, or it might run twice', {
  timeout: 60_000,
}, async () => {
  const guest = busyGuest();
  await guest.start();
  const started = await start(guest, { parameters: { downtimeLimit: 2000 } });
  await untilTrue(() => started.migration.guestOwner === 'undecided');
  const error = await started.kill();
  assert.equal(error.code, 'ENGINE_DIED');
  assert.equal(error.value, 'undecided');
  assert.match(error.message, /the destination had everything by then and may run the guest/);
  assert.deepEqual(traces(guest), { ...untouched, isRunning: false });
  await assert.rejects(guest.resume(), { code: 'GUEST_MOVED' });
  guest.takeBack();
  await guest.resume();
  await assertRunsAndCanBeMigrated(guest);
  await guest.shutdown();
});

// PC-11
test('killed after the switch to postcopy: the guest has moved, and does not run here by mistake', {
  timeout: 60_000,
}, async () => {
  const guest = busyGuest();
  await guest.start();
  let haveSwitched = (): void => {};
  const switched = new Promise<void>((resolve) => {
    haveSwitched = resolve;
  });
  const started = await start(guest, {
    postcopy: { prefetchPages: 0, atOnce: true },
    onStatus: (status) => status === 'postcopy-active' && haveSwitched(),
  });
  await switched;
  await untilTrue(() => started.migration.guestOwner === 'moved');
  assert.equal(started.migration.cancel(), false);
  const error = await started.kill();
  assert.equal(error.code, 'ENGINE_DIED');
  assert.equal(error.value, 'moved');
  assert.match(error.message, /had moved to the destination by then, and must not run here/);
  assert.deepEqual(traces(guest), { ...untouched, isRunning: false });
  await assert.rejects(guest.resume(), { code: 'GUEST_MOVED' });
  assert.equal(guest.source.isRunning(), false);
  guest.takeBack();
  await guest.resume();
  await assertRunsAndCanBeMigrated(guest);
  await guest.shutdown();
});

/** What is in the folder of the file that a guest is saved to, once its engine is killed amid the pages. */
async function killedWhileSaving(options: Partial<MigrationOptions>, t: TestContext): Promise<void> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-'));
  t.after(() => fs.rmSync(folder, { recursive: true, force: true }));
  const file = path.join(folder, 'out.mig');
  fs.writeFileSync(file, 'what was there');
  // Of a run that was killed some other day, with our number: nobody knows that it is not needed.
  const foreign = `${file}.ramferry-partial-${process.pid}`;
  fs.writeFileSync(foreign, 'not ours');
  const guest = busyGuest();
  t.after(() => guest.shutdown());
  await guest.start();
  const started = await start(guest, {
    uri: `file:${file}`,
    returnPath: false,
    parameters: { maxBandwidth: 2 * MIB },
    ...options,
  });
  const own = `${foreign}-2`;
  await untilTrue(() => fs.existsSync(own) && fs.statSync(own).size > 0);
  const error = await started.kill();
  assert.equal(error.code, 'ENGINE_DIED');
  assert.deepEqual(fs.readdirSync(folder).toSorted(), [path.basename(file), path.basename(foreign)]);
  assert.equal(fs.readFileSync(file, 'utf8'), 'what was there');
  assert.equal(fs.readFileSync(foreign, 'utf8'), 'not ours');
  assert.deepEqual(traces(guest), untouched);
}

for (const [what, options] of [
  ['a stream', {}],
  ['mapped-ram', { mappedRam: {} }],
  ['mapped-ram by writer threads', { mappedRam: { channels: 2 } }],
  ['a background snapshot', { mappedRam: {}, backgroundSnapshot: {} }],
] as const) {
  test(
    `killed while it saves: ${what} leaves no unfinished file, and what was there stays`,
    {
      timeout: 60_000,
    },
    (t) => killedWhileSaving(options, t),
  );
}
