// `demo --guest qemu`: a Linux in a stock QEMU, saved by it and cloned.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { RunningCommand } from '../command.js';
import { typeHint } from '../type-hint.js';
import { interopTest } from './lab.js';
import { Ramferry } from './ramferry.js';

interface Clones {
  readonly resumeMs: readonly number[];
  readonly loadMs: number;
  readonly checked: number;
  readonly bad: readonly number[];
  readonly verified: boolean;
}

interopTest(
  'demo --guest qemu: says what it lacks and how to get it',
  async (lab) => {
    const toolbox = lab.path('a toolbox');
    fs.mkdirSync(toolbox);
    // Node and npm, and no QEMU.
    const env = {
      RAMFERRY_TOOLBOX: toolbox,
      RAMFERRY_QEMU: '',
      PATH: `${path.dirname(process.execPath)}:/nonexistent`,
    };
    const refusal = new RunningCommand(['demo', '--guest', 'qemu', '--json'], env);
    const { status, stdout } = await refusal.ended;
    const { error } = JSON.parse(stdout) as { error: { code: string; message: string; hint: string } };
    assert.deepEqual([status, error.code], [2, 'QEMU_MISSING']);
    assert.match(error.message, /lacks a QEMU of version 9.0 or newer, and a Linux guest/);
    if (process.env['RAMFERRY_SLOW'] === undefined) {
      // What it would unpack is there already: it is typed without the minute that Debian's mirror takes.
      for (const part of ['qemu-10', 'guest']) {
        fs.symlinkSync(path.join(lab.toolbox.folder, part), path.join(toolbox, part));
      }
    }
    const filling = await typeHint('npm --prefix … run toolbox -- …', error.hint, {
      env: { RAMFERRY_TOOLBOX: toolbox },
    }).ended;
    assert.equal(filling.status, 0, filling.stderr);
    assert.match(filling.stdout, /^qemu-10 is in .*\nguest is in /m);
    const found = new RunningCommand(['demo', '--guest', 'qemu', '--memory', '1M', '--json'], env);
    const { stdout: answer } = await found.ended;
    assert.doesNotMatch(answer, /_MISSING/);
  },
  ['10'],
);

interopTest('demo --guest qemu: four clones of a real Linux, each of which checks its memory', async (lab) => {
  const small = ['--memory', '256M', '--working-set', '32M', '--rate', '10M'];
  const { status, stdout, stderr } = await Ramferry.startWith(
    lab,
    { RAMFERRY_QEMU: await lab.program() },
    'demo',
    '--guest',
    'qemu',
    '--json',
    ...small,
  ).exited;
  assert.equal(status, 0, stderr);
  const { clones } = (JSON.parse(stdout) as { ramferry: { clones: Clones } }).ramferry;
  assert.equal(clones.verified, true);
  assert.deepEqual(clones.bad, [0, 0, 0, 0]);
  assert.equal(clones.resumeMs.length, 4);
  assert.ok(clones.loadMs > 0);
  // Each has gone once round its working set.
  assert.ok(clones.checked > 4 * 8192);
});
