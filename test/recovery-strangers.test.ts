// A postcopy destination whose link breaks while strangers are connected to its address: its guest gets the rest of its
// memory from its own source, soon, and from nobody else.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import net from 'node:net';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { listen } from '../src/channel/index.js';
import { tokenPings } from '../src/format/stream/migration-token.js';
import { askReceivedBitmap, postcopyResume } from '../src/format/stream/postcopy-commands.js';
import { WorkloadGuest } from '../src/guest/index.js';
import { receiveWorkload } from '../src/migration/incoming-workload.js';
import { Migration } from '../src/migration/migration.js';
import { until } from './until.js';

const MIB = 2 ** 20;

test('strangers: silent ones, one that lies, one that knows the protocol, one with another token', {
  timeout: 60_000,
}, async () => {
  const listener = await listen('tcp:127.0.0.1:0');
  const port = Number(listener.uri.split(':').at(-1));
  const sockets: net.Socket[] = [];
  /** Resolves with what it is answered, when it is dropped. */
  const stray = async (said: Uint8Array): Promise<Buffer> => {
    const socket = net.connect(port, '127.0.0.1').on('error', () => {});
    sockets.push(socket);
    const answer: Buffer[] = [];
    socket.on('data', (data) => answer.push(data));
    await once(socket, 'connect');
    socket.write(said);
    await once(socket, 'close');
    return Buffer.concat(answer);
  };
  // One that comes before the source.
  const early = stray(new Uint8Array(0));
  const incoming = receiveWorkload({
    listener,
    writers: 1,
    barrier: 'unconditional',
    memoryLimit: 2 ** 28,
    postcopy: 'load-barrier',
  });
  incoming.catch(() => {});
  const source = WorkloadGuest.create({ memoryBytes: 24 * MIB, workingSetBytes: 16 * MIB, writers: 1, rate: 4 * MIB });
  await source.start();
  let paused!: () => void;
  const isPaused = new Promise<void>((resolve) => {
    paused = resolve;
  });
  const migration = new Migration({
    guest: { kind: 'workload', shared: source.share() },
    blocks: source.blocks,
    uri: listener.uri,
    parameters: { maxBandwidth: 200 * MIB, maxPostcopyBandwidth: 2 * MIB },
    postcopy: { prefetchPages: 0 },
    onStatus: (status) => status === 'postcopy-paused' && paused(),
  });
  await delay(200);
  migration.startPostcopy();
  const { guest, ended } = await incoming;
  const { name } = source.blocks.blocks.find(({ migrated }) => migrated)!;
  const protocol = Buffer.concat([askReceivedBitmap(name), postcopyResume()]);
  const strays = [
    new Uint8Array(0),
    new TextEncoder().encode('GET / HTTP/1.1\r\n\r\n'),
    protocol,
    Buffer.concat([tokenPings(new Uint8Array(16)), protocol]),
  ].map(stray);
  await delay(100);
  migration.pausePostcopy();
  await isPaused;
  migration.setParameters({ maxPostcopyBandwidth: 0 });
  migration.recoverPostcopy(listener.uri);
  const [{ report, error }, incomingReport] = await Promise.all([migration.ended, ended]);
  assert.deepEqual([report.status, error, incomingReport.status], ['completed', undefined, 'completed']);
  assert.equal(incomingReport.ramferry.postcopy!.recoveries, 1);
  assert.equal(incomingReport.ramferry.postcopy!.strangers, 5);
  // Nobody was told anything: not which pages are there either.
  for (const answer of await Promise.all([early, ...strays])) {
    assert.equal(answer.length, 0);
  }
  await guest.stop();
  assert.deepEqual(guest.verify().badPages, []);
  await guest.shutdown();
  await source.shutdown();
  for (const socket of sockets) {
    socket.destroy();
  }
});

test('a recovery that stops in its middle has its time, and the next one its turn', { timeout: 60_000 }, async () => {
  const listener = await listen('tcp:127.0.0.1:0');
  const port = Number(listener.uri.split(':').at(-1));
  // Hands over the token by which the source is known, and nothing else: the source waits for answers for ever.
  const tokenBytes = tokenPings(new Uint8Array(16)).length;
  let stalledForMs = 0;
  const stalling = net.createServer((source) => {
    const destination = net.connect(port, '127.0.0.1').on('error', () => {});
    source.on('error', () => {});
    source.once('data', (data) => destination.write(data.subarray(0, tokenBytes)));
    const start = performance.now();
    destination.resume().once('close', () => {
      stalledForMs = performance.now() - start;
      source.destroy();
    });
  });
  await once(stalling.listen(0, '127.0.0.1'), 'listening');
  const incoming = receiveWorkload({
    listener,
    writers: 1,
    barrier: 'unconditional',
    memoryLimit: 2 ** 28,
    postcopy: 'load-barrier',
    recoveryMs: 500,
  });
  incoming.catch(() => {});
  const source = WorkloadGuest.create({ memoryBytes: 24 * MIB, workingSetBytes: 16 * MIB, writers: 1, rate: 4 * MIB });
  await source.start();
  let pauses = 0;
  const migration = new Migration({
    guest: { kind: 'workload', shared: source.share() },
    blocks: source.blocks,
    uri: listener.uri,
    parameters: { maxBandwidth: 200 * MIB, maxPostcopyBandwidth: 2 * MIB },
    postcopy: { prefetchPages: 0 },
    onStatus: (status) => {
      pauses += status === 'postcopy-paused' ? 1 : 0;
    },
  });
  await delay(200);
  migration.startPostcopy();
  const { guest, ended } = await incoming;
  migration.pausePostcopy();
  await until(() => pauses === 1);
  migration.recoverPostcopy(`tcp:127.0.0.1:${(stalling.address() as net.AddressInfo).port}`);
  await until(() => pauses === 2);
  assert.ok(stalledForMs >= 450 && stalledForMs < 20_000, `${stalledForMs} ms`);
  migration.setParameters({ maxPostcopyBandwidth: 0 });
  migration.recoverPostcopy(listener.uri);
  const [{ report, error }, incomingReport] = await Promise.all([migration.ended, ended]);
  assert.deepEqual([report.status, error, incomingReport.status], ['completed', undefined, 'completed']);
  await guest.stop();
  assert.deepEqual(guest.verify().badPages, []);
  await guest.shutdown();
  await source.shutdown();
  stalling.close();
});
