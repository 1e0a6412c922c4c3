// Guests that go from one QEMU version into another and back, with the machine type of the older one: nothing between them may
// depend on who wrote or who reads. No virtio devices: Debian's 10.0.13 gives their queues 1024 entries, which 11.1 refuses.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { corpusDestination, corpusStream, corpusWorkload } from './corpus.js';
import { GuestConsole, type Lab, type LabGuest, liveInteropTest } from './lab.js';
import { Ramferry, type RamferryExit } from './ramferry.js';
import { readReference, sha256 } from './reference-reader.js';
import type { QemuRelease } from './releases.js';

const RETURN_PATH = { capabilities: { 'return-path': true } };
const POSTCOPY = { capabilities: { 'postcopy-ram': true, 'return-path': true } };
const MAPPED_RAM = { capabilities: { 'mapped-ram': true } };

const succeeded = ({ status, stdout, stderr }: RamferryExit): void => assert.equal(status, 0, `${stdout}\n${stderr}`);

/** A QEMU of `release` with the machine of the guest that 10 has saved, waiting for it. */
const waiting = (lab: Lab, release: QemuRelease, more: { ramFile?: string } = {}): Promise<LabGuest> =>
  corpusDestination(lab, 'plain', '10', { ...more, loadedBy: release });

/** The guest goes on, and finds nothing wrong with its memory. */
const assertGoesOn = async (guest: LabGuest): Promise<void> => {
  await guest.waitMigration();
  await guest.resume();
  assert.equal(await guest.verifyAll(), 0);
};

/** Saves a running guest through `receive` and ends its QEMU; returns the file. */
const receive = async (lab: Lab, guest: LabGuest, out: string, ...options: readonly string[]): Promise<string> => {
  const ramferry = Ramferry.start(lab, 'receive', `unix:${lab.path('receive')}`, out, ...options);
  await guest.migrate(await ramferry.listening(), RETURN_PATH);
  await guest.waitMigration();
  succeeded(await ramferry.exited);
  await guest.qemu.quit();
  return out;
};

const crossingTest = (name: string, body: (lab: Lab) => Promise<void>): void => liveInteropTest(name, body, ['11']);

crossingTest('a stream of QEMU 10 goes into 11 and back: send, receive, send', async (lab) => {
  const { file, truth } = await corpusStream(lab, 'plain', '10');
  const ramFile = lab.path('ram');
  const newer = await waiting(lab, '11', { ramFile });
  await newer.stop();
  succeeded(await Ramferry.run(lab, 'send', file, await newer.listenTcp(RETURN_PATH)));
  await newer.waitMigration();
  assert.equal(sha256(readFileSync(ramFile)), truth.ramSha256);
  await assertGoesOn(newer);

  const back = await receive(lab, newer, lab.path('back.mig'));
  assert.equal(readReference(back).machine, truth.machine);
  const older = await waiting(lab, '10');
  succeeded(await Ramferry.run(lab, 'send', back, await older.listenTcp(RETURN_PATH)));
  await assertGoesOn(older);
});

crossingTest('a guest of QEMU 10 is served into 11, and relayed back while it runs', async (lab) => {
  const { file } = await corpusStream(lab, 'plain', '10');
  const newer = await waiting(lab, '11');
  await newer.migrateIncoming(`unix:${lab.path('serve')}`, POSTCOPY);
  succeeded(await Ramferry.run(lab, 'serve', file, `unix:${lab.path('serve')}`, '--no-demand'));
  await assertGoesOn(newer);

  const older = await waiting(lab, '10');
  const uri = `unix:${lab.path('older')}`;
  await older.migrateIncoming(uri, POSTCOPY);
  const relaying = Ramferry.start(lab, 'relay', `unix:${lab.path('relay')}`, uri, '--spool', lab.path('spool'));
  // It went on in postcopy, and a source with it on would be one of postcopy.
  await newer.migrate(await relaying.listening(), { capabilities: { 'return-path': true, 'postcopy-ram': false } });
  succeeded(await relaying.exited);
  await newer.waitMigration();
  await older.waitMigration();
  assert.equal(await older.verifyAll(), 0);
  assert.ok(older.heartbeat() > newer.heartbeat());
});

/** One clone of a file, by the verb itself and in QEMU `release`; it has to go on there. */
const cloneInto = async (lab: Lab, release: QemuRelease, file: string, how: 'map' | 'serve'): Promise<void> => {
  const { truth } = await corpusStream(lab, 'plain', '10');
  const serial = lab.path(`clone-${how}-${release}`);
  const command = await lab.command({ release, machine: truth.machine, workload: 'as saved' }, serial);
  const cloning = Ramferry.start(lab, 'clone', file, '-n', '1', '--json', '--by', how, '--', ...command);
  await cloning.says(/clones? runs?;/);
  assert.equal(await new GuestConsole(serial, corpusWorkload('plain')).verifyAll(), 0);
  cloning.kill('SIGINT');
  const { status, stderr } = await cloning.exited;
  assert.equal(status, 0, stderr);
};

crossingTest('a mapped-ram file of QEMU 10 is cloned in 11, mapped and served, and one of 11 in 10', async (lab) => {
  const { file: stream } = await corpusStream(lab, 'plain', '10');
  const saveMapped = async (release: QemuRelease): Promise<string> => {
    const guest = await waiting(lab, release);
    await guest.loadStream(stream);
    // The file says that it stood still, and a clone stays as its file says.
    await guest.resume();
    const file = lab.path(`mapped-${release}`);
    await guest.saveStream(file, MAPPED_RAM);
    await guest.qemu.quit();
    return file;
  };
  const older = await saveMapped('10');
  await cloneInto(lab, '11', older, 'map');
  await cloneInto(lab, '11', older, 'serve');
  const newer = await saveMapped('11');
  await cloneInto(lab, '10', newer, 'map');
  // And QEMU itself takes what the other one wrote.
  const guest = await waiting(lab, '10');
  await guest.loadStream(newer, MAPPED_RAM);
  assert.equal(await guest.verifyAll(), 0);
});
