// The demo's last act: a guest that runs before its memory is loaded, and is what it was.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runCommand } from '../../../test/command.js';
import type { RestoreReport } from './restore.js';

test('demo: saved, restored at once and after a full load, verified', async () => {
  const small = ['--memory', '64M', '--working-set', '32M', '--rate', '48M', '--max-bandwidth', '0', '--no-plain'];
  const { status, stdout, stderr } = await runCommand('demo', '--json', '--quiet', ...small);
  assert.equal(status, 0, stderr);
  const { restore } = (JSON.parse(stdout) as { ramferry: { restore: RestoreReport } }).ramferry;
  assert.equal(restore.verified, true);
  assert.equal(restore.verifier.bad, 0);
  assert.ok(restore.verifier.checked > 8192);
  assert.ok(restore.fileBytes >= 32 * 2 ** 20);
  assert.ok(restore.runMs > 0 && restore.runMs < restore.completeMs && restore.fullLoadMs > 0);
});
