// Commands in the hints of `clone`, typed: with a real QEMU, as they start some (test/hints.test.ts).

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { runCommand } from '../command.js';
import { typeHint } from '../type-hint.js';
import { interopTest, poll } from './lab.js';

const hintOf = async (...args: readonly string[]): Promise<string> => {
  const { stdout, stderr } = await runCommand('--json', ...args);
  const { error } = JSON.parse(stdout) as { error?: { hint?: string } };
  assert.ok(error?.hint !== undefined, stdout + stderr);
  return error.hint;
};

interopTest(
  'what clone hints at works: the command line, the file, the disks, the end',
  async (lab) => {
    const [mapped, stream] = [lab.path('a guest.mapped'), lab.path('guest.mig')];
    const guest = await lab.startGuest({ memory: 16 });
    await guest.saveStream(mapped, { capabilities: { 'mapped-ram': true } });
    await guest.qemu.quit();
    const qemu = await lab.program();
    assert.equal(path.basename(qemu), 'qemu-system-x86_64');
    const PATH = [path.dirname(qemu), path.dirname(lab.toolbox.qemuImg), process.env['PATH']].join(path.delimiter);

    const noCommand = await hintOf('clone', mapped, '-n', '2');
    const cloning = typeHint(
      'ramferry clone … -n … -- qemu-system-x86_64 -M … -m …K -nodefaults -display none',
      noCommand,
      {
        env: { PATH },
      },
    );
    lab.onClose(async () => {
      cloning.child.kill('SIGKILL');
      await cloning.ended;
    });
    await poll(
      () => (/^2 clones loaded/m.test(cloning.stderr) && cloning.stderr.endsWith('--stop\n')) || undefined,
      () => cloning.stderr,
    );
    const stopping = await typeHint('ramferry clone … --stop', cloning.stderr).ended;
    assert.match(stopping.stdout, /^1 set of clones/);
    assert.equal((await cloning.ended).status, 0);

    assert.equal((await runCommand('convert', mapped, stream, '--to', 'stream')).status, 0);
    const notMappable = await hintOf('clone', stream, '--by', 'map', '--', qemu, '-m', '16M');
    const converting = typeHint('ramferry convert … ….mapped --to mapped-ram', notMappable);
    assert.equal((await converting.ended).status, 0);
    assert.equal((await runCommand('verify', `${stream}.mapped`)).status, 0);

    const disk = lab.path('my disk.qcow2');
    assert.equal(spawnSync(lab.toolbox.qemuImg, ['create', '-q', '-f', 'qcow2', disk, '1M']).status, 0);
    const oneDisk = await hintOf('clone', mapped, '-n', '2', '--', qemu, '-m', '16M', '-drive', `file=${disk},if=none`);
    const creating = typeHint('for i in $(seq 0 …); do qemu-img create -f qcow2 -b … -F … ….$i; done', oneDisk, {
      cwd: '/',
      env: { PATH },
    });
    const created = await creating.ended;
    assert.equal(created.status, 0, created.stderr);
    assert.deepEqual(
      [0, 1, 2].map((index) => fs.existsSync(`${disk}.${index}`)),
      [true, true, false],
    );
  },
  ['10'],
);
