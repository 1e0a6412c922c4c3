// A live guest moves on through ramferry: from one real QEMU to others, without a hole in its heartbeat, and whenever the
// relay dies the guest is in exactly one place.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import net from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { randomChoices } from '../random.js';
import { type CorpusKind, corpusDestination, startFromCorpus } from './corpus.js';
import { interopTest, type Lab, type LabGuest, liveInteropTest, poll, type QemuRelease } from './lab.js';
import { Ramferry } from './ramferry.js';
import { CURRENT_RELEASES } from './releases.js';

const POSTCOPY = { capabilities: { 'postcopy-ram': true, 'return-path': true } };
const RETURN_PATH = { capabilities: { 'return-path': true } };

const isSlow = process.env['RAMFERRY_SLOW'] === '1';

/** Far more than QEMU needs to notice that a link is gone. */
const STEP_MS = 15_000;

let sockets = 0;
const socketUri = (lab: Lab): string => `unix:${lab.path(`socket-${(sockets += 1)}`)}`;

/** Numbers of the heartbeats that a guest gave here. */
const heartbeats = (guest: LabGuest): number[] =>
  [...guest.serial().matchAll(/^HB (\d+) \d+\r?$/gm)].map((match) => Number(match[1]));

const document = ({ status, stdout, stderr }: { status: number | null; stdout: string; stderr: string }) => {
  assert.equal(status, 0, `${stdout}\n${stderr}`);
  return JSON.parse(stdout);
};

interface Destination {
  readonly guest: LabGuest;
  readonly uri: string;
}

/** A QEMU that waits for the guest. */
const startDestination = async (
  lab: Lab,
  kind: CorpusKind = 'plain',
  release: QemuRelease = lab.release,
): Promise<Destination> => {
  const guest = await corpusDestination(lab, kind, release);
  const uri = socketUri(lab);
  await guest.migrateIncoming(uri, POSTCOPY);
  return { guest, uri };
};

for (const { count, kind, releases } of [
  { count: 1, kind: 'busy', releases: CURRENT_RELEASES },
  { count: 2, kind: 'plain', releases: CURRENT_RELEASES },
  { count: 1, kind: 'plain', releases: ['7.2'] },
] as const) {
  const name = `relay: a ${kind} guest goes on at ${count}, without a hole in its heartbeat`;
  liveInteropTest(
    name,
    async (lab, context) => {
      const origin = await startFromCorpus(lab, kind);
      const destinations = await Promise.all(Array.from({ length: count }, () => startDestination(lab, kind)));
      const spool = lab.path('spool');
      const uris = destinations.map(({ uri }) => uri);
      const relaying = Ramferry.start(lab, 'relay', 'tcp:127.0.0.1:0', ...uris, '--spool', spool, '--json');
      await origin.migrate(await relaying.listening(), RETURN_PATH);
      const { guest, ramferry } = document(await relaying.exited);
      assert.equal(guest, 'destinations');
      const { downtime } = await origin.waitMigration();
      context.diagnostic(`${JSON.stringify(ramferry.handover)}; downtime as the origin sees it ${downtime} ms`);
      assert.equal(await origin.status(), 'postmigrate');
      for (const destination of destinations) {
        await destination.guest.waitMigration();
        await isHere(destination.guest, origin);
      }
      assert.equal(fs.existsSync(spool), false);
    },
    releases,
  );
}

/** The guest runs here and its heartbeat goes on where that of `before` ended; resolves with what its verifier has found. */
const goesOn = async (guest: LabGuest, before: LabGuest): Promise<number> => {
  const bad = await guest.verifyAll();
  assert.equal(before.bad(), 0);
  const beats = heartbeats(guest);
  const last = heartbeats(before).at(-1)!;
  // The line under way at the stop begins there and ends here.
  assert.ok(beats[0]! <= last + 2, `${last}, then ${beats[0]}`);
  assert.deepEqual(
    beats,
    beats.map((_, index) => beats[0]! + index),
  );
  return bad;
};

/** It does, and all of its memory is right. */
const isHere = async (guest: LabGuest, before: LabGuest): Promise<void> => {
  assert.equal(await goesOn(guest, before), 0);
};

/** The guest runs on at its origin, and nowhere else. */
const isStillAt = async (origin: LabGuest, destination: LabGuest): Promise<void> => {
  await origin.waitMigration(['failed'], STEP_MS);
  const last = origin.heartbeat();
  assert.equal(await origin.verifyAll(), 0);
  await poll(
    () => (origin.heartbeat() > last + 2 ? true : undefined),
    () => `its heartbeat stays at ${last}`,
    STEP_MS,
  );
  assert.equal(await origin.status(), 'running');
  assert.doesNotMatch(destination.serial(), /\S/);
};

/** A destination that lost its relay gets the rest from the spool; resolves with what the guest's verifier has found. */
const bringHome = async (lab: Lab, origin: LabGuest, { guest }: Destination, spool: string): Promise<number> => {
  await guest.waitMigration(['postcopy-paused'], STEP_MS);
  const uri = socketUri(lab);
  await guest.qmp.execute('migrate-recover', { uri });
  return serveSpool(lab, origin, { guest, uri }, spool, '--recover');
};

