// `receive` from outside the process, with sources that are the test: good ones, bad ones, ones that leave; and killed
// at any moment. What must hold always: under the name of the file there is a whole guest or what was there before, and
// a source is told of success only when the file is there.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { Readable } from 'node:stream';
import { after, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { RunningCommand } from '../../test/command.js';
import { maliciousSources } from '../../test/malicious/sources.js';
import { patternPage, StreamBuilder, testConfiguration, testDevice } from '../../test/streams.js';
import { ByteWriter } from '../format/byte-writer.js';
import { Command, ElementType } from '../format/stream/constants.js';
import {
  command,
  normalRecord,
  ping,
  ramBodyEnd,
  ramPart,
  ramStart,
  streamEnd,
  streamHeader,
} from '../format/stream/write.js';

const base = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-receive-'));
after(() => fs.rmSync(base, { recursive: true }));

const MIB = 2 ** 20;
const PONG_1 = '0002000400000001';
const SHUT_0 = '0001000400000000';
const SWITCHOVER_ACK = '00070000';
const SHUT_1 = '0001000400000001';

const isSlow = process.env['RAMFERRY_SLOW'] === '1';

/** Nothing here takes longer, unless it hangs. */
const HANG_MS = 60_000;

/** A small migration; with a return path the file lacks what opens it. */
const migration = (withReturnPath: boolean): { sent: Uint8Array; saved: Uint8Array } => {
  const builder = new StreamBuilder().header();
  const openReturnPath = Buffer.concat([command(Command.OPEN_RETURN_PATH), ping(1)]);
  const head = builder.bytes;
  const { bytes } = builder
    .ramStart([{ name: 'pc.ram', usedLength: 600 * 4096 }])
    .part(
      Array.from({ length: 500 }, (_, page) => ({ block: 'pc.ram', page, kind: 'normal', content: patternPage(page) })),
    )
    .end([{ block: 'pc.ram', page: 3, kind: 'zero' }])
    .devices([testDevice('cpu', 5000)]);
  const rest = bytes.subarray(head.length);
  return { sent: withReturnPath ? Buffer.concat([head, openReturnPath, rest]) : bytes, saved: bytes };
};

interface Reception {
  readonly running: RunningCommand;
  readonly folder: string;
  readonly out: string;
  readonly uri: string;
  connect(): Promise<net.Socket>;
}

const receive = async (...options: string[]): Promise<Reception> => {
  const folder = fs.mkdtempSync(path.join(base, 'x'));
  const out = path.join(folder, 'out.mig');
  const running = new RunningCommand(['receive', `unix:${path.join(folder, 'socket')}`, out, ...options]);
  // A test that fails in its middle must not keep the others waiting for its child.
  after(() => running.child.kill('SIGKILL'));
  const uri = await running.listening();
  const connect = async (): Promise<net.Socket> => {
    const socket = net.connect({ path: uri.slice('unix:'.length), allowHalfOpen: true });
    // Whoever hangs up on a source breaks its writes.
    socket.on('error', () => {});
    after(() => socket.destroy());
    await once(socket, 'connect');
    return socket;
  };
  return { running, folder, out, uri, connect };
};

/** Writes all chunks as the peer reads them; ends when it hangs up, too. */
const writeAll = (socket: net.Socket, chunks: Iterable<Uint8Array> | AsyncIterable<Uint8Array>): Promise<void> =>
  new Promise((resolve) => {
    const source = Readable.from(chunks);
    source.once('end', resolve);
    socket.once('close', () => {
      source.destroy();
      resolve();
    });
    source.pipe(socket, { end: false });
  });

/** All the peer says, as hexadecimal digits, once it ended its direction or is gone. */
const answers = (socket: net.Socket, onData: (soFar: string) => unknown = () => {}): Promise<string> => {
  let text = '';
  socket.on('data', (data: Buffer) => {
    text += data.toString('hex');
    onData(text);
  });
  return new Promise((resolve) => {
    socket.once('end', () => resolve(text)).once('close', () => resolve(text));
  });
};

test('with a return path: SHUT 0 comes when the file is there; the JSON is that of a migration', async () => {
  const { sent, saved } = migration(true);
  const { running, folder, out, connect } = await receive('--json');
  const socket = await connect();
  let atShut: Buffer | undefined;
  const answer = answers(socket, (soFar) => {
    if (soFar.endsWith(SHUT_0)) {
      atShut = fs.readFileSync(out);
      socket.end();
    }
  });
  await writeAll(socket, [sent]);
  // A source of this machine type may wait for the acknowledgement, and takes it if it does not.
  assert.equal(await answer, SWITCHOVER_ACK + PONG_1 + SHUT_0);
  assert.ok(atShut?.equals(saved));
  const { status, stdout, stderr } = await running.ended;
  assert.equal(status, 0, stderr);
  const document = JSON.parse(stdout);
  assert.deepEqual(
    [document.status, document.file, document.fileBytes, document.container, document.format, document.machine],
    ['completed', out, saved.length, 'qemu', 'stream', 'pc-i440fx-10.0'],
  );
  const { ram, ramferry } = document;
  assert.deepEqual(
    [ram.transferred, ram.total, ram.normal, ram.duplicate, ram['normal-bytes'], ram['page-size']],
    [sent.length, 600 * 4096, 500, 1, 500 * 4096, 4096],
  );
  assert.ok(typeof ram.mbps === 'number' && typeof document['total-time'] === 'number');
  assert.deepEqual([ramferry.returnPath, ramferry.pings, ramferry.sections], [true, 1, { ram: 3, devices: 1 }]);
  assert.deepEqual(fs.readdirSync(folder), ['out.mig', 'out.mig.digest']);
});

test('without a return path: nothing is written to the source, which may close at once; the text says so', async () => {
  const { sent, saved } = migration(false);
  const { running, folder, out, connect } = await receive('--quiet', '--to', 'stream');
  const socket = await connect();
  const answer = answers(socket);
  await writeAll(socket, [sent]);
  socket.end();
  assert.equal(await answer, '');
  const { status, stdout, stderr } = await running.ended;
  assert.equal(status, 0, stderr);
  assert.match(stderr, /^listening on unix:\S+\n$/);
  assert.match(stdout, /^ {2}source told +not: without a return path/m);
  assert.ok(fs.readFileSync(out).equals(saved));
  assert.deepEqual(fs.readdirSync(folder), ['out.mig', 'out.mig.digest']);
});

test('port 0: the bound port is printed; a second connection is refused', async () => {
  const folder = fs.mkdtempSync(path.join(base, 'x'));
  const out = path.join(folder, 'out.mig');
  const running = new RunningCommand(['receive', 'tcp:127.0.0.1:0', out, '--json']);
  const port = Number(/^tcp:127\.0\.0\.1:(\d+)$/.exec(await running.listening())?.[1]);
  assert.ok(port > 0);
  const socket = net.connect(port, '127.0.0.1');
  await once(socket, 'connect');
  const { sent, saved } = migration(false);
  // Once bytes arrive it has accepted, and does not listen any more.
  await writeAll(socket, [sent.subarray(0, 100)]);
  await delay(100);
  await assert.rejects(once(net.connect(port, '127.0.0.1'), 'connect'), { code: 'ECONNREFUSED' });
  await writeAll(socket, [sent.subarray(100)]);
  socket.end();
  assert.equal((await running.ended).status, 0);
  assert.ok(fs.readFileSync(out).equals(saved));
});

test('from a command and from a file: checked and copied, damage is status 3', async () => {
  const folder = fs.mkdtempSync(path.join(base, 'x'));
  const file = path.join(folder, 'in.mig');
  const { saved } = migration(false);
  fs.writeFileSync(file, saved);
  for (const [index, uri] of [`exec:cat ${file}`, `file:${file}`].entries()) {
    const out = path.join(folder, `out${index}.mig`);
    const { status, stderr } = await new RunningCommand(['receive', uri, out, '--quiet']).ended;
    assert.deepEqual([status, stderr], [0, '']);
    assert.ok(fs.readFileSync(out).equals(saved));
  }
  fs.truncateSync(file, 100_000);
  const out = path.join(folder, 'out0.mig');
  const { status, stdout } = await new RunningCommand(['receive', `file:${file}`, out, '--json']).ended;
  assert.equal(status, 3);
  const { error } = JSON.parse(stdout);
  assert.deepEqual([error.code, error.offset], ['STREAM_INCOMPLETE', 100_000]);
  // What was there is still there.
  assert.ok(fs.readFileSync(out).equals(saved));
});

test('a disk that is full: status 1, and the source keeps its guest', {
  skip: !fs.existsSync('/dev/full'),
}, async () => {
  const running = new RunningCommand(['receive', 'tcp:127.0.0.1:0', '/dev/full', '--json']);
  const socket = net.connect(Number(/\d+$/.exec(await running.listening())?.[0]), '127.0.0.1').on('error', () => {});
  const answer = answers(socket);
  await writeAll(socket, [migration(true).sent]);
  assert.ok((await answer).endsWith(SHUT_1));
  const { status, stdout } = await running.ended;
  assert.deepEqual([status, JSON.parse(stdout).error.code], [1, 'NO_SPACE']);
});

// Less than four bytes are no beginning of a migration: accept-one.test.ts.
for (const cut of [5, 1000, 1_000_000, 'inside the description'] as const) {
  test(`the source leaves after ${cut} bytes: status 1, no file, and what was there stays`, async () => {
    const { sent } = migration(true);
    const { running, folder, out, connect } = await receive('--json');
    fs.writeFileSync(out, 'precious');
    const socket = await connect();
    const answer = answers(socket);
    await writeAll(socket, [sent.subarray(0, typeof cut === 'number' ? cut : sent.length - 20)]);
    socket.end();
    const said = await answer;
    assert.ok(!said.includes(SHUT_0), said);
    const { status, stdout } = await running.ended;
    assert.equal(status, 1);
    const { error } = JSON.parse(stdout);
    assert.equal(error.code, 'PEER_CLOSED');
    assert.match(error.message, /at byte \d+/);
    assert.equal(fs.readFileSync(out, 'utf8'), 'precious');
    assert.deepEqual(fs.readdirSync(folder), ['out.mig']);
  });
}

test('the source is gone when it should be told: its guest runs on there, and nobody claims success', async () => {
  const { sent, saved } = migration(true);
  const { running, out, connect } = await receive('--json');
  const socket = await connect();
  await writeAll(socket, [sent.subarray(0, -1)]);
  await delay(50);
  socket.write(sent.subarray(-1));
  socket.destroySoon();
  const { status, stdout } = await running.ended;
  assert.equal(status, 1);
  // It depends on when the end is noticed: while the file is finished, or once it has its name.
  const { code } = JSON.parse(stdout).error;
  assert.ok(
    fs.existsSync(out) ? code === 'SOURCE_NOT_TOLD' && fs.readFileSync(out).equals(saved) : code === 'PEER_CLOSED',
  );
});

for (const stage of ['before anybody connected', 'in the middle'] as const) {
  test(`Ctrl-C ${stage}: status 1, no file, the source hears SHUT 1`, { timeout: HANG_MS }, async () => {
    const { sent } = migration(true);
    const { running, folder, connect } = await receive('--json');
    let answer: Promise<string> | undefined;
    if (stage === 'in the middle') {
      const socket = await connect();
      answer = answers(socket, (soFar) => {
        if (soFar === SWITCHOVER_ACK + PONG_1) {
          running.child.kill('SIGINT');
        }
      });
      await writeAll(socket, [sent.subarray(0, 100_000)]);
    } else {
      running.child.kill('SIGINT');
    }
    const { status, stdout } = await running.ended;
    assert.equal(status, 1);
    assert.equal(JSON.parse(stdout).error.code, 'CANCELLED');
    assert.equal(await answer, answer && SWITCHOVER_ACK + PONG_1 + SHUT_1);
    assert.deepEqual(fs.readdirSync(folder), []);
  });
}

test('wrong usage is found before anything is listened on', async () => {
  const out = path.join(base, 'usage.mig');
  for (const [args, code] of [
    [['ftp:x', out], 'INVALID_URI'],
    [['tcp:127.0.0.1:0', base], 'IS_DIRECTORY'],
    [['tcp:127.0.0.1:0', out, '--to', 'raw'], 'INVALID_VALUE'],
    [['tcp:127.0.0.1:0'], 'MISSING_OPERAND'],
  ] as const) {
    const { status, stdout } = await new RunningCommand(['receive', ...args, '--json']).ended;
    assert.deepEqual([status, JSON.parse(stdout).error.code], [2, code]);
  }
  assert.equal(fs.existsSync(out), false);
});

// Killed at any moment: the name holds nothing or everything, and everything if the source was told so.
for (const format of ['stream', 'mapped-ram']) {
  test(`kill -9 at random moments, --to ${format}`, async (t) => {
    const rounds = isSlow ? 300 : 24;
    const { sent } = migration(true);
    const whole = await receive('--quiet', '--no-digest', '--to', format);
    const saving = await whole.connect();
    saving.on('end', () => saving.end()).resume();
    await writeAll(saving, [sent]);
    await whole.running.ended;
    const saved = fs.readFileSync(whole.out);
    const outcomes = { whole: 0, nothing: 0, told: 0 };
    const round = async (number: number, commitMs = (number / rounds) * 15): Promise<void> => {
      const { running, folder, out, connect } = await receive('--quiet', '--no-digest', '--to', format);
      const before = number % 2 === 0 ? 'precious' : undefined;
      if (before !== undefined) {
        fs.writeFileSync(out, before);
      }
      const socket = await connect();
      const answer = answers(socket);
      // Half of them while it receives, the others around the commit.
      const kill = (milliseconds: number): void => {
        void delay(milliseconds).then(() => running.child.kill('SIGKILL'));
      };
      if (number % 4 < 2) {
        kill((number / rounds) * 40);
      }
      await writeAll(
        socket,
        (async function* () {
          for (let at = 0; at < sent.length; at += 65_536) {
            yield sent.subarray(at, at + 65_536);
            await delay(1);
          }
        })(),
      );
      if (number % 4 >= 2) {
        kill(commitMs);
      }
      await running.ended;
      socket.destroy();
      const wasTold = (await answer).endsWith(SHUT_0);
      const content = fs.existsSync(out) ? fs.readFileSync(out) : undefined;
      const isWhole = content?.equals(saved) === true;
      assert.ok(isWhole || content?.toString('latin1') === before, `${content?.length} bytes`);
      assert.ok(isWhole || !wasTold, 'the source was told, and there is no file');
      const left = fs.readdirSync(folder).filter((name) => name !== 'out.mig' && name !== 'socket');
      assert.ok(
        left.every((name) => name.startsWith('out.mig.ramferry-partial-')),
        left.join(),
      );
      outcomes[isWhole ? 'whole' : 'nothing'] += 1;
      outcomes.told += wasTold ? 1 : 0;
    };
    for (let number = 0; number < rounds; number += 2) {
      await Promise.all([round(number), round(number + 1)]);
    }
    // How long a commit takes depends on the disk and on who else uses it: later and later until one was through.
    for (let commitMs = 30; outcomes.whole === 0 && commitMs < 10_000; commitMs *= 2) {
      await round(rounds - 1, commitMs);
    }
    t.diagnostic(JSON.stringify(outcomes));
    assert.ok(outcomes.nothing > 0 && outcomes.whole > 0);
  });
}

/** Device state may take 1 MiB here; see --help. */
const RESIDENT_LIMIT = 100 * MIB + 3 * MIB;

// All of them go into the engine in one process (src/destination); here it is about the process: its memory, its end.
const isQuickOne = (index: number): boolean => !('code' in maliciousSources[index]!.outcome) || index % 5 === 0;

for (const { name, outcome, chunks } of maliciousSources.filter((_, index) => isSlow || isQuickOne(index))) {
  test(`hostile source: ${name}`, { timeout: HANG_MS }, async () => {
    const { running, folder, connect } = await receive('--json', '--device-state-limit', '1M');
    const socket = await connect();
    // It reads no answer: a destination that writes without end would fill up.
    socket.pause();
    const writing = writeAll(socket, chunks());
    let peak = 0;
    const watch = setInterval(() => {
      peak = Math.max(peak, running.peakResidentBytes());
    }, 20);
    if ('endless' in outcome || 'silent' in outcome) {
      await delay(500);
      peak = running.peakResidentBytes();
      assert.equal(running.child.exitCode, null, 'it goes on');
      running.child.kill('SIGINT');
    } else if ('loads' in outcome) {
      await writing;
      // Now it listens, and closes once it was told.
      void answers(socket, (soFar) => soFar.endsWith(SHUT_0) && socket.end());
      socket.resume();
    }
    const { status, stdout } = await running.ended;
    clearInterval(watch);
    socket.destroy();
    await writing;
    const { error } = JSON.parse(stdout);
    if ('code' in outcome) {
      assert.deepEqual([status, error.code], [3, outcome.code]);
      assert.match(error.message, new RegExp(`byte ${error.offset}\\b`));
    } else {
      assert.deepEqual([status, error?.code], 'loads' in outcome ? [0, undefined] : [1, 'CANCELLED']);
    }
    assert.ok(peak < RESIDENT_LIMIT, `${(peak / MIB).toFixed()} MiB resident`);
    assert.deepEqual(fs.readdirSync(folder), 'loads' in outcome ? ['out.mig', 'out.mig.digest'] : []);
  });
}

// CB-25: the source chooses the size of its RAM, and with it the page index.
test('a page behind 2^31, into a mapped-ram file of 8 TiB, nearly all of it holes', { timeout: HANG_MS }, async () => {
  const usedLength = 2 ** 43 + 2 ** 18;
  const { running, out, connect } = await receive('--json', '--to', 'mapped-ram', '--no-digest');
  const records = new ByteWriter();
  normalRecord(records, 2 ** 43, Buffer.alloc(4096, 7), 'pc.ram');
  const ended = [ramBodyEnd(1), ramPart(ElementType.SECTION_END, 1), ramBodyEnd(1), streamEnd('')];
  const ram = ramStart(1, [{ name: 'pc.ram', usedLength }]);
  const socket = await connect();
  await writeAll(socket, [
    streamHeader(testConfiguration()),
    ram,
    ramPart(ElementType.SECTION_PART, 1),
    records.copy(),
    ...ended,
  ]);
  socket.end();
  const { status, stderr } = await running.ended;
  assert.equal(status, 0, stderr);
  const { size, blocks } = fs.statSync(out);
  assert.ok(size > usedLength && blocks * 512 < MIB, `${blocks} blocks of 512 bytes`);
  const inspected = await new RunningCommand(['inspect', out, '--json']).ended;
  const [block] = JSON.parse(inspected.stdout).blocks;
  assert.deepEqual([block.usedLength, block.presentPages], [usedLength, 1]);
});

// What docs/hostile-input.md promises of the digest, measured: with half of a page's size for each it would be 120 MiB.
test('thirty thousand pages, each in another MiB, in the memory that is promised', { timeout: 60_000 }, async () => {
  const count = 30_000;
  const { running, connect } = await receive('--json');
  const socket = await connect();
  function* chunks(): Generator<Uint8Array> {
    yield streamHeader(testConfiguration());
    yield ramStart(1, [{ name: 'pc.ram', usedLength: 2 ** 42 }]);
    yield ramPart(ElementType.SECTION_PART, 1);
    const page = Buffer.alloc(4096, 9);
    for (let first = 0; first < count; first += 100) {
      const records = new ByteWriter();
      for (let index = first; index < first + 100; index += 1) {
        normalRecord(records, index * MIB, page, 'pc.ram');
      }
      yield records.copy();
    }
    yield Buffer.concat([ramBodyEnd(1), ramPart(ElementType.SECTION_END, 1), ramBodyEnd(1), streamEnd('')]);
  }
  let peak = 0;
  const watch = setInterval(() => {
    peak = Math.max(peak, running.peakResidentBytes());
  }, 20);
  await writeAll(socket, chunks());
  socket.end();
  const { status, stderr } = await running.ended;
  clearInterval(watch);
  assert.equal(status, 0, stderr);
  assert.ok(peak > 0 && peak < RESIDENT_LIMIT, `${(peak / MIB).toFixed()} MiB resident`);
});
