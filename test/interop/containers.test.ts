// What real tools put a guest into: savevm's snapshots in qcow2 disks of three QEMUs, gzip, zstd.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { gzipSync } from 'node:zlib';
import { interopTest, type Lab } from './lab.js';
import { Ramferry } from './ramferry.js';
import { ALL_RELEASES, type QemuRelease } from './releases.js';

interface Shown {
  readonly container: string;
  readonly complete: boolean;
  readonly warnings: readonly string[];
  readonly blocks: readonly { readonly name: string; readonly sha256: string }[];
  readonly snapshots: readonly { readonly tag: string; readonly vmStateBytes: number }[];
  readonly devices: readonly { readonly name: string; readonly bytes: number }[];
}

const inspect = async (lab: Lab, ...args: string[]): Promise<Shown> => {
  const { status, stdout, stderr } = await Ramferry.run(lab, 'inspect', '--json', ...args);
  assert.equal(status, 0, `${stdout}\n${stderr}`);
  return JSON.parse(stdout) as Shown;
};

const digests = ({ blocks }: Shown): object => Object.fromEntries(blocks.map(({ name, sha256 }) => [name, sha256]));

/** Disks as people make them: the format of before 2014, subclusters, the default. */
const DISK_OPTIONS: Readonly<Record<QemuRelease, readonly string[]>> = {
  '7.2': ['-o', 'compat=0.10'],
  '10': ['-o', 'extended_l2=on,cluster_size=128k'],
  '11': [],
};

interopTest(
  'a snapshot that savevm made holds what migrate saves',
  async (lab) => {
    const disk = lab.path('disk.qcow2');
    const options = DISK_OPTIONS[lab.release];
    const made = spawnSync(lab.toolbox.qemuImg, ['create', '-q', '-f', 'qcow2', ...options, disk, '33M']);
    assert.equal(made.status, 0, String(made.stderr));
    const drive = ['-drive', `file=${disk},if=none,id=d,format=qcow2`];
    const guest = await lab.startGuest({ memory: 64, extraArguments: drive });
    // Something in the disk besides the snapshots.
    await guest.qmp.execute('human-monitor-command', { 'command-line': 'qemu-io d "write -P 7 1M 2M"' });
    for (const tag of ['first', 'before']) {
      assert.equal(await guest.qmp.execute('human-monitor-command', { 'command-line': `savevm ${tag}` }), '');
    }
    const stream = lab.path('guest.mig');
    await guest.saveStream(stream);
    await guest.qemu.quit();

    const { container, snapshots } = await inspect(lab, disk);
    assert.deepEqual([container, snapshots.map(({ tag }) => tag)], ['qcow2', ['first', 'before']]);
    const saved = await inspect(lab, '--digest', stream);
    const shown = await inspect(lab, '--digest', `file:${disk},snapshot=before`);
    assert.deepEqual([shown.container, shown.complete, shown.warnings], ['qcow2', true, []]);
    assert.deepEqual(digests(shown), digests(saved));
    const names = ({ devices }: Shown): string[] => devices.map(({ name }) => name);
    assert.deepEqual(names(shown), names(saved));
  },
  ALL_RELEASES,
);

interopTest(
  'a stream that gzip or zstd packed, and one taken out of a disk, are loaded by QEMU',
  async (lab) => {
    const disk = lab.path('disk.qcow2');
    assert.equal(spawnSync(lab.toolbox.qemuImg, ['create', '-q', '-f', 'qcow2', disk, '1M']).status, 0);
    const machine = { memory: 64, extraArguments: ['-drive', `file=${disk},if=none,id=d,format=qcow2`] };
    const guest = await lab.startGuest(machine);
    await guest.qmp.execute('human-monitor-command', { 'command-line': 'savevm before' });
    await guest.qemu.quit();
    const stream = lab.path('guest.mig');
    const converted = await Ramferry.run(lab, 'convert', `file:${disk},snapshot=before`, stream, '--to', 'stream');
    assert.equal(converted.status, 0, converted.stderr);
    const destination = await lab.startGuest({ ...machine, incoming: 'defer' });
    await destination.loadStream(stream);
    await destination.qemu.quit();

    const zstd = spawnSync('zstd', ['-q', '-k', stream]);
    writeFileSync(`${stream}.gz`, gzipSync(readFileSync(stream)));
    const expected = digests(await inspect(lab, '--digest', stream));
    assert.deepEqual(digests(await inspect(lab, '--digest', `${stream}.gz`)), expected);
    if (zstd.status === 0) {
      assert.deepEqual(digests(await inspect(lab, '--digest', `${stream}.zst`)), expected);
    }
  },
  ['10'],
);