/** A guest that was told to run and never could, since its relay died, runs in another QEMU. */
const startFromSpool = async (lab: Lab, origin: LabGuest, spool: string): Promise<number> =>
  serveSpool(lab, origin, await startDestination(lab), spool);

const serveSpool = async (
  lab: Lab,
  origin: LabGuest,
  { guest, uri }: Destination,
  spool: string,
  ...options: readonly string[]
): Promise<number> => {
  assert.equal(await origin.status(), 'postmigrate');
  document(await Ramferry.run(lab, 'serve', spool, uri, '--retry', '5', '--no-demand', '--json', ...options));
  await guest.waitMigration(['completed'], STEP_MS);
  const bad = await goesOn(guest, origin);
  await guest.qemu.quit();
  return bad;
};

/** Whether QEMU still hears anything: its main thread may wait for a page that nobody will bring (docs/relay.md). */
const isResponsive = ({ guest }: Destination): Promise<boolean> =>
  guest.qmp.execute('query-status', undefined, { timeoutMs: 10_000 }).then(
    () => true,
    () => false,
  );

/** The last message of a return path: all is well. */
const SHUT_0 = Buffer.from([0, 1, 0, 4, 0, 0, 0, 0]);

interface DeafLink {
  readonly uri: string;
  /** Resolves when the word has come that does not get through. */
  swallowed(): Promise<true>;
  /** Takes the link down, for either end to see. */
  cut(): void;
}

/** Stands between the origin and the relay and keeps one word back: that the origin may let go, or that it has. */
const deafLink = async (lab: Lab, relay: string, word: 'told' | 'let go'): Promise<DeafLink> => {
  const path = lab.path(`deaf-${(sockets += 1)}`);
  const [, host, port] = relay.split(':') as [string, string, string];
  const ends: net.Socket[] = [];
  let hasHeard = false;
  const heard = (): void => {
    hasHeard = true;
  };
  const listener = net.createServer({ allowHalfOpen: true }, (origin) => {
    const relaying = net.connect({ host, port: Number(port), allowHalfOpen: true });
    ends.push(origin, relaying);
    origin.on('data', (bytes) => {
      if (!relaying.write(bytes)) {
        origin.pause();
        relaying.once('drain', () => origin.resume());
      }
    });
    relaying.on('data', (bytes) => {
      if (word === 'told' && bytes.subarray(-SHUT_0.length).equals(SHUT_0)) {
        heard();
      } else {
        origin.write(bytes);
      }
    });
    origin.on('end', heard);
    origin.on('error', () => {});
    relaying.on('error', () => {});
  });
  listener.listen(path);
  lab.onClose(() => {
    listener.close();
    for (const end of ends) {
      end.destroy();
    }
  });
  const cut = (): void => {
    const [origin, relaying] = ends as [net.Socket, net.Socket];
    origin.destroy();
    relaying.resetAndDestroy();
  };
  const swallowed = (): Promise<true> =>
    poll(
      () => hasHeard || undefined,
      () => `nobody was ${word}`,
      STEP_MS,
    );
  return { uri: `unix:${path}`, swallowed, cut };
};

// The two instants at which everything hangs, one each side of the origin's letting go.
for (const [moment, word, dies] of [
  ['the link breaks before the origin hears that it may let go', 'told', false],
  ['the relay dies before the origin hears that it may let go', 'told', true],
  ['the relay dies right after the origin has let go', 'let go', true],
] as const) {
  const defineTest = word === 'told' ? interopTest : liveInteropTest;
  defineTest(`relay: ${moment}`, async (lab) => {
    const origin = await startFromCorpus(lab, 'plain');
    const destination = await startDestination(lab);
    const spool = lab.path('spool');
    const options = ['--spool', spool, '--json'];
    const relaying = Ramferry.start(lab, 'relay', 'tcp:127.0.0.1:0', destination.uri, ...options);
    const link = await deafLink(lab, await relaying.listening(), word);
    const resumed = destination.guest.qmp.waitEvent('RESUME', { timeoutMs: STEP_MS });
    await origin.migrate(link.uri, RETURN_PATH);
    await link.swallowed();
    // It was told to run, and executes nothing.
    await resumed;
    await delay(1000);
    assert.doesNotMatch(destination.guest.serial(), /\S/);
    if (dies) {
      relaying.kill('SIGKILL');
    }
    await delay(100);
    link.cut();
    const { status, stdout } = await relaying.exited;
    if (!dies) {
      const { error, guest } = JSON.parse(stdout);
      assert.deepEqual([status, error.code, guest], [1, 'SOURCE_NOT_TOLD', 'unknown']);
    }
    assert.ok(fs.existsSync(spool));
    if (word === 'told') {
      await isStillAt(origin, destination.guest);
    } else {
      await origin.waitMigration(['completed'], STEP_MS);
      destination.guest.qemu.kill();
      assert.equal(await startFromSpool(lab, origin, spool), 0);
    }
  });
}

