// Verbs that wait for a source, and who else may come: `receive` from outside the process, and `relay` as far as it is
// the same. Strangers neither end it nor keep the source waiting, and are named.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { bin, RunningCommand } from '../../test/command.js';
import { richStream } from '../../test/streams.js';
import { until } from '../../test/until.js';
import type { ByteChannel } from '../channel/channel.js';
import type { Stranger } from '../channel/incoming-connections.js';
import { Strangers } from './strangers.js';

const base = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-accept-'));
after(() => fs.rmSync(base, { recursive: true }));

const HANG_MS = 30_000;

interface Waiting {
  readonly running: RunningCommand;
  readonly out: string;
  connect(said?: string | Uint8Array): Promise<net.Socket>;
  /** The lines on stderr, but for the first one. */
  said(): string[];
}

const listeningCommand = async (...args: string[]): Promise<Waiting> => {
  const running = new RunningCommand(args);
  after(() => running.child.kill('SIGKILL'));
  const uri = await running.listening();
  const connect = async (said: string | Uint8Array = ''): Promise<net.Socket> => {
    const address = uri.startsWith('unix:')
      ? { path: uri.slice('unix:'.length) }
      : { host: '127.0.0.1', port: Number(uri.split(':').at(-1)) };
    const socket = net.connect({ ...address, allowHalfOpen: true }).on('error', () => {});
    after(() => socket.destroy());
    await once(socket, 'connect');
    socket.write(said);
    return socket.resume();
  };
  return { running, out: args[2]!, connect, said: () => running.stderr.split('\n').slice(1, -1) };
};

const receive = (...options: string[]): Promise<Waiting> =>
  listeningCommand(
    'receive',
    'tcp:127.0.0.1:0',
    path.join(fs.mkdtempSync(path.join(base, 'x')), 'out.mig'),
    '--quiet',
    ...options,
  );

const migration = richStream().bytes;

/** Sends a guest as a source does, and sees that it was saved. */
const sendGuest = async ({ running, out, connect }: Waiting): Promise<void> => {
  const source = await connect(migration);
  source.on('end', () => source.end());
  const { status, stderr } = await running.ended;
  assert.equal(status, 0, stderr);
  assert.ok(fs.statSync(out).size > 0);
};

test('who connects and leaves is named, and the source that comes then is received', { timeout: HANG_MS }, async () => {
  const waiting = await receive();
  // A port scan, a health check that resets, and one that ends after two bytes.
  (await waiting.connect()).end();
  await until(() => waiting.said().length === 1);
  (await waiting.connect()).resetAndDestroy();
  (await waiting.connect('QE')).end();
  await until(() => waiting.said().some((line) => line.includes('QE')));
  await sendGuest(waiting);
  assert.deepEqual(
    // Of one that was reset before it was accepted nobody can say where it came from.
    waiting
      .said()
      .filter((line) => !line.startsWith('somebody'))
      .map((line) => line.replace(/:\d+ /, ':PORT ')),
    [
      'tcp:127.0.0.1:PORT connected and left, having said nothing; still listening',
      'tcp:127.0.0.1:PORT connected and left, having said only "QE"; still listening',
    ],
  );
});

test('whoever says something else is named by it, and hung up on', { timeout: HANG_MS }, async () => {
  const waiting = await receive();
  for (const [words, expected] of [
    ['GET /health HTTP/1.1\r\nHost: x\r\n\r\n', /is no source of a migration: it is an HTTP client; still listening$/],
    [Buffer.from('160301020001', 'hex'), /it speaks TLS, .*tls-creds/],
    [Buffer.from('1122334400000001', 'hex'), /it is a multifd channel: switch/],
    ['\x1b]0;gone\x07 hello', /it says the bytes 1b5d303b676f6e65…; still/],
    ['EHLO example.org', /it says "EHLO example.org"; still/],
  ] as const) {
    const count = waiting.said().length;
    const stranger = await waiting.connect(words);
    const gone = once(stranger, 'end');
    await until(() => waiting.said().length > count);
    assert.match(waiting.said().at(-1)!, expected);
    await gone;
  }
  await sendGuest(waiting);
});

test('one that says nothing holds no source up', { timeout: HANG_MS }, async () => {
  const waiting = await receive();
  const silent = await waiting.connect();
  const gone = once(silent, 'end');
  await sendGuest(waiting);
  await gone;
});

test('a source that speaks piece by piece, beside others', { timeout: HANG_MS }, async () => {
  const waiting = await receive();
  const source = await waiting.connect(migration.subarray(0, 1));
  (await waiting.connect('GET / HTTP/1.0\r\n\r\n')).end();
  await until(() => waiting.said().length === 1);
  source.on('end', () => source.end());
  source.write(migration.subarray(1, 3));
  (await waiting.connect()).end();
  await until(() => waiting.said().length === 2);
  source.write(migration.subarray(3));
  const { status, stderr } = await waiting.running.ended;
  assert.equal(status, 0, stderr);
});

