import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const fixture = fileURLToPath(new URL('run-with-qemus-fixture.js', import.meta.url));

/** Runs the fixture's three tests where the only QEMU is one of `version`; how many ended in which way. */
const run = (version: string, environment: NodeJS.ProcessEnv = {}): { status: number | null; output: string } => {
  const folder = mkdtempSync(join(tmpdir(), 'ramferry versions '));
  try {
    const qemu = join(folder, 'qemu');
    writeFileSync(qemu, `#!/bin/sh\necho "QEMU emulator version ${version}"\n`);
    chmodSync(qemu, 0o755);
    const { status, stdout } = spawnSync(
      process.execPath,
      ['--test', '--test-force-exit', '--test-reporter=tap', fixture],
      {
        encoding: 'utf8',
        env: {
          ...process.env,
          // A runner of its own, and not a child of the one that runs this.
          NODE_TEST_CONTEXT: undefined,
          CI: undefined,
          PATH: join(folder, 'none'),
          RAMFERRY_QEMU: qemu,
          RAMFERRY_TOOLBOX: join(folder, 'none'),
          ...environment,
        },
      },
    );
    return { status, output: stdout };
  } finally {
    rmSync(folder, { recursive: true });
  }
};

const count = (output: string, word: string): number => Number(new RegExp(`^# ${word} (\\d+)$`, 'm').exec(output)?.[1]);

test('what fails or hangs with a QEMU that the suite does not know is shown with its version, and does not fail the run', () => {
  const { status, output } = run('12.3.0');
  assert.equal(status, 0, output);
  assert.deepEqual([count(output, 'pass'), count(output, 'todo'), count(output, 'fail')], [1, 2, 0], output);
  assert.match(output, /not ok \d+ - fails # TODO not known to this suite yet: QEMU 12\.3\.0/);
  assert.match(output, /not ok \d+ - takes too long # TODO not known to this suite yet: QEMU 12\.3\.0/);
});

test('what fails with a known one fails the run', () => {
  const { status, output } = run('11.1.9');
  assert.equal(status, 1, output);
  assert.deepEqual([count(output, 'pass'), count(output, 'todo')], [1, 0], output);
});

test('what finds no QEMU for its place is skipped, and in continuous integration fails', () => {
  const local = run('9.2.0');
  assert.equal(local.status, 0, local.output);
  assert.deepEqual([count(local.output, 'pass'), count(local.output, 'skipped')], [0, 3], local.output);
  assert.match(local.output, /# SKIP there is no QEMU 11/);
  const ci = run('9.2.0', { CI: 'true' });
  assert.equal(ci.status, 1, ci.output);
  assert.equal(count(ci.output, 'fail'), 3, ci.output);
});
