// The workload guest with a virtio-mem device, real threads and sockets: what is plugged moves, what is not is never touched,
// and while it moves nothing is plugged.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { IncomingConnections, listen } from '../src/channel/index.js';
import { type IncomingReport, MemoryTarget, MigrationDestination, PostcopyTarget } from '../src/destination/index.js';
import { deviceStates } from '../src/format/stream/index.js';
import { forEachUnplugged, memoryDevices } from '../src/format/virtio/index.js';
import { WorkloadGuest, type WorkloadOptions } from '../src/guest/index.js';
import { openSnapshotFile } from '../src/memory-file/open-snapshot-file-node.js';
import { Migration, type MigrationEnd } from '../src/migration/migration.js';
import { randomChoices } from './random.js';
import { residentDiscardedPages } from './residency.js';

const MIB = 2 ** 20;

const options = (seed: number, regionMib = 2048): WorkloadOptions => ({
  memoryBytes: 8 * MIB,
  writers: 1,
  rate: 4 * MIB,
  seed,
  barrier: seed % 2 === 0 ? 'filtered' : 'unconditional',
  freePageHints: seed % 2 === 0,
  virtioMem: { regionBytes: regionMib * MIB, rate: 16 * MIB },
});

/** What migrates: a running guest, or one that was saved into a file. */
type Source = WorkloadGuest | string;

interface Outcome extends MigrationEnd {
  readonly incoming: IncomingReport;
  readonly target: WorkloadGuest;
}

/** Migrates a guest into a new one of `there`, which runs on if all went well. */
const migrate = async (
  source: Source,
  there: WorkloadOptions,
  onActive: (migration: Migration) => void = () => {},
): Promise<Outcome> => {
  const listener = await listen('tcp:127.0.0.1:0');
  const target = WorkloadGuest.create(there);
  await target.boot();
  let frozen: string | undefined;
  const migration = new Migration({
    guest:
      typeof source === 'string'
        ? { kind: 'snapshot-file', file: source }
        : { kind: 'workload', shared: source.share() },
    uri: listener.uri,
    parameters: { maxBandwidth: 200 * MIB },
    onStatus: (status) => {
      if (status === 'active') {
        frozen = typeof source === 'string' ? undefined : plugged(source);
        onActive(migration);
      }
    },
  });
  const channel = await listener.accept();
  await listener.close();
  const destination = new MigrationDestination({
    channel,
    target: new MemoryTarget({ blocks: target.blocks }),
    earlySection: (section, body) => target.loadEarly(section, body),
    commit: async ({ summary }) => target.load(deviceStates(summary.tail, summary.devices)),
  });
  const [end, incoming] = await Promise.all([migration.ended, destination.run()]);
  if (incoming.status === 'completed') {
    // RD-11: as it was when the engine began, as it is here, as it is there.
    if (typeof source !== 'string') {
      assert.deepEqual([plugged(source), plugged(target)], [frozen, frozen]);
    }
    await target.resume();
  }
  return { ...end, incoming, target };
};

const assertWell = async (guest: WorkloadGuest): Promise<void> => {
  await guest.stop();
  const { bad, badPages, staleTables } = guest.verify();
  assert.deepEqual({ bad, badPages, staleTables }, { bad: 0, badPages: [], staleTables: [] });
  const figures = guest.virtioMem!;
  assert.equal(figures.bad, 0);
  assert.equal(figures.answers.error, 0);
  const resident = residentDiscardedPages(figures.block);
  assert.ok(resident === 0 || resident === undefined, `${resident} discarded pages are in memory`);
  assert.equal(figures.block.discardManager!.populatedBytes, figures.pluggedBytes);
};

const plugged = ({ virtioMem }: WorkloadGuest): string => {
  const runs: string[] = [];
  const { block } = virtioMem!;
  block.discardManager!.replayPopulated(0, block.usedLength, (offset, length) => runs.push(`${offset}+${length}`));
  return runs.join(' ');
};