test('a source that breaks in its middle ends it, strangers or not', { timeout: HANG_MS }, async () => {
  const waiting = await receive('--json');
  await waiting.connect();
  (await waiting.connect(migration.subarray(0, 5000))).end();
  const { status, stdout } = await waiting.running.ended;
  assert.deepEqual([status, JSON.parse(stdout).error.code], [1, 'PEER_CLOSED']);
  assert.deepEqual(fs.readdirSync(path.dirname(waiting.out)), []);
});

test('Ctrl-C while only strangers are there', { timeout: HANG_MS }, async () => {
  const waiting = await receive('--json');
  const silent = await waiting.connect();
  const gone = once(silent, 'end');
  (await waiting.connect('hello')).end();
  await until(() => waiting.said().length === 1);
  waiting.running.child.kill('SIGINT');
  const { status, stdout } = await waiting.running.ended;
  assert.deepEqual([status, JSON.parse(stdout).error.code], [1, 'CANCELLED']);
  await gone;
});

test('the one connection there is ends it, whatever it says', { timeout: HANG_MS }, async () => {
  const out = path.join(base, 'one.mig');
  for (const [uri, code] of [
    ['exec:true', 'STREAM_INCOMPLETE'],
    ['exec:echo hello, world', 'NOT_A_STREAM'],
    ['file:/dev/null', 'STREAM_INCOMPLETE'],
    ['-', 'STREAM_INCOMPLETE'],
  ] as const) {
    const { status, stdout } = await new RunningCommand(['receive', uri, out, '--json']).ended;
    assert.deepEqual([status, JSON.parse(stdout).error.code], [3, code], uri);
  }
  assert.equal(fs.existsSync(out), false);
});

test('a recorded stream may want answers: nobody is there to hear them, and none is said to be told', {
  timeout: HANG_MS,
}, async () => {
  // It begins with OPEN_RETURN_PATH and PING.
  const input = path.join(base, 'recorded.mig');
  fs.writeFileSync(input, migration);
  for (const [number, words] of [
    `receive file:${input} OUT`,
    `receive - OUT < ${input}`,
    `receive fd:3 OUT 3< ${input}`,
    `cat ${input} | NODE BIN receive fd:3 OUT 3<&0`,
  ].entries()) {
    const out = path.join(base, `recorded${number}.mig`);
    const line = words.startsWith('cat') ? words : `NODE BIN ${words}`;
    const command = line.replace('NODE', process.execPath).replace('BIN', bin).replace('OUT', `${out} --quiet`);
    const { status, stdout, stderr } = spawnSync('sh', ['-c', command], { encoding: 'utf8' });
    assert.deepEqual([status, stderr], [0, ''], command);
    assert.ok(!stdout.includes('once the file was on disk'), stdout);
    assert.ok(fs.statSync(out).size > 0);
  }
});

test('relay looks at who comes, too', { timeout: HANG_MS }, async () => {
  const folder = fs.mkdtempSync(path.join(base, 'x'));
  const destination = net.createServer((socket) => void socket.on('error', () => {}).resume());
  after(() => destination.close());
  await once(destination.listen(path.join(folder, 'dest')), 'listening');
  const relay = await listeningCommand(
    'relay',
    `unix:${folder}/socket`,
    `unix:${folder}/dest`,
    '--spool',
    `${folder}/spool`,
    '--json',
  );
  (await relay.connect()).end();
  await until(() => relay.said().length === 1);
  assert.match(relay.said()[0]!, /^a process of user \d+ connected and left, having said nothing; still listening$/);
  (await relay.connect(migration.subarray(0, 5000))).end();
  const { status, stdout } = await relay.running.ended;
  assert.deepEqual([status, JSON.parse(stdout).error.code], [1, 'PEER_CLOSED']);
  assert.deepEqual(fs.readdirSync(folder), ['dest']);
});

const stranger = (peer: string, said: string, why: Stranger['why'] = 'said something else'): Stranger => ({
  why,
  said: Buffer.from(said),
  channel: { peer, origin: `host ${peer.split(':')[1]}` } as ByteChannel,
});

test('each is named once, and not without end', () => {
  const notes: string[] = [];
  const strangers = new Strangers((text) => notes.push(text));
  for (let port = 1; port <= 100; port += 1) {
    strangers.add(stranger(`tcp:10.0.0.1:${port}`, 'hello'));
  }
  strangers.add(stranger('tcp:10.0.0.1:101', '', 'silent'));
  assert.deepEqual(notes, [
    'tcp:10.0.0.1:1 is no source of a migration: it says "hello"; still listening',
    'tcp:10.0.0.1:101 is connected and says nothing; still listening',
  ]);
  for (let host = 2; host < 100; host += 1) {
    strangers.add(stranger(`tcp:10.0.0.${host}:1`, 'x'.repeat(host)));
  }
  assert.equal(notes.length, 9);
  assert.match(notes[8]!, /not named any more$/);
  assert.ok(notes.every((note) => note.length < 120));
});
