// A stream whose source switches to postcopy, taken whole into a file; and what becomes of the source when that fails.

import assert from 'node:assert/strict';
import { mock, test } from 'node:test';
import { inPieces, ScriptedChannel } from '../../test/scripted-channel.js';
import { patternPage, StreamBuilder, testDevice } from '../../test/streams.js';
import { ByteWriter } from '../format/byte-writer.js';
import { RamDigest } from '../format/ram-digest.js';
import { Command, ElementType } from '../format/stream/constants.js';
import { buildDeviceTail } from '../format/stream/device-tail.js';
import { postcopyAdvise, postcopyPackage } from '../format/stream/postcopy-commands.js';
import { command, ping } from '../format/stream/write.js';
import { RamferryError } from '../memory/errors.js';
import { FileTarget } from './file-target.js';
import { MigrationDestination, type MigrationDestinationOptions } from './migration-destination.js';

const PAGE = 4096;
const BLOCKS = [{ name: 'pc.ram', usedLength: 1000 * PAGE }];
const open = command(Command.OPEN_RETURN_PATH);
const discard = command(
  Command.POSTCOPY_RAM_DISCARD,
  new ByteWriter().u8(0).str8('pc.ram').u8(0).be64(PAGE).be64(PAGE).copy(),
);
const SHUT_0 = '0001000400000000';
const SHUT_1 = '0001000400000001';
/** The answer to the package's own PING. */
const LOADED = '0002000400000003';

const devices = [
  { name: 'timer', instance: 0, version: 2, body: new Uint8Array(24) },
  // Larger than a buffer of the target.
  { name: 'cpu', instance: 0, version: 4, body: new Uint8Array(3 * 2 ** 20).fill(7) },
];
const { sections } = buildDeviceTail(devices);

const page = (index: number, seed: number) =>
  ({ block: 'pc.ram', page: index, kind: 'normal', content: patternPage(seed) }) as const;

/** Up to the package, with it, and to the end of RAM. */
const postcopy = (more: StreamBuilder): Uint8Array =>
  more
    .part([page(1, 1), page(2, 2)])
    .raw(discard)
    .raw(ping(2))
    .raw(postcopyPackage(sections))
    .part([page(1, 11)])
    .end([page(5, 5)])
    .raw(Uint8Array.of(ElementType.EOF)).bytes;

const advised = (): StreamBuilder =>
  new StreamBuilder().header().raw(open).raw(postcopyAdvise(BLOCKS, PAGE)).ramStart(BLOCKS);

const record = (
  channel: ScriptedChannel,
  options: Partial<MigrationDestinationOptions> = {},
): { destination: MigrationDestination; chunks: Buffer[]; target: FileTarget } => {
  const chunks: Buffer[] = [];
  const write = (bytes: Uint8Array, done: (error: Error | undefined) => void): void => {
    chunks.push(Buffer.from(bytes));
    setImmediate(done, undefined);
  };
  const target = new FileTarget({ write }, { digests: true });
  return { destination: new MigrationDestination({ channel, target, postcopy: 'whole', ...options }), chunks, target };
};

const codeOf = ({ error }: MigrationDestination): string | undefined =>
  error instanceof RamferryError ? error.code : error?.message;

test('the file is that of a precopy: no command, the devices behind RAM, however the bytes arrive', async () => {
  const bytes = postcopy(advised());
  const expected = Buffer.concat([
    new StreamBuilder()
      .header()
      .ramStart(BLOCKS)
      .part([page(1, 1), page(2, 2)])
      .part([page(1, 11)])
      .end([page(5, 5)]).bytes,
    sections,
    Uint8Array.of(ElementType.EOF),
  ]);
  for (const sizes of [[997, 66_000], [bytes.length], [1_000_000]]) {
    const channel = new ScriptedChannel().send(inPieces(bytes, ...sizes));
    const { destination, chunks, target } = record(channel);
    assert.equal((await destination.run()).status, 'completed');
    assert.ok(Buffer.concat(chunks).equals(expected));
    const digest = new RamDigest(BLOCKS);
    digest.set(0, PAGE, patternPage(11));
    digest.set(0, 2 * PAGE, patternPage(2));
    digest.set(0, 5 * PAGE, patternPage(5));
    assert.deepEqual(target.digest!.blocks(), digest.blocks());
    // QEMU 11 sends its pages only when the devices are said to be loaded.
    assert.ok(channel.answer.indexOf(LOADED) > 0);
    assert.ok(channel.answer.endsWith(SHUT_0));
  }
});