// RD-1, RD-4, RD-15, RD-25
test('a guest plugs and unplugs, moves with what is plugged, and goes on plugging at the other side', async () => {
  for (const seed of [1, 2]) {
    const source = WorkloadGuest.create(options(seed));
    await source.start();
    source.requestVirtioMem(64 * MIB);
    await source.virtioMemSettled();
    source.requestVirtioMem(24 * MIB);
    await source.virtioMemSettled();
    source.requestVirtioMem(40 * MIB);
    await source.virtioMemSettled();
    const { error, report, incoming, target } = await migrate(source, options(seed));
    assert.equal(error, undefined);
    assert.equal(incoming.status, 'completed');
    assert.equal(report.ramferry.discardedPages, (2048 - 40) * 256);
    // In proportion to what is plugged: a record of each discarded page would be 4.5 MiB by itself.
    assert.ok(report.ram.transferred < 80 * MIB, `${report.ram.transferred}`);
    await assertWell(source);
    target.requestVirtioMem(64 * MIB);
    await target.virtioMemSettled();
    target.requestVirtioMem(0);
    await target.virtioMemSettled();
    target.requestVirtioMem(2 * MIB);
    await target.virtioMemSettled();
    await assertWell(target);
    await Promise.all([source.shutdown(), target.shutdown()]);
  }
});

// RD-11, RD-12
test('a storm of requests before, during and after a migration: busy meanwhile, the same plugged set, no page lost', async () => {
  const rounds = process.env['RAMFERRY_SLOW'] === undefined ? 2 : 20;
  const choose = randomChoices(7);
  // Its devices move, so each machine has those of the first.
  const machine = (seed: number): WorkloadOptions => ({ ...options(seed), freePageHints: true });
  let guest = WorkloadGuest.create(machine(1));
  await guest.start();
  let busy = 0;
  for (let round = 0; round < rounds; round += 1) {
    let storms = true;
    const storm = async (): Promise<void> => {
      while (storms) {
        guest.requestVirtioMem(2 * MIB * choose(40));
        await delay(choose(15));
      }
    };
    const storming = storm();
    await delay(100);
    const before = guest.virtioMem!.answers.busy;
    const outcome = await migrate(guest, machine(round), (migration) => {
      if (round % 2 === 1) {
        migration.cancel();
      }
    });
    storms = false;
    await storming;
    if (outcome.error === undefined) {
      busy += outcome.target.virtioMem!.answers.busy - before;
      await assertWell(guest);
      await guest.shutdown();
      guest = outcome.target;
    } else {
      assert.equal(outcome.report.status, 'cancelled', outcome.error.message);
      await outcome.target.shutdown();
    }
    // RD-11: after the end, whichever, plugging works again.
    guest.requestVirtioMem(30 * MIB);
    await guest.virtioMemSettled();
    await guest.stop();
    assert.deepEqual(guest.verify().badPages, []);
    await guest.resume();
  }
  assert.ok(busy > 0);
  await assertWell(guest);
  await guest.shutdown();
});

// RD-11, BS-7, BS-11
test('a storm during a background snapshot: busy meanwhile, the file has what was plugged, and a guest made of it runs on', async (context) => {
  const folder = mkdtempSync(join(tmpdir(), 'ramferry-virtio-mem-'));
  context.after(() => rmSync(folder, { recursive: true }));
  const file = join(folder, 'snapshot.mapped');
  const choose = randomChoices(11);
  const guest = WorkloadGuest.create(options(1));
  await guest.start();
  let storms = true;
  const storm = async (): Promise<void> => {
    while (storms) {
      guest.requestVirtioMem(2 * MIB * choose(40));
      await delay(choose(15));
    }
  };
  const storming = storm();
  await delay(100);
  let frozen: string | undefined;
  const { error } = await new Migration({
    guest: { kind: 'workload', shared: guest.share() },
    uri: `file:${file}`,
    mappedRam: {},
    backgroundSnapshot: {},
    onStatus: (status) => {
      frozen ??= status === 'active' ? plugged(guest) : undefined;
    },
  }).ended;
  assert.equal(error, undefined);
  storms = false;
  await storming;
  guest.requestVirtioMem(6 * MIB);
  await guest.virtioMemSettled();
  await assertWell(guest);
  await guest.shutdown();

  const opened = await openSnapshotFile(file);
  const [device] = memoryDevices(opened.snapshot.summary);
  const runs: string[] = [];
  let end = 0;
  const untilUnplugged = (offset: number): void => {
    if (offset > end) {
      runs.push(`${end}+${offset - end}`);
    }
  };
  forEachUnplugged(device!, (offset, length) => {
    untilUnplugged(offset);
    end = offset + length;
  });
  untilUnplugged(device!.regionSize);
  assert.equal(runs.join(' '), frozen);
  opened.close();
  const { incoming, target } = await migrate(file, options(1));
  assert.equal(incoming.status, 'completed');
  target.requestVirtioMem(20 * MIB);
  await target.virtioMemSettled();
  await assertWell(target);
  await target.shutdown();
});

