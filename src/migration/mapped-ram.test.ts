// A busy guest saved live into a mapped-ram file on a disk: engine in its own thread, pages by writer threads, direct I/O.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { readMappedFile } from '../../test/mapped-ram-file.js';
import { openPositionedFile } from '../channel/positioned-file-node.js';
import { digestBlocks } from '../guest/digest-node.js';
import { WorkloadGuest, type WorkloadOptions } from '../guest/workload/workload-guest-node.js';
import { Migration, type MigrationEnd, type MigrationOptions } from './migration.js';
import type { MappedRamOptions } from './source-messages.js';

const MIB = 2 ** 20;
const PAGE = 4096;

const base = fs.mkdtempSync(join(tmpdir(), 'ramferry-mapped-'));
after(() => fs.rmSync(base, { recursive: true, force: true }));

const isSlow = process.env['RAMFERRY_SLOW'] === '1';

const busyGuest = async (options: Partial<WorkloadOptions> = {}): Promise<WorkloadGuest> => {
  const guest = WorkloadGuest.create({
    memoryBytes: 48 * MIB,
    workingSetBytes: 32 * MIB,
    rate: 300 * MIB,
    segmentBytes: 16 * MIB,
    ...options,
  });
  after(() => guest.shutdown());
  await guest.start();
  return guest;
};

const save = (
  guest: WorkloadGuest,
  uri: string,
  mappedRam: MappedRamOptions = {},
  options: Partial<MigrationOptions> = {},
): Migration =>
  new Migration({
    guest: { kind: 'workload', shared: guest.share() },
    blocks: guest.blocks,
    uri,
    mappedRam,
    ...options,
  });

const runsOn = async (guest: WorkloadGuest): Promise<boolean> => {
  const before = guest.counters().pagesWritten;
  await sleep(50);
  return guest.counters().pagesWritten > before;
};

const digestFile = (path: string, start = 0): Record<string, string> =>
  Object.fromEntries(
    readMappedFile(path, start).blocks.map(({ name, content }) => [
      name,
      createHash('sha256').update(content).digest('hex'),
    ]),
  );

// MR-2, MR-3, MR-7, MR-8, MR-9, MR-11, MR-12, MR-13, MR-26
for (const [index, mappedRam] of (
  [{}, { channels: 1 }, { channels: 3 }, { directIo: true }, { channels: 2, directIo: true }] as MappedRamOptions[]
).entries()) {
  test(`saved live, ${JSON.stringify(mappedRam)}: the file is the guest at the switchover`, {
    timeout: 60_000,
  }, async () => {
    // A third of the line, so that it converges on a busy disk too; scattered pages by direct I/O are as slow as the disk is.
    const guest = await busyGuest({ rate: (mappedRam.directIo ? 10 : 100) * MIB });
    const path = join(base, `live${index}`);
    const { report, error } = await save(guest, `file:${path}`, mappedRam, {
      // Several passes.
      parameters: { maxBandwidth: 300 * MIB, downtimeLimit: mappedRam.directIo ? 100 : 10 },
    }).ended;
    assert.equal(error, undefined);
    assert.ok(report.ramferry.iterations.length >= 2);
    // The guest stays where it was when it was stopped for good.
    assert.equal(guest.source.isRunning(), false);
    assert.deepEqual(digestFile(path), digestBlocks(guest.blocks));
    const { blocks } = readMappedFile(path);
    const isZero = Buffer.alloc(PAGE);
    for (const { content, has, usedLength } of blocks) {
      for (let page = 0; page < usedLength / PAGE; page += 1) {
        assert.equal(has(page), !content.subarray(page * PAGE, (page + 1) * PAGE).equals(isZero));
      }
    }
    // MR-7, and all of it was counted
    assert.ok(fs.statSync(path).size < 48 * MIB + blocks.length * 2 * MIB + 100_000);
    assert.ok(report.ram.transferred >= report.ram['normal-bytes']);
    assert.deepEqual(
      fs.readdirSync(base).filter((name) => name.includes('partial')),
      [],
    );
    fs.rmSync(path);
  });
}