test('a source that announces dirty bitmaps, which may switch too, and one that does not switch', async () => {
  const empty = new StreamBuilder().header().raw(open).raw(command(Command.POSTCOPY_ADVISE)).ramStart(BLOCKS);
  const bitmaps = empty
    .end([page(1, 1)])
    .raw(postcopyPackage(sections))
    .raw(Uint8Array.of(ElementType.EOF)).bytes;
  const stays = advised()
    .end([page(1, 1)])
    .devices([testDevice('cpu', 500)]).bytes;
  for (const bytes of [bitmaps, stays]) {
    assert.equal((await record(new ScriptedChannel().send([bytes])).destination.run()).status, 'completed');
  }
});

const turns = async (count = 20): Promise<void> => {
  for (let turn = 0; turn < count; turn += 1) {
    await new Promise((resolve) => setImmediate(resolve));
  }
};

test('a failure after the switch: the source sends all it has, is told then, and closes', async () => {
  const bytes = postcopy(advised());
  const packageAt = Buffer.from(bytes).indexOf(
    Buffer.from(command(Command.PACKAGED, new Uint8Array(4)).subarray(0, 5)),
  );
  const failures: readonly [string, number, Partial<MigrationDestinationOptions>][] = [
    // Too large, and so never read; the switch is known before.
    ['DEVICE_STATE_TOO_LARGE', packageAt + 1000, { deviceTailLimit: 1000 }],
    ['CANCELLED', packageAt + 1000, {}],
  ];
  for (const [code, cut, options] of failures) {
    mock.timers.enable({ apis: ['setTimeout'] });
    try {
      const stop = new AbortController();
      const channel = new ScriptedChannel().send([bytes.subarray(0, cut)]);
      const { destination } = record(channel, { signal: stop.signal, ...options });
      const ended = destination.run();
      await turns();
      stop.abort();
      assert.equal((await ended).status, code === 'CANCELLED' ? 'cancelled' : 'failed');
      assert.equal(codeOf(destination), code);
      assert.equal(destination.switchedSource, 'sends-on');
      for (let count = 0; count < 10; count += 1) {
        mock.timers.tick(1500);
        channel.send(inPieces(bytes.subarray(cut), 10_000));
        await turns();
        assert.ok(!channel.isDestroyed && !channel.answer.includes(SHUT_1));
      }
      mock.timers.tick(2001);
      await turns();
      assert.ok(channel.answer.endsWith(SHUT_1));
      assert.equal(channel.isDestroyed, false);
      channel.sendAndEnd([]);
      await turns();
      assert.ok(channel.isDestroyed);
    } finally {
      mock.timers.reset();
    }
  }
});

test('a failure after the last page is told at once; a source that does not close is left', async () => {
  mock.timers.enable({ apis: ['setTimeout'] });
  try {
    const channel = new ScriptedChannel().send([postcopy(advised())]);
    const { destination } = record(channel, { commit: () => Promise.reject(new Error('full')) });
    assert.equal((await destination.run()).status, 'failed');
    await turns();
    assert.ok(channel.answer.endsWith(SHUT_1));
    assert.equal(channel.isDestroyed, false);
    mock.timers.tick(10_001);
    assert.ok(channel.isDestroyed);
  } finally {
    mock.timers.reset();
  }
});

test('a source that leaves after the switch is not waited for, and nothing is said of where its guest runs', async () => {
  const bytes = postcopy(advised());
  for (const end of ['sendAndEnd', 'sendAndBreak'] as const) {
    const channel = new ScriptedChannel()[end]([bytes.subarray(0, -5000)], new Error('reset'));
    const { destination } = record(channel);
    assert.equal((await destination.run()).status, 'failed');
    assert.equal(destination.switchedSource, 'gone');
    assert.equal((destination.error as RamferryError).hint, undefined);
    await turns();
    assert.ok(channel.isDestroyed);
  }
});

