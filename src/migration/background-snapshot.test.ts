// Background snapshots of a guest that writes as fast as it can, by both protectors: the file is the guest at the instant,
// to the byte, and the guest does not notice.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { runCommand } from '../../test/command.js';
import { type MappedFile, readMappedFile } from '../../test/mapped-ram-file.js';
import { userfaultfdProblem } from '../dirty-log/userfaultfd-node.js';
import { type DeviceState, deviceStates } from '../format/stream/device-tail.js';
import { digestBlocks } from '../guest/digest-node.js';
import { type BarrierChoice, registersOf } from '../guest/workload/control.js';
import { decodeRegisters, REGISTER_COUNT, Register } from '../guest/workload/registers.js';
import { WorkloadGuest, type WorkloadOptions } from '../guest/workload/workload-guest-node.js';
import { RamBlockList } from '../memory/ram-block-list.js';
import { pageIndex } from '../memory/units.js';
import { openSnapshotFile } from '../memory-file/open-snapshot-file-node.js';
import { Migration, type MigrationOptions } from './migration.js';
import type { ProtectorKind } from './source-messages.js';

const MIB = 2 ** 20;
const STEPS = 2 ** 40;
const isSlow = process.env['RAMFERRY_SLOW'] === '1';

const base = fs.mkdtempSync(join(tmpdir(), 'ramferry-snapshot-'));
after(() => fs.rmSync(base, { recursive: true, force: true }));

const OPTIONS = { memoryBytes: 16 * MIB, segmentBytes: 8 * MIB, seed: 7 };

const guests: WorkloadGuest[] = [];
afterEach(() => Promise.all(guests.splice(0).map((guest) => guest.shutdown())));

const busyGuest = async (options: Partial<WorkloadOptions> = {}): Promise<WorkloadGuest> => {
  const guest = WorkloadGuest.create({ ...OPTIONS, steps: STEPS, ...options });
  guests.push(guest);
  await guest.start();
  return guest;
};

const snapshot = (guest: WorkloadGuest, path: string, options: Partial<MigrationOptions> = {}): Migration =>
  new Migration({
    guest: { kind: 'workload', shared: guest.share() },
    blocks: guest.blocks,
    uri: `file:${path}`,
    mappedRam: {},
    backgroundSnapshot: {},
    ...options,
  });

const runsOn = async (guest: WorkloadGuest): Promise<boolean> => {
  const enough = guest.counters().pagesWritten + 100;
  // On a busy machine a writer may not run for a while.
  for (let waited = 0; waited < 10_000 && guest.counters().pagesWritten < enough; waited += 10) {
    await sleep(10);
  }
  return guest.counters().pagesWritten >= enough;
};

const devicesOf = async (path: string): Promise<DeviceState[]> => {
  const { snapshot: saved, close } = await openSnapshotFile(path);
  close();
  return deviceStates(saved.summary.tail, saved.summary.devices);
};

const digests = ({ blocks }: MappedFile): Record<string, string> =>
  Object.fromEntries(blocks.map(({ name, content }) => [name, createHash('sha256').update(content).digest('hex')]));

/** The same guest, stopped after as many steps of each writer as the device state tells of. */
const twinOf = async (devices: readonly DeviceState[], options: Partial<WorkloadOptions>): Promise<WorkloadGuest> => {
  const twin = WorkloadGuest.create({ ...OPTIONS, ...options });
  guests.push(twin);
  for (const { instance, body } of devices) {
    const saved = new Float64Array(REGISTER_COUNT);
    decodeRegisters(body, saved);
    registersOf(twin.share().registers, instance)[Register.stepsLeft] = STEPS - saved[Register.stepsLeft]!;
  }
  await twin.start();
  await twin.finished();
  await twin.stop();
  return twin;
};

const restored = async (
  file: { readonly blocks: readonly Pick<MappedFile['blocks'][number], 'name' | 'usedLength' | 'content'>[] },
  devices: readonly DeviceState[],
): Promise<WorkloadGuest> => {
  const blocks = RamBlockList.create({ segmentBytes: 32 * MIB });
  for (const { name, usedLength, content } of file.blocks) {
    blocks.add({ name, usedLength }).write(0, content);
  }
  const guest = WorkloadGuest.restore(blocks, devices);
  guests.push(guest);
  return guest;
};

