// What every medium has to keep of the ByteChannel contract, over real sockets, pipes, files and child processes.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash, randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs';
import type net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as delay, setImmediate as turn } from 'node:timers/promises';
import { RamferryError } from '../memory/errors.js';
import type { ByteChannel, ChannelReader } from './channel.js';
import { listen } from './listen-node.js';
import { openChannel } from './open-channel-node.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-channel-'));
after(() => fs.rmSync(folder, { recursive: true }));
let names = 0;
const freshPath = (): string => path.join(folder, `${names++}`);

const hasIpv6 = Object.values(os.networkInterfaces()).some((list) => list?.some(({ address }) => address === '::1'));
const addresses: Record<string, () => string> = {
  'tcp over IPv4': () => 'tcp:127.0.0.1:0',
  ...(hasIpv6 ? { 'tcp over IPv6': () => 'tcp:[::1]:0' } : {}),
  unix: () => `unix:${freshPath()}`,
};

/** Both ends of a connection: first the one that connected, then the one that was accepted. */
const connectedPair = async (address: string): Promise<[ByteChannel, ByteChannel]> => {
  const listener = await listen(address);
  const accepting = listener.accept();
  const client = await openChannel(listener.uri, { direction: 'both' });
  const pair: [ByteChannel, ByteChannel] = [client, await accepting];
  await listener.close();
  return pair;
};

/** Reads into a shared wasm memory, as the engines do, and keeps a digest of everything. */
class Collector implements ChannelReader {
  readonly #memory = new Uint8Array(new WebAssembly.Memory({ initial: 32, maximum: 32, shared: true }).buffer);
  readonly #hash = createHash('sha256');
  readonly #step: number;
  readonly finished: Promise<void>;
  #finish: (error?: Error) => void = () => {};
  #space = this.#memory;
  #at = 0;
  byteCount = 0;
  reads = 0;
  onReceived: () => void = () => {};
  text = '';

  constructor(step = 1 << 20) {
    this.#step = step;
    this.finished = new Promise((resolve, reject) => {
      this.#finish = (error) => (error === undefined ? resolve() : reject(error));
    });
    this.finished.catch(() => {});
  }

  /** A different place each time: bytes must land where the reader said last. */
  buffer(): Uint8Array {
    this.#at = this.#at + 2 * this.#step > this.#memory.length ? 0 : this.#at + this.#step;
    this.#space = this.#memory.subarray(this.#at, this.#at + this.#step);
    return this.#space;
  }

