// Waiting for a QEMU that loads a guest, where the wait ends early. The loading itself is in test/interop.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { nextTurn } from '../../test/until.js';
import { runIncoming } from './incoming.js';
import type { QemuProcess } from './qemu-process.js';

test('a command that fails after its wait was ended, as its QEMU was killed, is nobody’s unhandled rejection', async () => {
  const unhandled: unknown[] = [];
  const note = (reason: unknown): unknown => unhandled.push(reason);
  process.on('unhandledRejection', note);
  const controller = new AbortController();
  let killed = (_reason: Error): void => {};
  const qmp = {
    waitEvent: () => new Promise(() => {}),
    execute: async (command: string) => {
      if (command === 'migrate-set-capabilities') {
        controller.abort(new Error('the first cause'));
        return {};
      }
      return new Promise((_, reject) => {
        killed = reject;
      });
    },
  };
  const qemu = { isRunning: true, errorOutput: '', exited: new Promise(() => {}), qmp } as unknown as QemuProcess;
  try {
    await assert.rejects(runIncoming(qemu, 'unix:/x', { signal: controller.signal }), /the first cause/);
    killed(new Error('The monitor closed.'));
    await nextTurn();
    await nextTurn();
    assert.deepEqual(unhandled, []);
  } finally {
    process.off('unhandledRejection', note);
  }
});
