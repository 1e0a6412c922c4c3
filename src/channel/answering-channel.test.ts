// Connections to what is no destination of a migration: each is named, and soon.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import tls from 'node:tls';
import type { RamferryError } from '../memory/errors.js';
import { answeringChannel, UNANSWERED } from './answering-channel.js';
import type { ChannelReader } from './channel.js';
import { openChannel } from './open-channel-node.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-answer-'));
after(() => fs.rmSync(folder, { recursive: true }));
let count = 0;

/** How a migration begins. */
const MAGIC = Uint8Array.of(0x51, 0x45, 0x56, 0x4d, 0, 0, 0, 3, 7, 0, 0, 0, 4, 0x74, 0x65, 0x73);

/** What a source learns of a peer that does `behave` with each connection: what it reads, and how that ends. */
const meet = async (
  behave: (socket: net.Socket) => void,
  { answerMs = 5000, writeBytes = 16, stream = false } = {},
): Promise<{ received: string; failure: RamferryError | undefined; order: string[] }> => {
  const socketPath = path.join(folder, `${count++}`);
  const server = net.createServer((socket) => behave(socket.on('error', () => {})));
  server.listen(socketPath);
  await once(server, 'listening');
  const channel = answeringChannel(await openChannel(`unix:${socketPath}`, { direction: 'both' }), answerMs);
  const order: string[] = [];
  let received = '';
  const buffer = new Uint8Array(100);
  try {
    const failure = await new Promise<RamferryError | undefined>((resolve) => {
      channel.read({
        buffer: () => buffer,
        received: (bytes) => {
          received += Buffer.from(buffer.subarray(0, bytes)).toString('latin1');
          order.push('received');
        },
        ended: () => resolve(undefined),
        failed: (error) => resolve(error as RamferryError),
      });
      channel.write(stream ? MAGIC : new Uint8Array(writeBytes), (error) =>
        order.push(error === undefined ? 'written' : 'broken'),
      );
    });
    return { received, failure, order };
  } finally {
    channel.destroy();
    server.close();
  }
};

test('what speaks another language is named by its first words, and nothing of it is read as an answer', async () => {
  for (const [words, name] of [
    ['{"QMP": {"version": {}}}\r\n', /the monitor of a QEMU/],
    ['HTTP/1.1 400 Bad Request\r\n', /an HTTP server/],
    ['SSH-2.0-OpenSSH_9.2\r\n', /an SSH server/],
    ['RFB 003.008\n', /a VNC server/],
    ['\x15\x03\x01\x00\x02\x02\x0a', /a TLS end/],
    ['QEVM\x00\x00\x00\x03', /the source of a migration/],
  ] as const) {
    const { failure, received } = await meet((socket) => socket.write(words, 'latin1'));
    assert.deepEqual([failure?.code, received], ['NOT_A_DESTINATION', ''], words);
    assert.match(failure!.message, name);
    assert.ok(failure!.hint);
  }
});

test('a peer that takes the connection and says nothing is given up, whether it reads or not', async () => {
  const start = performance.now();
  for (const behave of [(socket: net.Socket) => socket.pause(), (socket: net.Socket) => socket.resume()]) {
    const { failure } = await meet(behave, { answerMs: 200, writeBytes: 4 * 2 ** 20 });
    assert.equal(failure?.code, 'PEER_SILENT');
    assert.match(failure!.hint!, /multifd/);
  }
  assert.ok(performance.now() - start >= 400);
});

// What does not understand us closes without a word, OpenSSL as gnutls.
test('a real TLS server is met at once, and its kind is among the reasons', async () => {
  const refusals: string[] = [];
  const tlsServer = tls.createServer(() => assert.fail('no handshake can succeed'));
  tlsServer.on('tlsClientError', ({ code = '' }: NodeJS.ErrnoException) => refusals.push(code));
  const startedAt = performance.now();
  const { failure, received } = await meet((socket) => tlsServer.emit('connection', socket), { stream: true });
  assert.ok(performance.now() - startedAt < 5000);
  assert.deepEqual([refusals, received], [['ERR_SSL_WRONG_VERSION_NUMBER'], '']);
  assert.deepEqual([failure?.code, failure?.value], ['PEER_CLOSED', UNANSWERED]);
  assert.match(failure!.hint!, /TLS \(tls-creds\)/);
});

test('one that answered is not given up, however long it is silent then', async () => {
  const { failure, received } = await meet(
    (socket) => {
      socket.write('\x00\x02\x00\x04abcd', 'latin1');
      setTimeout(() => socket.end(), 400);
    },
    { answerMs: 150 },
  );
  assert.deepEqual([failure, received], [undefined, '\x00\x02\x00\x04abcd']);
});

test('one that closes without an answer is told from one that answered first', async () => {
  const closed = await meet((socket) => socket.end());
  assert.deepEqual([closed.failure?.code, closed.failure?.value], ['PEER_CLOSED', UNANSWERED]);
  const broken = await meet((socket) => socket.destroy(), { writeBytes: 4 * 2 ** 20 });
  assert.deepEqual([broken.failure?.code, broken.failure?.value], ['PEER_CLOSED', UNANSWERED]);
});

test('what the peer said before it closed is read before a broken write is told of', async () => {
  const order: string[] = [];
  let reader: ChannelReader | undefined;
  const channel = answeringChannel(
    {
      peer: 'peer',
      closed: new Promise(() => {}),
      write: (_bytes, done) => {
        setTimeout(() => done(new Error('EPIPE')), 1);
        setTimeout(() => {
          reader!.buffer().set([0, 1, 0, 4, 0, 0, 0, 1]);
          reader!.received(8);
          reader!.ended();
        }, 30);
      },
      read: (given) => {
        reader = given;
      },
      pause: () => {},
      resume: () => {},
      end: async () => {},
      destroy: () => {},
    },
    5000,
  );
  const buffer = new Uint8Array(100);
  channel.read({
    buffer: () => buffer,
    received: (bytes) => order.push(`received ${bytes}`),
    ended: () => order.push('ended'),
    failed: () => order.push('failed'),
  });
  await new Promise<void>((resolve) => {
    channel.write(new Uint8Array(1), () => {
      order.push('broken');
      resolve();
    });
  });
  assert.deepEqual(order, ['received 8', 'ended', 'broken']);
});
