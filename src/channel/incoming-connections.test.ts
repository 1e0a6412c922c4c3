// Connections that are told apart by what they say first: the one that is looked for is found whatever the others do.

import assert from 'node:assert/strict';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { type Link, link } from '../../test/linked-channels.js';
import { nextTurn, until } from '../../test/until.js';
import type { ByteChannel } from './channel.js';
import {
  IncomingConnections,
  type IncomingConnectionsOptions,
  type Judge,
  type Stranger,
} from './incoming-connections.js';
import { listen } from './listen-node.js';

const PASSWORD = Buffer.from('the password');

const knows: Judge = (_channel, bytes) => {
  const count = Math.min(bytes.length, PASSWORD.length);
  const isRight = PASSWORD.subarray(0, count).equals(bytes.subarray(0, count));
  return isRight ? (count === PASSWORD.length ? 'yes' : 'more') : 'no';
};

const setUp = (options?: IncomingConnectionsOptions) => {
  const waiting: ((channel: ByteChannel) => void)[] = [];
  const arrived: ByteChannel[] = [];
  const connections = new IncomingConnections(
    () =>
      new Promise((resolve) => {
        const next = arrived.shift();
        if (next === undefined) {
          waiting.push(resolve);
        } else {
          resolve(next);
        }
      }),
    options,
  );
  const connect = (said = ''): Link => {
    const connected = link();
    connected.inject(Buffer.from(said));
    const accept = waiting.shift();
    if (accept === undefined) {
      arrived.push(connected.destination);
    } else {
      accept(connected.destination);
    }
    return connected;
  };
  return { connections, connect };
};

/** All that a channel brings, as text, until it has so many characters. */
const readText = async (channel: ByteChannel, length: number, pieceBytes = 7): Promise<string> => {
  let text = '';
  const buffer = new Uint8Array(pieceBytes);
  channel.read({
    buffer: () => buffer,
    received: (byteCount) => {
      text += Buffer.from(buffer.subarray(0, byteCount)).toString('latin1');
    },
    ended: () => {},
    failed: () => {},
  });
  await until(() => text.length >= length);
  return text;
};

test('silent, wrong and slow ones keep nobody waiting, and no byte of the right one is lost', async () => {
  const { connections, connect } = setUp();
  const strangers = [connect(), connect('the pass'), connect('GET / HTTP/1.1'), connect('the passphrase')];
  const found = connections.find(knows);
  await nextTurn();
  const right = connect('the pa');
  await nextTurn();
  right.inject(Buffer.from('ssword and all that follows'));
  const channel = await found;
  right.inject(Buffer.from(', however late'));
  assert.equal(await readText(channel, 47), 'the password and all that follows, however late');
  await until(() => strangers.every((stranger) => stranger.isBroken()));
  assert.equal(right.isBroken(), false);
  assert.equal(connections.refused, 4);
});

test('who says nothing is dropped after a while; who leaves is forgotten', async () => {
  const { connections, connect } = setUp({ limitMs: 300 });
  const found = connections.find(knows);
  const silent = connect();
  const leaving = connect('the pass');
  leaving.break();
  await until(() => connections.refused === 2);
  assert.ok(silent.isBroken());
  connect('the password');
  await found;
});

test('a patient search reports who is silent, listens on, and drops the oldest when room is needed', async () => {
  const strangers: string[] = [];
  const { connections, connect } = setUp({
    limitMs: 300,
    most: 2,
    isPatient: true,
    onStranger: ({ why, said }) => strangers.push(`${Buffer.from(said).toString()}: ${why}`),
  });
  const found = connections.find(knows);
  const first = connect();
  const second = connect('the pass');
  await until(() => strangers.length === 2);
  assert.deepEqual(strangers, [': silent', 'the pass: silent']);
  assert.ok(!first.isBroken() && !second.isBroken());
  connect('hello');
  await until(() => first.isBroken());
  second.inject(Buffer.from('word'));
  assert.equal(await readText(await found, 12), 'the password');
  assert.deepEqual(strangers.slice(2), [': silent', 'hello: said something else']);
});

test('who leaves is told of', async () => {
  const strangers: Stranger[] = [];
  const { connections, connect } = setUp({ onStranger: (stranger) => strangers.push(stranger) });
  const found = connections.find(knows);
  connect('the').break();
  await until(() => strangers.length === 1);
  assert.equal(strangers[0]!.why, 'left');
  connect('the password');
  await found;
  assert.equal(strangers.length, 1);
});

test('a flood of silent ones makes room for each next one', async () => {
  const { connections, connect } = setUp({ most: 4 });
  const flood = Array.from({ length: 20 }, () => connect());
  const found = connections.find(knows);
  await until(() => connections.refused === 16);
  assert.deepEqual(
    flood.map((stranger) => stranger.isBroken()),
    flood.map((_, index) => index < 16),
  );
  connect('the password');
  await found;
  assert.equal(connections.refused, 20);
});

test('one that comes between two searches is looked at in the next one', async () => {
  const { connections, connect } = setUp();
  connect('the password');
  await connections.find(knows);
  connect();
  connect('the password, again');
  await nextTurn();
  assert.equal(await readText(await connections.find(knows), 19), 'the password, again');
});

test('a search that is given up, and one that nobody will come to', async () => {
  const { connections, connect } = setUp();
  const stopped = new AbortController();
  const found = connections.find(knows, stopped.signal);
  const silent = connect();
  await nextTurn();
  stopped.abort(new Error('enough'));
  await assert.rejects(found, /enough/);
  await until(() => silent.isBroken());
  connections.close();
  const late = connect();
  await until(() => late.isBroken());

  const failing = new IncomingConnections(() => Promise.reject(new Error('closed')));
  await assert.rejects(failing.find(knows), /closed/);
});

test('a channel that pauses while its first bytes are handed on', async () => {
  const { connections, connect } = setUp();
  connect('the password and more');
  const channel = await connections.find(knows);
  let text = '';
  const buffer = new Uint8Array(4);
  channel.read({
    buffer: () => buffer,
    received: (byteCount) => {
      text += Buffer.from(buffer.subarray(0, byteCount)).toString('latin1');
      channel.pause();
    },
    ended: () => {},
    failed: () => {},
  });
  for (let length = 4; length <= 20; length += 4) {
    await until(() => text.length === length);
    await nextTurn();
    assert.equal(text.length, length);
    channel.resume();
  }
});

test('where a connection comes from: the host, or the user of a unix socket', {
  skip: process.getuid === undefined,
}, async () => {
  const tcp = await listen('tcp:127.0.0.1:0');
  const client = net.connect(Number(tcp.uri.split(':').at(-1)), '127.0.0.1').on('error', () => {});
  assert.equal((await tcp.accept()).origin, 'host 127.0.0.1');
  client.destroy();
  await tcp.close();
  const socket = path.join(os.tmpdir(), `ramferry-origin-${process.pid}`);
  const unix = await listen(`unix:${socket}`);
  const other = net.connect({ path: socket }).on('error', () => {});
  const { origin } = await unix.accept();
  // Undefined where the system cannot be asked.
  assert.ok(origin === undefined || origin === `user ${process.getuid!()}`, origin);
  other.destroy();
  await unix.close();
  await delay(1);
});
