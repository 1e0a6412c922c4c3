// Run by run-with-qemus.test.ts: tests that ask for the QEMU that RAMFERRY_QEMU names, and end as their names say.

import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { qemuOf } from './releases.js';
import { runWithQemus } from './run-with-qemus.js';

const fixture = (name: string, body: () => Promise<void>): void => {
  test(name, { timeout: 1000 }, (context) =>
    runWithQemus(async () => {
      await qemuOf('11');
      await body();
    }, context),
  );
};

fixture('passes', async () => {});
fixture('fails', async () => {
  throw new Error('something is different');
});
fixture('takes too long', () => delay(60_000, undefined, { ref: false }));