  received(byteCount: number): void {
    assert.ok(byteCount > 0 && byteCount <= this.#space.length);
    this.#hash.update(this.#space.subarray(0, byteCount));
    if (this.text.length < 1000) {
      this.text += Buffer.from(this.#space.subarray(0, byteCount)).toString('latin1');
    }
    this.#space.fill(0xee);
    this.byteCount += byteCount;
    this.reads += 1;
    this.onReceived();
  }

  ended(): void {
    this.#finish();
  }

  failed(error: Error): void {
    this.#finish(error);
  }

  digest(): string {
    return this.#hash.digest('hex');
  }
}

const collect = (channel: ByteChannel, step?: number): Collector => {
  const collector = new Collector(step);
  channel.read(collector);
  return collector;
};

const write = (channel: ByteChannel, bytes: Uint8Array | string): Promise<void> =>
  new Promise((resolve, reject) => {
    const data = typeof bytes === 'string' ? Buffer.from(bytes) : bytes;
    channel.write(data, (error) => (error === undefined ? resolve() : reject(error)));
  });

/** Sends random bytes in blocks of wasm memory, each reused as soon as it is done; returns the digest. */
const sendRandom = async (channel: ByteChannel, blockBytes: number, blockCount: number): Promise<string> => {
  const memory = new WebAssembly.Memory({ initial: 64, maximum: 64, shared: true });
  const blocks = [0, 1, 2, 3].map((index) => new Uint8Array(memory.buffer, index * blockBytes, blockBytes));
  const idle = [...blocks];
  const hash = createHash('sha256');
  const free: (() => void)[] = [];
  for (let sent = 0; sent < blockCount; sent++) {
    if (idle.length === 0) {
      await new Promise<void>((resolve) => free.push(resolve));
    }
    const block = idle.pop()!;
    randomFillSync(block.subarray(0, 4096));
    hash.update(block);
    channel.write(block, (error) => {
      assert.equal(error, undefined);
      idle.push(block);
      free.shift()?.();
    });
  }
  await channel.end();
  return hash.digest('hex');
};

const code = (expected: string) => (error: unknown) => (error as { code?: string }).code === expected;

for (const [name, address] of Object.entries(addresses)) {
  test(`${name}: 64 MiB both ways at once arrive complete`, async () => {
    const [client, server] = await connectedPair(address());
    const collectors = [collect(client), collect(server)];
    const sent = await Promise.all([sendRandom(server, 1 << 20, 64), sendRandom(client, 1 << 18, 256)]);
    await Promise.all(collectors.map(({ finished }) => finished));
    assert.deepEqual(
      collectors.map((collector) => collector.digest()),
      sent,
    );
    assert.deepEqual(
      collectors.map(({ byteCount }) => byteCount),
      [64 << 20, 64 << 20],
    );
    await Promise.all([client.closed, server.closed]);
  });

  test(`${name}: 64 MiB of pieces that stay where they are arrive complete, between plain writes`, async (t) => {
    const [client, server] = await connectedPair(address());
    const memory = new Uint8Array(new WebAssembly.Memory({ initial: 128, maximum: 128, shared: true }).buffer);
    const base = client.addressOf!(memory);
    if (base === undefined) {
      client.destroy();
      t.skip('no system call can be made');
      return;
    }
    randomFillSync(memory.subarray(0, 65536));
    memory.copyWithin(65536, 0, 65536);
    const collector = collect(server);
    const hash = createHash('sha256');
    for (let sent = 0; sent < 64; sent += 1) {
      // 8 bytes and a page in turn, 255 times, in a place of the vector's own.
      const entries = memory.subarray(2 ** 20 + (sent % 64) * 8192, 2 ** 20 + (sent % 64) * 8192 + 510 * 16);
      const view = new DataView(entries.buffer, entries.byteOffset);
      let byteCount = 0;
      for (let entry = 0; entry < 510; entry += 1) {
        const offset = (entry * 241 + sent * 7) % 65536;
        const length = entry % 2 === 0 ? 8 : 4096;
        view.setBigUint64(entry * 16, BigInt(base + offset), true);
        view.setBigUint64(entry * 16 + 8, BigInt(length), true);
        hash.update(memory.subarray(offset, offset + length));
        byteCount += length;
      }
      const vectorDone = new Promise<void>((resolve, reject) => {
        client.writeVector!({ memory, base, entries, byteCount }, (error) => (error ? reject(error) : resolve()));
      });
      hash.update(`plain ${sent}`);
      await Promise.all([vectorDone, write(client, `plain ${sent}`)]);
    }
    await client.end();
    await collector.finished;
    assert.equal(collector.digest(), hash.digest('hex'));
    server.destroy();
  });

  test(`${name}: pieces that the peer does not take fail once, with its name`, async (t) => {
    const [client, server] = await connectedPair(address());
    const memory = new Uint8Array(new WebAssembly.Memory({ initial: 512, maximum: 512, shared: true }).buffer);
    const base = client.addressOf!(memory);
    if (base === undefined) {
      client.destroy();
      t.skip('no system call can be made');
      return;
    }
    const entries = memory.subarray(0, 32);
    const view = new DataView(entries.buffer);
    view.setBigUint64(0, BigInt(base + 65536), true);
    view.setBigUint64(8, BigInt(16 * 2 ** 20), true);
    view.setBigUint64(16, BigInt(base + 65536), true);
    view.setBigUint64(24, BigInt(4096), true);
    const errors: unknown[] = [];
    client.writeVector!({ memory, base, entries, byteCount: 16 * 2 ** 20 + 4096 }, (error) => errors.push(error));
    await delay(20);
    assert.deepEqual(errors, []);
    server.destroy();
    await client.closed;
    assert.equal(errors.length, 1);
    assert.match(String(errors[0]), new RegExp(client.peer.replace(/[[\]]/g, '.')));
  });

  test(`${name}: nothing is read before read(), and nothing that came early is lost`, async () => {
    const [client, server] = await connectedPair(address());
    await write(client, 'early ');
    await write(server, 'early ');
    await delay(20);
    const collectors = [collect(client, 2), collect(server, 2)];
    await write(client, 'late');
    await write(server, 'late');
    await Promise.all([client.end(), server.end()]);
    for (const collector of collectors) {
      await collector.finished;
      assert.equal(collector.text, 'early late');
    }
  });

  test(`${name}: one byte at a time, from a sender and into a buffer of one`, async () => {
    const [client, server] = await connectedPair(address());
    const collectors = [collect(client, 1), collect(server, 1)];
    for (const character of 'one at a time') {
      await Promise.all([write(client, character), write(server, character)]);
    }
    await Promise.all([client.end(), server.end()]);
    for (const collector of collectors) {
      await collector.finished;
      assert.equal(collector.text, 'one at a time');
    }
  });

  test(`${name}: each direction ends for itself`, async () => {
    const [client, server] = await connectedPair(address());
    const atServer = collect(server);
    const atClient = collect(client);
    await write(client, 'question');
    await client.end();
    await client.end();
    await atServer.finished;
    await delay(10);
    await write(server, 'answer');
    await server.end();
    await atClient.finished;
    assert.equal(atServer.text, 'question');
    assert.equal(atClient.text, 'answer');
    await Promise.all([client.closed, server.closed]);
  });

  test(`${name}: a paused reader is left alone, and loses nothing`, async () => {
    const [client, server] = await connectedPair(address());
    for (const [from, to] of [
      [client, server],
      [server, client],
    ] as const) {
      const collector = new Collector(10_000);
      let paused = false;
      const pauses: Promise<void>[] = [];
      collector.onReceived = () => {
        assert.ok(!paused);
        if (collector.reads % 7 === 0) {
          paused = true;
          to.pause();
          pauses.push(
            turn().then(() => {
              paused = false;
              to.resume();
            }),
          );
        }
      };
      to.read(collector);
      const digest = await sendRandom(from, 50_000, 100);
      await collector.finished;
      assert.ok(pauses.length > 10);
      assert.equal(collector.digest(), digest);
    }
  });

  test(`${name}: done is called once each, in order, never at once, also when the channel is dropped midway`, async () => {
    const [client, server] = await connectedPair(address());
    const calls: [number, Error | undefined][] = [];
    const block = new Uint8Array(1 << 20);
    let inside = true;
    const finished = new Promise<void>((resolve) => {
      for (let index = 0; index < 40; index++) {
        client.write(block, (error) => {
          assert.ok(!inside);
          calls.push([index, error]);
          if (calls.length === 40) {
            resolve();
          }
        });
      }
    });
    inside = false;
    const collector = collect(server);
    collector.onReceived = () => {
      if (collector.byteCount > 4 << 20) {
        server.pause();
        collector.onReceived = () => {};
        setTimeout(() => client.destroy(), 20);
      }
    };
    await finished;
    assert.deepEqual(
      calls.map(([index]) => index),
      Array.from({ length: 40 }, (_, index) => index),
    );
    const firstFailed = calls.findIndex(([, error]) => error !== undefined);
    assert.ok(firstFailed >= 3 && firstFailed < 40, `first failed: ${firstFailed}`);
    assert.ok(calls.slice(firstFailed).every(([, error]) => code('CHANNEL_DESTROYED')(error)));
    // What was reported as written must have been handed to the system.
    server.resume();
    await collector.finished.catch(() => {});
    assert.ok(collector.byteCount >= firstFailed << 20);

    await assert.rejects(write(client, 'more'), code('CHANNEL_DESTROYED'));
    await assert.rejects(client.end(), code('CHANNEL_DESTROYED'));
    client.destroy();
    await client.closed;
    server.destroy();
  });

  test(`${name}: a peer that goes away fails the writes and the reader, naming it`, async () => {
    const [client, server] = await connectedPair(address());
    const atClient = collect(client);
    await write(client, 'never read');
    // Unread bytes in the socket turn the close into a reset.
    server.destroy();
    await assert.rejects(async () => {
      for (;;) {
        await write(client, new Uint8Array(1 << 20));
      }
    }, code('PEER_CLOSED'));
    await assert.rejects(
      atClient.finished,
      (error) => code('PEER_CLOSED')(error) && (error as Error).message.includes(client.peer),
    );
    await client.closed;
    const late = collect(client);
    await assert.rejects(late.finished, code('PEER_CLOSED'));
  });

  test(`${name}: a reader that throws breaks its channel, not the process`, async () => {
    const [client, server] = await connectedPair(address());
    const collector = new Collector();
    collector.onReceived = () => {
      throw new Error('bad magic');
    };
    server.read(collector);
    await write(client, 'x');
    await assert.rejects(collector.finished, /bad magic/);
    await server.closed;
    client.destroy();
  });

  test(`${name}: a listener queues connections, and rejects accept when it is closed`, async () => {
    const listener = await listen(address());
    const clients = [
      await openChannel(listener.uri, { direction: 'both' }),
      await openChannel(listener.uri, { direction: 'both' }),
    ];
    await write(clients[1]!, 'second');
    await clients[1]!.end();
    const servers = [await listener.accept(), await listener.accept()];
    const collector = collect(servers[1]!);
    await collector.finished;
    assert.equal(collector.text, 'second');
    const waiting = listener.accept();
    await Promise.all([listener.close(), assert.rejects(waiting, code('LISTENER_CLOSED'))]);
    await assert.rejects(listener.accept(), code('LISTENER_CLOSED'));
    await assert.rejects(
      openChannel(listener.uri, { direction: 'both' }),
      code(name === 'unix' ? 'NOT_FOUND' : 'CONNECT_REFUSED'),
    );
    for (const channel of [...clients, ...servers]) {
      channel.destroy();
    }
  });
}

test('a client waits for a destination that starts a moment later, until its time is over or it is cancelled', async () => {
  const uri = `unix:${freshPath()}`;
  await assert.rejects(openChannel(uri, { direction: 'both', retryMs: 120 }), code('NOT_FOUND'));
  const cancelled = AbortSignal.timeout(80);
  await assert.rejects(openChannel(uri, { direction: 'both', retryMs: 5000, signal: cancelled }), {
    name: /Timeout|Abort/,
  });
  const connecting = openChannel(uri, { direction: 'both', retryMs: 10_000 });
  await delay(60);
  const listener = await listen(uri);
  (await connecting).destroy();
  await listener.close();
});

test('a socket file that appears ends the pause between two tries', async () => {
  const uri = `unix:${freshPath()}`;
  const started = performance.now();
  const connecting = openChannel(uri, { direction: 'both', retryMs: 60_000, retryPauseMs: 20_000 });
  await delay(60);
  const listener = await listen(uri);
  (await connecting).destroy();
  await listener.close();
  assert.ok(performance.now() - started < 10_000);
});

test('a host that does not answer can be given up at once', async () => {
  // TEST-NET-1: nobody is there; where the network refuses it at once the error is the other one.
  const signal = AbortSignal.timeout(50);
  await assert.rejects(openChannel('tcp:192.0.2.1:9', { direction: 'both', signal, retryMs: 60_000 }));
});

test('a stale socket file is replaced, a live one and other files are not', async () => {
  const socket = freshPath();
  const owner = spawn(process.execPath, [
    '-e',
    `require('net').createServer().listen(${JSON.stringify(socket)}, () => console.log('up'))`,
  ]);
  await once(owner.stdout, 'data');
  await assert.rejects(listen(`unix:${socket}`), code('ADDRESS_IN_USE'));
  owner.kill('SIGKILL');
  await once(owner, 'exit');
  assert.ok(fs.existsSync(socket));
  await (await listen(`unix:${socket}`)).close();
  assert.ok(!fs.existsSync(socket));

  fs.writeFileSync(socket, 'precious');
  await assert.rejects(listen(`unix:${socket}`), code('FILE_EXISTS'));
  assert.equal(fs.readFileSync(socket, 'utf8'), 'precious');
});

test('addresses that cannot be used are refused with what to do', async () => {
  await assert.rejects(listen('exec:cat'), code('INVALID_URI'));
  await assert.rejects(openChannel('tcp::4444', { direction: 'both' }), code('INVALID_URI'));
  await assert.rejects(openChannel('fd:999', { direction: 'read' }), code('NO_DESCRIPTOR'));
  await assert.rejects(openChannel(`file:${folder}`, { direction: 'read' }), code('IS_DIRECTORY'));
  await assert.rejects(openChannel(`file:${freshPath()}`, { direction: 'read' }), code('NOT_FOUND'));
  const fresh = freshPath();
  await assert.rejects(openChannel(`file:${fresh}`, { direction: 'both' }), code('ONE_WAY'));
  assert.equal(fs.existsSync(fresh), false);
  await assert.rejects(
    openChannel('file:/dev/full', { direction: 'write' }).then((full) => write(full, 'x')),
    code('NO_SPACE'),
  );
});

test('file: writes from the offset on, keeps what is before and cuts what is after; reads from the offset', async () => {
  const file = freshPath();
  fs.writeFileSync(file, 'header--old content that is longer than the new one'.padEnd(9 << 20, '.'));
  const uri = `file:${file},offset=8`;
  const output = await openChannel(uri, { direction: 'write' });
  const digest = await sendRandom(output, 30_000, 200);
  await output.closed;
  assert.equal(fs.statSync(file).size, 8 + 200 * 30_000);
  assert.equal(fs.readFileSync(file, 'latin1').slice(0, 8), 'header--');
  const collector = collect(await openChannel(uri, { direction: 'read' }));
  await collector.finished;
  assert.equal(collector.digest(), digest);
});

// MR-19
test('file: a system that takes less than it is given gets the rest', async (t) => {
  const { writev } = fs;
  type Done = (error: NodeJS.ErrnoException | null, byteCount: number) => void;
  t.mock.method(fs, 'writev', (descriptor: number, pieces: Uint8Array[], position: number, done: Done) =>
    writev(descriptor, [pieces[0]!.subarray(0, 700)], position, done),
  );
  const file = freshPath();
  const output = await openChannel(`file:${file}`, { direction: 'write' });
  const digest = await sendRandom(output, 10_000, 5);
  await output.closed;
  assert.equal(createHash('sha256').update(fs.readFileSync(file)).digest('hex'), digest);
});

test('file: what was there stays until all of it is written and on disk, and for ever if the writer gives up', async (t) => {
  const file = freshPath();
  const uri = `file:${file}`;
  const content = (): string => fs.readFileSync(file, 'utf8');
  fs.writeFileSync(file, 'precious');
  const dropped = await openChannel(uri, { direction: 'write' });
  await write(dropped, 'half');
  assert.equal(content(), 'precious');
  dropped.destroy();
  await dropped.closed;
  assert.equal(content(), 'precious');

  const steps: string[] = [];
  const { fsync, renameSync } = fs;
  t.mock.method(fs, 'fsync', (descriptor: number, done: fs.NoParamCallback) => {
    steps.push(`synced, ${fs.fstatSync(descriptor).size} bytes`);
    fsync(descriptor, done);
  });
  t.mock.method(fs, 'renameSync', (from: string, to: string) => {
    renameSync(from, to);
    steps.push('named');
  });
  const whole = await openChannel(uri, { direction: 'write' });
  await write(whole, 'the whole of it');
  await whole.end();
  assert.equal(content(), 'the whole of it');
  whole.destroy();
  await whole.closed;
  assert.equal(content(), 'the whole of it');
  assert.deepEqual(steps, ['synced, 15 bytes', 'named']);

  const cancelled = await openChannel(uri, { direction: 'write' });
  await write(cancelled, 'too late');
  const ending = cancelled.end();
  cancelled.destroy();
  await assert.rejects(ending, code('CHANNEL_DESTROYED'));
  await cancelled.closed;
  assert.equal(content(), 'the whole of it');
  assert.deepEqual(
    fs.readdirSync(path.dirname(file)).filter((name) => name.startsWith(`${path.basename(file)}.`)),
    [],
  );
});

test('file: a full disk leaves what was there', { skip: !fs.existsSync('/dev/full') }, async (t) => {
  const file = freshPath();
  fs.writeFileSync(file, 'precious');
  const output = await openChannel(`file:${file}`, { direction: 'write' });
  t.mock.method(
    fs,
    'writev',
    (_descriptor: number, _pieces: Uint8Array[], _position: number, done: (error: Error) => void) =>
      setImmediate(() => done(Object.assign(new Error('full'), { code: 'ENOSPC' }))),
  );
  await assert.rejects(write(output, 'x'), code('NO_SPACE'));
  await output.closed;
  assert.equal(fs.readFileSync(file, 'utf8'), 'precious');
});

test('file: pause, drop in the middle, and a direction that is not there', async () => {
  const file = freshPath();
  fs.writeFileSync(file, Buffer.alloc(1 << 20, 7));
  const input = await openChannel(`file:${file}`, { direction: 'read' });
  const collector = new Collector(1 << 16);
  collector.onReceived = () => {
    input.pause();
    setTimeout(() => (collector.reads === 5 ? input.destroy() : input.resume()), 1);
  };
  input.read(collector);
  await input.closed;
  assert.equal(collector.byteCount, 5 << 16);
  await assert.rejects(write(input, 'x'), code('READ_ONLY'));

  const output = await openChannel(`file:${file}`, { direction: 'write' });
  await collect(output).finished;
  const results = Array.from({ length: 20 }, () =>
    write(output, new Uint8Array(1 << 20)).then(() => true, code('CHANNEL_DESTROYED')),
  );
  output.destroy();
  assert.ok((await Promise.all(results)).every(Boolean));
  await output.closed;
  await assert.rejects(output.end(), code('CHANNEL_DESTROYED'));
});

test('exec: carries bytes both ways, and its exit status counts', async () => {
  const both = await openChannel('exec:tr a-z A-Z', { direction: 'both' });
  const answer = collect(both);
  await write(both, 'shout');
  await both.end();
  await answer.finished;
  assert.equal(answer.text, 'SHOUT');
  await both.closed;

  const big = collect(await openChannel('exec:head -c 50000000 /dev/zero', { direction: 'read' }));
  await big.finished;
  assert.equal(big.byteCount, 50_000_000);

  const failing = collect(await openChannel('exec:printf half; exit 3', { direction: 'read' }));
  await assert.rejects(
    failing.finished,
    (error) => code('COMMAND_FAILED')(error) && /status 3/.test((error as Error).message),
  );
  assert.equal(failing.text, 'half');

  const file = freshPath();
  const output = await openChannel(`exec:cat > ${file}`, { direction: 'write' });
  await write(output, 'saved');
  await output.end();
  assert.equal(fs.readFileSync(file, 'utf8'), 'saved');

  const deaf = await openChannel('exec:exec <&-; exit 4', { direction: 'write' });
  await assert.rejects(async () => {
    for (;;) {
      await write(deaf, new Uint8Array(1 << 20));
    }
  }, /status 4/);
  const late = await openChannel('exec:cat > /dev/null; exit 5', { direction: 'write' });
  await write(late, 'x');
  await assert.rejects(late.end(), /status 5/);
});

test('exec: a dropped command is ended', async () => {
  const channel = await openChannel('exec:exec sleep 60', { direction: 'read' });
  channel.destroy();
  channel.destroy();
  await channel.closed;
});

test('fd: takes an inherited socket, pipe or file; - takes stdin and stdout', async () => {
  const file = freshPath();
  fs.writeFileSync(file, 'skipped|from the file');
  const program = `
    import { openChannel } from ${JSON.stringify(new URL('./open-channel-node.js', import.meta.url).href)};
    const [from, to] = process.argv.slice(1);
    const input = await openChannel(from, { direction: from === to ? 'both' : 'read' });
    const output = from === to ? input : await openChannel(to, { direction: 'write' });
    const space = new Uint8Array(100);
    input.read({
      buffer: () => space,
      received: (count) => output.write(space.slice(0, count), (error) => { if (error) throw error; }),
      ended: () => output.end(),
      failed: (error) => { throw error; },
    });
    process.exitCode = 1;
    await input.closed;
    process.exitCode = 0;`;
  const run = async (from: string, to: string, extra: (number | 'pipe')[], input: string): Promise<string> => {
    const child = spawn(process.execPath, ['--input-type=module', '-e', program, from, to], {
      stdio: ['pipe', 'pipe', 'inherit', ...extra],
    });
    const socket = child.stdio[3] as net.Socket | null;
    let text = '';
    (to === 'fd:3' && socket !== null ? socket : child.stdout!).on('data', (data: Buffer) => {
      text += data.toString();
    });
    (from === 'fd:3' && socket !== null ? socket : child.stdin!).end(input);
    const [status] = await once(child, 'close');
    assert.equal(status, 0);
    return text;
  };
  const descriptor = fs.openSync(file, 'r');
  fs.readSync(descriptor, new Uint8Array(8));
  assert.equal(await run('fd:3', '-', [descriptor], ''), 'from the file');
  fs.closeSync(descriptor);
  assert.equal(await run('-', '-', [], 'through stdio'), 'through stdio');
  assert.equal(await run('fd:3', 'fd:3', ['pipe'], 'through a socket'), 'through a socket');

  // Real pipes, which Node does not make: the shell does.
  const shell = spawn('/bin/sh', [
    '-c',
    `printf piped | "$0" --input-type=module -e "$1" - - | cat`,
    process.execPath,
    program,
  ]);
  let text = '';
  shell.stdout.on('data', (data: Buffer) => {
    text += data.toString();
  });
  await once(shell, 'close');
  assert.equal(text, 'piped');
});

test('terminals are refused', { skip: !fs.existsSync('/usr/bin/script') }, async () => {
  const program = `import('${new URL('./open-channel-node.js', import.meta.url).href}').then(m => m.openChannel('-', { direction: 'write' })).catch(e => console.log(e.code))`;
  const child = spawn('script', ['-qec', `${process.execPath} -e "${program.replaceAll('"', '\\"')}"`, '/dev/null']);
  let text = '';
  child.stdout.on('data', (data: Buffer) => {
    text += data.toString();
  });
  await once(child, 'close');
  assert.match(text, /IS_TERMINAL/);
});

test('a cancelled open does not start', async () => {
  const file = freshPath();
  const signal = AbortSignal.abort(new Error('changed my mind'));
  await assert.rejects(openChannel(`exec:touch ${file}`, { direction: 'read', signal }), /changed my mind/);
  await delay(50);
  assert.ok(!fs.existsSync(file));
});

test('a listener that passes many ports that are taken leaves nothing behind at each', async () => {
  const warnings: string[] = [];
  const note = (warning: Error): unknown => warnings.push(warning.message);
  process.on('warning', note);
  const first = await listen('tcp:127.0.0.1:0');
  const open = [first];
  try {
    // Each passes all those before it.
    for (let count = 0; count < 13; count += 1) {
      open.push(await listen(`${first.uri},to=65535`));
    }
    await delay(1);
    assert.deepEqual(warnings, []);
  } finally {
    process.off('warning', note);
    await Promise.all(open.map((listener) => listener.close()));
  }
});

test('where it listens is said as it is bound, for each version of IP', async (context) => {
  const any = await listen('tcp::0,ipv4=on');
  assert.match(any.uri, /^tcp:0\.0\.0\.0:\d+$/);
  const port = Number(/\d+$/.exec(any.uri)![0]);
  await assert.rejects(listen(`tcp::${port},ipv4=on`), code('ADDRESS_IN_USE'));
  const next = await listen(`tcp::${port},ipv4=on,to=65535`);
  assert.ok(Number(/\d+$/.exec(next.uri)![0]) > port);
  (await openChannel(any.uri, { direction: 'both' })).destroy();
  await Promise.all([any.close(), next.close()]);
  const named = await listen('tcp:localhost:0,ipv4');
  assert.match(named.uri, /^tcp:127\.0\.0\.1:\d+$/);
  await named.close();
  if (!fs.existsSync('/proc/net/if_inet6')) {
    context.diagnostic('no IPv6 here');
    return;
  }
  const both = await listen('tcp::0');
  assert.match(both.uri, /^tcp:\[::\]:\d+$/);
  const channel = await openChannel(both.uri.replace('[::]', '127.0.0.1'), { direction: 'both' });
  const accepted = await both.accept();
  // Not as an IPv6 address that an IPv4 one is mapped to.
  assert.match(accepted.peer, /^tcp:127\.0\.0\.1:\d+$/);
  channel.destroy();
  accepted.destroy();
  await both.close();
  const six = await listen('tcp::0,ipv6=on');
  await assert.rejects(
    openChannel(six.uri.replace('[::]', '127.0.0.1'), { direction: 'both' }),
    code('CONNECT_REFUSED'),
  );
  (await openChannel(six.uri, { direction: 'both' })).destroy();
  await six.close();
});

test('a socket in a folder that is not there: the folder is named, not a permission', async () => {
  await assert.rejects(
    listen(`unix:${folder}/none/in.sock`),
    (error) =>
      error instanceof RamferryError && error.code === 'NOT_FOUND' && error.message.includes(`${folder}/none.`),
  );
});