const missing = userfaultfdProblem();

interface Variant {
  readonly protector: ProtectorKind;
  readonly barrier: BarrierChoice;
}

const variants: readonly Variant[] = [
  { protector: 'store-barrier', barrier: 'unconditional' },
  { protector: 'store-barrier', barrier: 'filtered' },
  { protector: 'userfaultfd', barrier: 'unconditional' },
  // What is chosen for a guest whose stores cannot be asked.
  { protector: 'userfaultfd', barrier: 'none' },
];

for (const { protector, barrier } of variants) {
  const skip = protector === 'userfaultfd' && missing;
  const chosen = { backgroundSnapshot: barrier === 'none' ? {} : { protector } };

  describe(`background snapshot by ${protector}, ${barrier} marks`, { skip, timeout: 120_000 }, () => {
    // BS-1, BS-2, BS-9, BS-12
    test('the file is the guest at the instant, and both go on', async () => {
      const guest = await busyGuest({ barrier });
      for (const round of isSlow ? Array.from({ length: 30 }).keys() : [0]) {
        const path = join(base, `${protector}-${barrier}-${round}`);
        const { report, error } = await snapshot(guest, path, chosen).ended;
        assert.equal(error, undefined);
        assert.ok(guest.source.isRunning());

        const { ram, ramferry } = report;
        assert.equal(ram.normal + ram.duplicate, ram.total / 4096);
        assert.deepEqual([ram.remaining, ram['dirty-sync-count']], [0, 0]);
        assert.deepEqual(ramferry.logClears, { calls: 0, pages: 0 });
        assert.deepEqual(
          ramferry.iterations.map(({ guestRunning }) => guestRunning),
          [true],
        );

        const file = readMappedFile(path);
        const devices = await devicesOf(path);
        const twin = await twinOf(devices, {});
        assert.deepEqual(digests(file), digestBlocks(twin.blocks));
        // The guest is somewhere else by now, or the test would show nothing.
        assert.ok(await runsOn(guest));

        const again = await restored(file, devices);
        const { bad, checked, staleTables } = again.verify();
        assert.deepEqual([bad, staleTables], [0, []]);
        assert.ok(checked > 4000);
        await again.start();
        assert.ok(await runsOn(again));
        await again.stop();
        assert.deepEqual([again.verify().bad, again.verify().staleTables], [0, []]);
        fs.rmSync(path);
      }
      await guest.stop();
      // BS-6: nobody was left waiting, and nothing was written to the wrong place.
      assert.deepEqual([guest.verify().bad, guest.verify().staleTables, guest.counters().bad], [0, [], 0]);
    });

    // The rest does not depend on how stores are marked.
    if (barrier !== 'unconditional') {
      return;
    }

    // BS-5, BS-6, PL-4, PL-36
    test('cancelled at any moment: the guest runs on, and there is no file', async () => {
      const guest = await busyGuest({ barrier });
      const folder = fs.mkdtempSync(join(base, 'cancelled-'));
      let cancelled = 0;
      const rounds = isSlow ? 100 : 3;
      for (let round = 0; round < rounds; round += 1) {
        const path = join(folder, 'file');
        const running = snapshot(guest, path, chosen);
        await sleep(20 + (round / rounds) * 150);
        running.cancel();
        const end = await running.ended.catch(() => undefined);
        if (end?.report.status === 'completed') {
          fs.rmSync(path);
        } else {
          cancelled += 1;
        }
        assert.deepEqual(fs.readdirSync(folder), []);
        assert.ok(await runsOn(guest));
      }
      assert.ok(cancelled > 0);
      await guest.stop();
      assert.deepEqual([guest.verify().bad, guest.verify().staleTables], [0, []]);
    });

    // BS-6, TS-34
    test('a disk that gets full: the guest runs on, and there is no file', async (t) => {
      const folder = fs.mkdtempSync(join(base, 'full-'));
      try {
        execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', folder], { stdio: 'ignore' });
      } catch {
        t.skip('file systems cannot be mounted here');
        return;
      }
      after(() => execFileSync('umount', [folder]));
      const guest = await busyGuest({ barrier });
      const { report, error } = await snapshot(guest, join(folder, 'file'), chosen).ended;
      assert.deepEqual([report.status, error?.code], ['failed', 'NO_SPACE']);
      assert.deepEqual(fs.readdirSync(folder), []);
      assert.ok(await runsOn(guest));
    });

    // TS-35: with every guest thread waiting for it
    test("the engine's thread dies: the guest runs on", async (t) => {
      const guest = await busyGuest({ barrier });
      const path = join(base, `${protector}.sock`);
      // Nobody reads, so that no page ever leaves.
      const server = createServer({ pauseOnConnect: true }).listen(path);
      t.after(() => server.close());
      const running = new Migration({
        guest: { kind: 'workload', shared: guest.share() },
        uri: `unix:${path}`,
        ...chosen,
      });
      for (let written = -1; written !== guest.counters().pagesWritten; await sleep(200)) {
        written = guest.counters().pagesWritten;
      }
      // A message to the engine ends its thread instead.
      t.mock.method(Worker.prototype, 'postMessage', function (this: Worker) {
        void this.terminate();
      });
      running.cancel();
      t.mock.restoreAll();
      await assert.rejects(running.ended, { code: 'ENGINE_DIED' });
      assert.ok(await runsOn(guest));
      await guest.stop();
      assert.deepEqual([guest.verify().bad, guest.verify().staleTables], [0, []]);
    });

    test('verify and inspect take it; two of a paused guest do not differ', async () => {
      const guest = await busyGuest({ barrier, memoryBytes: 8 * MIB });
      await guest.stop();
      const paths = [join(base, 'first'), join(base, 'second')] as const;
      for (const path of paths) {
        const { report } = await snapshot(guest, path, chosen).ended;
        assert.equal(report.status, 'completed', report['error-desc']);
        assert.equal(guest.source.isRunning(), false);
      }
      assert.deepEqual(digests(readMappedFile(paths[0])), digestBlocks(guest.blocks));
      const [verified, inspected, differ] = await Promise.all([
        runCommand('verify', paths[0], '--json'),
        runCommand('inspect', paths[0], '--json'),
        runCommand('diff', ...paths, '--json'),
      ]);
      assert.equal(verified.status, 0, verified.stdout);
      const { format, warnings, complete } = JSON.parse(inspected.stdout);
      assert.deepEqual([format, warnings, complete], ['mapped-ram', [], true]);
      assert.equal(differ.status, 0, differ.stdout);
    });
  });
}

