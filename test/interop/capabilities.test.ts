// Whatever a source has switched on: its guest is saved, or it runs on there.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import { corpusDestination, startFromCorpus } from './corpus.js';
import { interopTest, type Lab, type LabGuest, poll } from './lab.js';
import { Ramferry } from './ramferry.js';
import { ALL_RELEASES } from './releases.js';

const STEP_MS = 60_000;

/** Sets of capabilities that change what a source sends, or how it ends. */
const SETS: readonly (readonly string[])[] = [
  ['return-path'],
  ['postcopy-ram', 'return-path'],
  ['xbzrle', 'return-path'],
  ['switchover-ack', 'return-path'],
  ['dirty-bitmaps', 'return-path'],
];

/** The others take some seconds each. */
const MORE_SETS: readonly (readonly string[])[] = [
  [],
  ['postcopy-ram'],
  ['postcopy-ram', 'postcopy-preempt', 'return-path'],
  ['postcopy-ram', 'postcopy-blocktime', 'return-path'],
  ['multifd'],
  ['multifd', 'return-path'],
  ['multifd', 'zero-copy-send', 'return-path'],
  ['mapped-ram'],
  ['mapped-ram', 'return-path'],
  ['background-snapshot'],
  ['x-ignore-shared', 'return-path'],
  ['validate-uuid', 'return-path'],
  ['release-ram', 'return-path'],
  ['auto-converge', 'return-path'],
  ['late-block-activate', 'return-path'],
  ['zero-blocks', 'return-path'],
  ['compress', 'return-path'],
  ['pause-before-switchover', 'return-path'],
];

/** Everything off but these; undefined if this QEMU does not have them, or not with each other. */
const setCapabilities = async (guest: LabGuest, wanted: readonly string[]): Promise<true | undefined> => {
  const known = await guest.qmp.execute('query-migrate-capabilities');
  const all = known.map(({ capability }) => ({ capability, state: false }));
  // A later capability may not go without an earlier one, so that all of them go at once.
  // QEMU may say `failed` before it has put the migration away.
  await poll(
    () =>
      guest.qmp.execute('migrate-set-capabilities', { capabilities: all }).then(
        () => true as const,
        () => undefined,
      ),
    () => `the migration before ${wanted.join(', ')} does not end`,
    STEP_MS,
  );
  if (!wanted.every((name) => known.some(({ capability }) => capability === name))) {
    return undefined;
  }
  const capabilities = ['events', ...wanted].map((capability) => ({ capability, state: true }));
  return guest.qmp.execute('migrate-set-capabilities', { capabilities }).then(
    () => true as const,
    () => undefined,
  );
};

const ENDS = ['completed', 'failed', 'cancelled', 'postcopy-paused'];

/** The guest gives signs of life here, and is not merely said to. */
const assertLives = async (guest: LabGuest, what: string): Promise<void> => {
  assert.equal(await guest.status(), 'running', what);
  const last = guest.heartbeat();
  await poll(
    () => (guest.heartbeat() > last + 1 ? true : undefined),
    () => `${what}: its heartbeat stays at ${last}`,
    STEP_MS,
  );
};

