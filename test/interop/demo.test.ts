// `demo --guest qemu`: a Linux in a stock QEMU, saved by it and cloned.

import assert from 'node:assert/strict';
import { interopTest } from './lab.js';
import { Ramferry } from './ramferry.js';

interface Clones {
  readonly resumeMs: readonly number[];
  readonly loadMs: number;
  readonly checked: number;
  readonly bad: readonly number[];
  readonly verified: boolean;
}

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