// MR-20, MR-28
test('behind a header of somebody else, whose file was longer', { timeout: 60_000 }, async () => {
  const guest = await busyGuest({ memoryBytes: 8 * MIB, workingSetBytes: 8 * MIB });
  const path = join(base, 'offset');
  fs.writeFileSync(path, Buffer.alloc(64 * MIB, 0xee));
  const { error } = await save(guest, `file:${path},offset=0x11234`, { channels: 2 }).ended;
  assert.equal(error, undefined);
  assert.deepEqual(digestFile(path, 0x11234), digestBlocks(guest.blocks));
  const file = fs.readFileSync(path);
  assert.ok(file.length < 16 * MIB);
  assert.ok(file.subarray(0, 0x11234).every((byte) => byte === 0xee));
});

// MR-18
test('what has no positions is refused before the guest notices', async () => {
  const guest = await busyGuest();
  for (const uri of ['unix:/nowhere', 'exec:cat > /dev/null', 'fd:1', '-']) {
    await assert.rejects(save(guest, uri).ended, { code: 'NOT_SEEKABLE', kind: 'usage' });
  }
  await assert.rejects(save(guest, `file:${join(base, 'none')}`, { channels: 65 }).ended, { code: 'CHANNELS' });
  await assert.rejects(save(guest, `file:${join(base, 'no', 'folder')}`).ended, { code: 'NOT_FOUND' });
  assert.ok(await runsOn(guest));
});

// MR-21, PL-4
test('cancelled at any moment: the guest runs on, what was there stays, nothing else does', {
  timeout: 60_000,
}, async () => {
  const guest = await busyGuest();
  const folder = fs.mkdtempSync(join(base, 'x'));
  const path = join(folder, 'file');
  fs.writeFileSync(path, 'precious');
  let cancelled = 0;
  const rounds = isSlow ? 200 : 12;
  for (let round = 0; round < rounds; round += 1) {
    const running = save(guest, `file:${path}`, { channels: round % 3 }, { parameters: { maxBandwidth: 400 * MIB } });
    await sleep((round / rounds) * 400);
    running.cancel();
    const end = await running.ended.catch(() => undefined);
    if (end?.report.status === 'completed') {
      assert.deepEqual(digestFile(path), digestBlocks(guest.blocks));
      await guest.resume();
      fs.writeFileSync(path, 'precious');
    } else {
      cancelled += 1;
      assert.ok(guest.source.isRunning());
      assert.equal(fs.readFileSync(path, 'utf8'), 'precious');
    }
    assert.deepEqual(fs.readdirSync(folder), ['file']);
  }
  assert.ok(cancelled > rounds / 4);
  assert.ok(await runsOn(guest));
  await guest.stop();
  assert.equal(guest.verify().bad, 0);
});

/** A file system of 24 MiB, if we may have one. */
const tinyFileSystem = (): string | undefined => {
  const folder = fs.mkdtempSync(join(base, 'tiny'));
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=24m', 'tmpfs', folder], { stdio: 'ignore' });
    after(() => execFileSync('umount', [folder]));
    return folder;
  } catch {
    return undefined;
  }
};

// MR-19, MR-21: tmpfs takes what fits of the last write and only then has no space
test('a disk that gets full, by the engine or by a writer thread', { timeout: 60_000 }, async (t) => {
  const folder = tinyFileSystem();
  if (folder === undefined) {
    t.skip('file systems cannot be mounted here');
    return;
  }
  const guest = await busyGuest();
  const modes: MappedRamOptions[] = [{}, { channels: 2 }, { directIo: true }, { channels: 1, directIo: true }];
  for (const mappedRam of modes) {
    const { report, error }: MigrationEnd = await save(guest, `file:${join(folder, 'file')}`, mappedRam).ended;
    assert.deepEqual([report.status, error?.code, error?.file], ['failed', 'NO_SPACE', join(folder, 'file')]);
    assert.match(error!.message, /no space is left/);
    assert.ok(await runsOn(guest));
    assert.deepEqual(fs.readdirSync(folder), []);
  }
  // One write, of which the system takes the first 24 MiB and says so.
  const file = await openPositionedFile(join(folder, 'file'));
  assert.throws(() => file.writePages(new Uint8Array(25 * MIB), 0, 25 * MIB, 0), { code: 'NO_SPACE' });
  file.abort();
});