const tryOne = async (lab: Lab, guest: LabGuest, wanted: readonly string[], index: number): Promise<string> => {
  const what = wanted.join(', ') || 'nothing';
  if ((await setCapabilities(guest, wanted)) === undefined) {
    return 'not here';
  }
  const out = lab.path(`out-${index}.mig`);
  const receiving = Ramferry.start(lab, 'receive', 'tcp:127.0.0.1:0', out, '--no-digest', '--json');
  const uri = await receiving.listening();
  const starting = guest.qmp.execute('migrate', { uri }).then(
    () => true,
    () => false,
  );
  if (wanted.includes('postcopy-ram')) {
    // In the same breath: the source switches before it has read a word of ours.
    await guest.qmp.execute('migrate-start-postcopy' as 'cont').catch(() => {});
  }
  const started = await starting;
  if (!started) {
    receiving.kill('SIGINT');
    await receiving.exited;
    await assertLives(guest, what);
    return 'refused by QEMU';
  }
  if (wanted.includes('pause-before-switchover')) {
    await guest.waitMigration(['pre-switchover'], STEP_MS);
    await guest.qmp.execute('migrate-continue', { state: 'pre-switchover' });
  }
  const status = await poll(
    async () => {
      const info = await guest.qmp.execute('query-migrate');
      return info.status !== undefined && ENDS.includes(info.status) ? info.status : undefined;
    },
    () => `${what}: the migration does not end`,
    STEP_MS,
  );
  // QEMU 10 does not close the connection of a migration that failed over its multifd channels.
  const silent = setTimeout(() => receiving.kill('SIGINT'), 5000);
  const exit = await receiving.exited;
  clearTimeout(silent);
  if (status === 'completed' && exit.status === 0) {
    const verified = await Ramferry.run(lab, 'verify', out);
    assert.equal(verified.status, 0, `${what}: ${verified.stderr}`);
    if (wanted.includes('postcopy-ram') && wanted.length === 2) {
      // Its devices came before its last pages; QEMU finds them behind those.
      const copy = await corpusDestination(lab, 'plain');
      await copy.loadStream(out);
      await copy.qmp.execute('cont');
      await assertLives(copy, `${what}, loaded`);
      assert.equal(copy.bad(), 0);
      await copy.qemu.quit();
    }
    fs.rmSync(out);
    await poll(
      () =>
        guest.resume().then(
          () => true,
          () => undefined,
        ),
      () => `${what}: the source does not go on`,
    );
    await assertLives(guest, what);
    return 'saved';
  }
  assert.equal(status, 'failed', `${what}: ${exit.stdout}`);
  assert.ok(exit.status === 1 || exit.status === 3, `${what}: ${exit.status} ${exit.stdout}`);
  assert.equal(fs.existsSync(out), false, what);
  await assertLives(guest, what);
  return JSON.parse(exit.stdout).error.code;
};

interopTest(
  'receive: whatever a source has switched on, its guest is saved or runs on there',
  async (lab, context) => {
    const guest = await startFromCorpus(lab, 'plain');
    await guest.qmp.execute('migrate-set-parameters', { 'max-bandwidth': 10e9, 'downtime-limit': 2000 });
    await guest.waitSerial(/^HB \d+/m);
    const found: Record<string, string> = {};
    for (const [index, wanted] of [...SETS, ...(process.env['RAMFERRY_SLOW'] === '1' ? MORE_SETS : [])].entries()) {
      found[wanted.join(' ')] = await tryOne(lab, guest, wanted, index);
    }
    context.diagnostic(JSON.stringify(found));
    assert.equal(found['return-path'], 'saved');
    assert.equal(found['postcopy-ram return-path'], 'saved');
    assert.equal(found['xbzrle return-path'], 'saved');
    // Its disks have none.
    assert.equal(found['dirty-bitmaps return-path'], 'saved');
    assert.match(found['switchover-ack return-path']!, /^(saved|not here)$/);
    assert.equal(guest.bad(), 0);
  },
  ALL_RELEASES,
);

interopTest(
  'receive: a failure after the source has switched to postcopy leaves its guest alive there',
  async (lab) => {
    const guest = await startFromCorpus(lab, 'plain');
    await guest.waitSerial(/^HB \d+/m);
    assert.equal(await setCapabilities(guest, ['postcopy-ram', 'return-path']), true);
    const out = lab.path('out.mig');
    const receiving = Ramferry.start(lab, 'receive', 'tcp:127.0.0.1:0', out, '--device-state-limit', '1000', '--json');
    const uri = await receiving.listening();
    const starting = guest.qmp.execute('migrate', { uri });
    await guest.qmp.execute('migrate-start-postcopy' as 'cont');
    await starting;
    const exit = await receiving.exited;
    assert.equal(JSON.parse(exit.stdout).error.code, 'DEVICE_STATE_TOO_LARGE');
    assert.match(exit.stderr, /has switched to postcopy/);
    assert.equal(fs.existsSync(out), false);
    await guest.waitMigration(['failed'], STEP_MS);
    if ((await guest.status()) === 'postmigrate') {
      // What QEMU 7.2 says and does.
      assert.equal(lab.release, '7.2');
      await guest.resume();
    }
    await assertLives(guest, 'after the failure');
    assert.equal(guest.bad(), 0);
  },
  ALL_RELEASES,
);