test('a source that leaves when all has come and it was not told: what is here is kept', async () => {
  for (const end of ['sendAndEnd', 'sendAndBreak'] as const) {
    const channel = new ScriptedChannel()[end]([postcopy(advised())], new Error('reset'));
    let isCommitted = false;
    const { destination } = record(channel, {
      commit: async () => {
        await turns();
        isCommitted = true;
      },
    });
    assert.equal((await destination.run()).status, 'failed');
    assert.ok(isCommitted && destination.mayBeTold);
    assert.equal(codeOf(destination), end === 'sendAndEnd' ? 'PEER_CLOSED' : 'reset');
    assert.equal(destination.switchedSource, 'gone');
    await turns();
    assert.ok(channel.isDestroyed && !channel.answer.includes(SHUT_0));
  }
});

test('a failure between the announcement and the switch: the source is told at once, and closes first', async () => {
  mock.timers.enable({ apis: ['setTimeout'] });
  try {
    const bytes = postcopy(advised());
    const stop = new AbortController();
    const channel = new ScriptedChannel().send([bytes.subarray(0, 5000)]);
    const { destination } = record(channel, { signal: stop.signal });
    const ended = destination.run();
    await turns();
    stop.abort();
    assert.equal((await ended).status, 'cancelled');
    await turns();
    assert.ok(channel.answer.endsWith(SHUT_1));
    // It switches meanwhile: a connection that closes now is one that breaks.
    channel.send([bytes.subarray(5000)]);
    mock.timers.tick(9000);
    await turns();
    assert.ok(!channel.isDestroyed && !channel.isPaused);
    channel.sendAndEnd([]);
    await turns();
    assert.ok(channel.isDestroyed);
  } finally {
    mock.timers.reset();
  }
});

test('a source that sends for ever after a failure is left', async () => {
  const channel = new ScriptedChannel().send([postcopy(advised()).subarray(0, -5000)]);
  const stop = new AbortController();
  const { destination } = record(channel, { signal: stop.signal });
  const ended = destination.run();
  await turns();
  stop.abort();
  await ended;
  assert.equal(destination.switchedSource, 'sends-on');
  const chunk = new Uint8Array(2 ** 20);
  channel.send(
    (function* () {
      for (;;) {
        yield chunk;
      }
    })(),
  );
  await channel.closed;
  assert.ok(channel.isDestroyed);
  assert.equal(destination.switchedSource, 'gone');
});

test('pages that were discarded come again, or the stream is refused', async () => {
  const bytes = advised()
    .part([page(1, 1)])
    .raw(discard)
    .end([page(5, 5)])
    .devices([testDevice('cpu', 500)]).bytes;
  const { destination } = record(new ScriptedChannel().sendAndEnd([bytes]));
  assert.equal((await destination.run()).status, 'failed');
  assert.equal(codeOf(destination), 'POSTCOPY_ORDER');
});

test('the section of dirty bitmaps that holds none is not saved; one that holds some is refused', async () => {
  const bitmaps = (flags: number): Uint8Array => {
    const id = 77;
    const out = new ByteWriter().u8(ElementType.SECTION_START).be32(id).str8('dirty-bitmap').be32(0).be32(1).u8(flags);
    return out.u8(0x7e).be32(id).copy();
  };
  const stream = (flags?: number): Uint8Array =>
    new StreamBuilder()
      .header()
      .ramStart(BLOCKS)
      .raw(flags === undefined ? new Uint8Array() : bitmaps(flags))
      .end([page(1, 1)])
      .devices([testDevice('cpu', 500)]).bytes;
  const { destination, chunks } = record(new ScriptedChannel().send(inPieces(stream(1), 7)));
  assert.equal((await destination.run()).status, 'completed');
  assert.ok(Buffer.concat(chunks).equals(stream()));
  const refused = record(new ScriptedChannel().send([stream(8)])).destination;
  await refused.run();
  assert.equal(codeOf(refused), 'UNKNOWN_ITERABLE');
});