// BS-1: a stream's records of pages that were set aside lie in other memory than their neighbours
test('as a stream', { timeout: 60_000 }, async () => {
  const guest = await busyGuest();
  const path = join(base, 'stream');
  const { error } = await new Migration({
    guest: { kind: 'workload', shared: guest.share() },
    uri: `file:${path}`,
    backgroundSnapshot: {},
  }).ended;
  assert.equal(error, undefined);
  const { snapshot: saved, close } = await openSnapshotFile(path);
  const blocks = saved.setup.blocks.map(({ index, name, usedLength }) => {
    const content = Buffer.alloc(usedLength);
    saved.readPages(index, pageIndex(0), usedLength / 4096, content);
    return { name, usedLength, content };
  });
  const again = await restored({ blocks }, deviceStates(saved.summary.tail, saved.summary.devices));
  close();
  const { bad, checked, staleTables } = again.verify();
  assert.deepEqual([bad, staleTables], [0, []]);
  assert.ok(checked > 4000);
});

test('what QEMU excludes is refused by name, before the guest notices', async () => {
  const guest = await busyGuest({ memoryBytes: 4 * MIB });
  const refused: readonly (readonly [Partial<MigrationOptions>, string])[] = [
    [{ mappedRam: { channels: 2 } }, 'multifd'],
    [{ postcopy: { prefetchPages: 0 } }, 'postcopy-ram'],
    [{ parameters: { autoConverge: true } }, 'auto-converge'],
    [{ returnPath: true }, 'return-path'],
  ];
  for (const [options, value] of refused) {
    assert.throws(() => snapshot(guest, join(base, 'refused'), options), {
      code: 'CAPABILITY_CONFLICT',
      kind: 'usage',
      value,
    });
  }
  const silent = await busyGuest({ memoryBytes: 4 * MIB, barrier: 'none' });
  await assert.rejects(
    snapshot(silent, join(base, 'refused'), { backgroundSnapshot: { protector: 'store-barrier' } }).ended,
    { code: 'PROTECTOR_MISSING' },
  );
});