// Where the guest is has no second try. Its memory may have lost a store before it came to the relay (`liveInteropTest`), but not
// time and again.
interopTest('relay: killed at any moment, the guest is in one place and goes on there', async (lab, context) => {
  const choose = randomChoices(7);
  const moments = isSlow ? 20 : 6;
  const found = { origin: 0, held: 0, running: 0, stuck: 0 };
  let losses = 0;
  let origin: LabGuest | undefined;
  for (let moment = 0; moment < moments; moment += 1) {
    origin ??= await startFromCorpus(lab, 'plain');
    const destination = await startDestination(lab);
    const spool = lab.path(`spool-${moment}`);
    const options = ['--spool', spool, '--max-bandwidth', '40M'];
    const relaying = Ramferry.start(lab, 'relay', 'tcp:127.0.0.1:0', destination.uri, ...options);
    const uri = await relaying.listening();
    const stopped = origin.qmp.waitEvent('STOP', { timeoutMs: STEP_MS });
    const resumed = destination.guest.qmp.waitEvent('RESUME', { timeoutMs: STEP_MS });
    await origin.migrate(uri, { ...RETURN_PATH, parameters: { 'max-bandwidth': 200e6 } });
    // While pages come in, around the handover, while they go out.
    const phases = [Promise.resolve(), stopped, resumed];
    for (const phase of phases) {
      phase.catch(() => {});
    }
    await phases[moment % 3];
    await delay(choose([400, 150, 700][moment % 3]!));
    relaying.kill('SIGKILL');
    await relaying.exited;
    const { status } = await origin.waitMigration(['failed', 'completed'], STEP_MS);
    if (status === 'failed') {
      found.origin += 1;
      await isStillAt(origin, destination.guest);
      await destination.guest.qemu.quit();
      continue;
    }
    let bad: number;
    if (await isResponsive(destination)) {
      found[/HB/.test(destination.guest.serial()) ? 'running' : 'held'] += 1;
      bad = await bringHome(lab, origin, destination, spool);
    } else {
      found.stuck += 1;
      assert.doesNotMatch(destination.guest.serial(), /\S/);
      destination.guest.qemu.kill();
      bad = await startFromSpool(lab, origin, spool);
    }
    losses += Math.min(bad, 1);
    await origin.qemu.quit();
    origin = undefined;
  }
  context.diagnostic(JSON.stringify({ ...found, losses }));
  assert.ok(losses <= 1, `${losses} of ${moments - found.origin} that went on elsewhere`);
});

liveInteropTest('relay: what one of two destinations cannot do, before the handover and after it', async (lab) => {
  const origin = await startFromCorpus(lab, 'plain');
  const spool = lab.path('spool');
  const relayTo = (destinations: readonly Destination[]): Ramferry => {
    const uris = destinations.map(({ uri }) => uri);
    const options = ['--spool', spool, '--max-bandwidth', '80M', '--json'];
    return Ramferry.start(lab, 'relay', 'tcp:127.0.0.1:0', ...uris, ...options);
  };
  const able = await startDestination(lab);
  const guest = await corpusDestination(lab, 'plain');
  const unable = { guest, uri: socketUri(lab) };
  await guest.migrateIncoming(unable.uri);
  const refused = relayTo([able, unable]);
  await origin.migrate(await refused.listening(), RETURN_PATH);
  const refusal = await refused.exited;
  assert.deepEqual([refusal.status, JSON.parse(refusal.stdout).guest], [1, 'origin']);
  await isStillAt(origin, able.guest);
  assert.deepEqual(spoolsOf(lab), []);

  const [first, second] = await Promise.all([startDestination(lab), startDestination(lab)]);
  const relaying = relayTo([first, second]);
  await origin.migrate(await relaying.listening(), RETURN_PATH);
  await first.guest.waitSerial(/^HB/m, STEP_MS);
  first.guest.qemu.kill();
  const { status, stdout } = await relaying.exited;
  const { destinations, guest: place, spool: kept, error } = JSON.parse(stdout);
  assert.deepEqual(
    [status, place, kept, error.code, destinations[1].status],
    [1, 'destinations', spool, 'PEER_CLOSED', 'completed'],
  );
  assert.ok(fs.existsSync(spool));
  await isHere(second.guest, origin);
});

/** Files that a relay left. */
const spoolsOf = (lab: Lab): string[] => fs.readdirSync(lab.folder).filter((name) => name.startsWith('spool'));

interopTest('relay: an origin without a return path is refused, and its guest goes on', async (lab) => {
  const origin = await startFromCorpus(lab, 'plain');
  const destination = await startDestination(lab);
  const relaying = Ramferry.start(
    lab,
    'relay',
    'tcp:127.0.0.1:0',
    destination.uri,
    '--spool',
    lab.path('spool'),
    '--json',
  );
  await origin.migrate(await relaying.listening(), { capabilities: { 'return-path': false } });
  const { status, stdout } = await relaying.exited;
  assert.equal(status, 1);
  const { error, guest } = JSON.parse(stdout);
  assert.deepEqual([error.code, guest], ['NO_RETURN_PATH', 'origin']);
  await origin.waitMigration(['failed']);
  assert.equal(await origin.status(), 'running');
  assert.deepEqual(spoolsOf(lab), []);
});