// RD-26
test('a destination whose device is another one refuses before the first page, and the guest runs on', async () => {
  const source = WorkloadGuest.create({ ...options(1), virtioMem: { regionBytes: 64 * MIB, requestedBytes: 8 * MIB } });
  await source.start();
  await source.virtioMemSettled();
  const there = { ...options(1), virtioMem: { regionBytes: 64 * MIB, blockBytes: 4 * MIB } };
  const { error, incoming, target } = await migrate(source, there);
  assert.notEqual(error, undefined);
  assert.equal(incoming.status, 'failed');
  assert.equal(incoming.ram.normal + incoming.ram.duplicate, 0);
  assert.ok(source.source.isRunning());
  source.requestVirtioMem(16 * MIB);
  await source.virtioMemSettled();
  await assertWell(source);
  await Promise.all([source.shutdown(), target.shutdown()]);
});

// RD-6, 8.6: nothing is plugged while memory arrives, and afterwards it goes on
test('a guest with memory plugged and unplugged arrives by postcopy, over a link that breaks', async () => {
  const source = WorkloadGuest.create(options(1));
  await source.start();
  source.requestVirtioMem(24 * MIB);
  await source.virtioMemSettled();
  const target = WorkloadGuest.create(options(1));
  await target.boot();
  const listener = await listen('tcp:127.0.0.1:0');
  let pauses = 0;
  const migration = new Migration({
    guest: { kind: 'workload', shared: source.share() },
    uri: listener.uri,
    postcopy: { prefetchPages: 8, atOnce: true },
    parameters: { maxPostcopyBandwidth: 20 * MIB },
    onStatus: (status) => {
      if (status === 'postcopy-paused') {
        migration.recoverPostcopy(listener.uri);
      } else if (status === 'postcopy-active' && pauses === 0) {
        pauses += 1;
        setTimeout(() => migration.pausePostcopy(), 100);
      }
    },
  });
  const destination = new MigrationDestination({
    channel: await listener.accept(),
    target: new PostcopyTarget({ blocks: target.blocks, missingPages: () => target.missingPages() }),
    earlySection: (section, body) => target.loadEarly(section, body),
    commit: async ({ summary }) => target.load(deviceStates(summary.tail, summary.devices)),
    postcopy: {
      run: async () => {
        await target.resume();
        target.requestVirtioMem(32 * MIB);
      },
      connections: new IncomingConnections(() => listener.accept()),
    },
  });
  const [{ error, report }, incoming] = await Promise.all([migration.ended, destination.run()]);
  await listener.close();
  assert.deepEqual([error, destination.error], [undefined, undefined]);
  assert.equal(incoming.ramferry.postcopy!.recoveries, 1);
  assert.equal(incoming.ramferry.postcopy!.duplicates, 0);
  assert.ok(report.ram.transferred < 80 * MIB, `${report.ram.transferred}`);
  assert.ok(target.virtioMem!.answers.busy > 0);
  await target.virtioMemSettled();
  assert.equal(target.virtioMem!.pluggedBytes, 32 * MIB);
  await assertWell(target);
  await Promise.all([source.shutdown(), target.shutdown()]);
});
