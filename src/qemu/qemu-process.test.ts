// Starting what is no QEMU; the real one is started in test/interop.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { QemuProcess } from './qemu-process.js';

const shell = (script: string): string[] => ['/bin/sh', '-c', script, 'sh'];

test('a program that ends before its monitor answers: status and words are in the error', async () => {
  await assert.rejects(QemuProcess.start(shell('echo "no such machine" >&2; exit 3')), {
    code: 'QEMU_EXITED',
    message: 'QEMU exited with status 3: no such machine.',
    value: 3,
  });
  await assert.rejects(QemuProcess.start(shell('kill -SEGV $$')), { code: 'QEMU_EXITED', value: 'SIGSEGV' });
});

test('a program that cannot be run', async () => {
  await assert.rejects(QemuProcess.start(['/nonexistent/qemu']), {
    code: 'QEMU_EXITED',
    message: /could not be started: .*nonexistent/,
  });
  await assert.rejects(QemuProcess.start([]), { code: 'QEMU_COMMAND', kind: 'usage' });
});

test('a program whose monitor never answers is killed', async () => {
  const start = performance.now();
  await assert.rejects(QemuProcess.start(shell('exec sleep 60'), { timeoutMs: 50 }), { code: 'QMP_TIMEOUT' });
  assert.ok(performance.now() - start < 5000);
});
