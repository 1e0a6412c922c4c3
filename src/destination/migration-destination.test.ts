// The engine: how a migration begins, is answered, and ends, well or badly.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { maliciousSources } from '../../test/malicious/sources.js';
import { inPieces, ScriptedChannel } from '../../test/scripted-channel.js';
import { patternPage, richStream, StreamBuilder, testDevice } from '../../test/streams.js';
import { ByteWriter } from '../format/byte-writer.js';
import { Command } from '../format/stream/constants.js';
import { command, ping } from '../format/stream/write.js';
import { RamferryError } from '../memory/errors.js';
import { RamBlockList } from '../memory/ram-block-list.js';
import { FileTarget } from './file-target.js';
import { MemoryTarget } from './memory-target.js';
import { MigrationDestination, type MigrationDestinationOptions } from './migration-destination.js';
import type { IncomingReport } from './statistics.js';
import type { MigrationTarget } from './target.js';

const PAGE = 4096;
const open = command(Command.OPEN_RETURN_PATH);
const PONG = '00020004';
/** The switchover is agreed to: the machine type of these streams is of a QEMU that knows the message. */
const ACK = '00070000';
const SHUT_0 = '0001000400000000';
const SHUT_1 = '0001000400000001';

const memoryTarget = (): MemoryTarget =>
  new MemoryTarget({ blocks: RamBlockList.create({ segmentBytes: 64 * PAGE }), memoryLimit: 2 ** 24 });

const fileTarget = (): FileTarget => new FileTarget({ write: (_bytes, done) => setImmediate(done, undefined) });

const start = (
  channel: ScriptedChannel,
  options: Partial<MigrationDestinationOptions> = {},
): { destination: MigrationDestination; ended: Promise<IncomingReport> } => {
  const destination = new MigrationDestination({ channel, target: memoryTarget(), ...options });
  return { destination, ended: destination.run() };
};

/** A small migration, with a return path if there are PINGs. */
const stream = (...pings: number[]): Uint8Array => {
  const builder = new StreamBuilder().header();
  if (pings.length > 0) {
    builder.raw(open);
  }
  for (const value of pings) {
    builder.raw(ping(value));
  }
  return builder
    .ramStart([{ name: 'pc.ram', usedLength: 4 * PAGE }])
    .end([{ block: 'pc.ram', page: 1, kind: 'normal', content: patternPage(1) }])
    .devices([testDevice('cpu', 500)]).bytes;
};

const turns = async (count = 10): Promise<void> => {
  for (let turn = 0; turn < count; turn += 1) {
    await new Promise((resolve) => setImmediate(resolve));
  }
};

const codeOf = ({ error }: MigrationDestination): string | undefined =>
  error instanceof RamferryError ? error.code : error?.message;

test('the source opens a return path: PONGs in order, SHUT 0 only after the commit', async () => {
  const channel = new ScriptedChannel().send([stream(1, 0xdeadbeef)]);
  let answerBefore: string | undefined;
  const { ended } = start(channel, {
    commit: async ({ configuration, ram, summary }) => {
      await turns();
      answerBefore = channel.answer;
      assert.equal(configuration.machine, 'pc-i440fx-10.0');
      assert.equal(ram.blocks.length, 1);
      assert.deepEqual(
        summary.devices.map(({ name, bytes }) => [name, bytes]),
        [['cpu', 500]],
      );
    },
  });
  const report = await ended;
  assert.equal(answerBefore, `${ACK}${PONG}00000001${PONG}deadbeef`);
  assert.equal(channel.answer, answerBefore + SHUT_0);
  assert.deepEqual([report.status, report.ramferry.pings, report.ramferry.returnPath], ['completed', 2, true]);
  // It reads until the source closes, and so does not drop the answer on its way.
  assert.ok(channel.hasEnded && !channel.isDestroyed);
});

test('without a return path nothing is written, and the end is recognised before the source closes', async () => {
  for (const send of ['send', 'sendAndEnd'] as const) {
    const channel = new ScriptedChannel()[send]([stream()]);
    const report = await start(channel).ended;
    assert.equal(report.status, 'completed');
    assert.equal(report.ramferry.returnPath, false);
    assert.deepEqual(channel.written, []);
  }
});

test('the status goes its way, and a migration runs once', async () => {
  const seen: string[] = [];
  const channel = new ScriptedChannel().send([stream()]);
  const { destination, ended } = start(channel, { onStatus: (status) => seen.push(status) });
  await assert.rejects(destination.run(), { code: 'MIGRATION_IN_PROGRESS' });
  await ended;
  assert.deepEqual(seen, ['setup', 'active', 'device', 'completed']);
});

test('a background snapshot, whose RAM has no end, completes', async () => {
  const { bytes } = new StreamBuilder()
    .header()
    .ramStart([{ name: 'pc.ram', usedLength: PAGE }])
    .part([{ block: 'pc.ram', page: 0, kind: 'zero' }])
    .devices([testDevice('cpu', 500)]);
  const report = await start(new ScriptedChannel().sendAndEnd([bytes])).ended;
  assert.equal(report.status, 'completed');
  const { setupMs, ramMs, deviceMs, commitMs } = report.ramferry.phases;
  assert.ok([setupMs, ramMs, deviceMs, commitMs].every((time) => time >= 0));
  assert.ok(Math.abs(setupMs + ramMs + deviceMs + commitMs - report['total-time']) <= 1);
});

test('bytes after the end are a warning, in the same read or later', async () => {
  const channel = new ScriptedChannel().send([Buffer.concat([stream(), Buffer.alloc(3)]), Buffer.alloc(4)]);
  const report = await start(channel, { commit: () => turns() }).ended;
  assert.equal(report.status, 'completed');
  const length = stream().length;
  assert.deepEqual(report.ramferry.warnings, [
    `The source sent 7 bytes after the end of its stream, at byte ${length}.`,
  ]);
  assert.equal(report.ram.transferred, length);
});

test('the commit fails: the source is told, so that its guest runs on', async () => {
  const channel = new ScriptedChannel().send([stream(1)]);
  const commitError = new Error('disk full');
  const { destination, ended } = start(channel, {
    commit: async () => {
      throw commitError;
    },
  });
  assert.equal((await ended).status, 'failed');
  assert.equal(destination.error, commitError);
  await turns();
  assert.equal(channel.answer, `${ACK}${PONG}00000001${SHUT_1}`);
  assert.ok(channel.isDestroyed);
});

test('an error in the stream: SHUT 1 with a return path, just the end of the connection without', async () => {
  for (const pings of [[], [1]]) {
    const bytes = stream(...pings);
    const channel = new ScriptedChannel().send([bytes.subarray(0, bytes.length - 700), Buffer.alloc(100, 0x55)]);
    const { destination, ended } = start(channel, { commit: () => assert.fail('committed') });
    assert.equal((await ended).status, 'failed');
    assert.ok(destination.error instanceof RamferryError && destination.error.file === 'test:source');
    await turns();
    assert.equal(channel.answer, pings.length > 0 ? `${ACK}${PONG}00000001${SHUT_1}` : '');
    assert.ok(channel.isDestroyed);
  }
});

test('a refusal of the machine ends it before anything is loaded', async () => {
  const target = memoryTarget();
  target.ramSetup = () => assert.fail('loaded');
  const refusal = new RamferryError('invalid', 'MACHINE', 'Another machine.');
  const { destination, ended } = start(new ScriptedChannel().send([stream()]), {
    target,
    accept: () => {
      throw refusal;
    },
  });
  await ended;
  assert.equal(codeOf(destination), 'MACHINE');
});

test('a source that goes at any byte before the end fails the migration', async () => {
  const bytes = stream();
  const description = Buffer.from(bytes).indexOf('{"page_size"');
  for (let cut = 0; cut < bytes.length; cut += cut < 120 || cut > description - 20 ? 1 : 97) {
    const { destination, ended } = start(new ScriptedChannel().sendAndEnd([bytes.subarray(0, cut)]), {
      commit: () => assert.fail('committed'),
    });
    // Behind EOF a description may be missing altogether, as machine types exist that write none.
    if (cut === description - 5) {
      continue;
    }
    assert.equal((await ended).status, 'failed', `cut at ${cut} of ${bytes.length}`);
    assert.match(codeOf(destination) ?? '', /^STREAM_INCOMPLETE$|^DEVICE_END$/);
  }
});

test('a connection that breaks fails the migration until nothing depends on it', async () => {
  const broken = new Error('connection reset');
  const bytes = stream();
  const early = start(new ScriptedChannel().sendAndBreak([bytes.subarray(0, 200)], broken));
  await early.ended;
  assert.equal(early.destination.error, broken);
  const late = await start(new ScriptedChannel().sendAndBreak([bytes], broken), { commit: () => turns() }).ended;
  assert.equal(late.status, 'completed');
  const unconfirmed = start(new ScriptedChannel().sendAndBreak([stream(1)], broken), { commit: () => turns() });
  await unconfirmed.ended;
  assert.equal(unconfirmed.destination.error, broken);
});

test('a source with a return path that goes before it has its answer has failed: its guest runs there', async () => {
  for (const isDuringCommit of [false, true]) {
    const channel = new ScriptedChannel()[isDuringCommit ? 'send' : 'sendAndEnd']([stream(1)]);
    const { destination, ended } = start(channel, {
      commit: async () => {
        assert.ok(isDuringCommit);
        channel.sendAndEnd([]);
        await turns();
      },
    });
    assert.equal((await ended).status, 'failed');
    assert.equal(codeOf(destination), 'PEER_CLOSED');
    await turns();
    assert.ok(!channel.answer.includes(SHUT_0));
  }
});

test('who needs a return path refuses a source without one before it loads anything', async () => {
  const without = start(new ScriptedChannel().send([stream()]), { needsReturnPath: true });
  assert.equal((await without.ended).status, 'failed');
  assert.deepEqual([codeOf(without.destination), without.destination.report().ram.total], ['NO_RETURN_PATH', 0]);
  assert.equal(
    (await start(new ScriptedChannel().send([stream(1)]), { needsReturnPath: true }).ended).status,
    'completed',
  );
});

// What a relay rests on: the guest is another's only when its source has closed in order.
test('a source that may switch to postcopy is refused while its guest runs, and what a file says of it is not', async () => {
  const advise = command(Command.POSTCOPY_ADVISE, new ByteWriter().be64(PAGE).be64(PAGE).copy());
  const live = new StreamBuilder().header().raw(open).raw(ping(1)).raw(advise).bytes;
  const channel = new ScriptedChannel().send([live]);
  let isAsked = false;
  const { destination, ended } = start(channel, {
    target: Object.assign(memoryTarget(), { ramSetup: () => (isAsked = true) }),
  });
  await turns();
  // No page, no device, no more of the stream is needed to say so.
  assert.equal(codeOf(destination), 'POSTCOPY_ANNOUNCED');
  assert.equal((await ended).status, 'failed');
  assert.equal(channel.answer, `${ACK}${PONG}00000001${SHUT_1}`);
  assert.equal(isAsked, false);

  const saved = new StreamBuilder()
    .header()
    .raw(advise)
    .ramStart([{ name: 'pc.ram', usedLength: 4 * PAGE }])
    .end()
    .devices([testDevice('cpu', 500)]).bytes;
  assert.equal((await start(new ScriptedChannel().send([saved])).ended).status, 'completed');
});

test('a source that was told has left when it closes, and not when the link breaks or nothing comes of it', async () => {
  class Lingering extends ScriptedChannel {
    override async end(): Promise<void> {
      this.hasEnded = true;
    }
  }
  const leaves: readonly [(channel: ScriptedChannel) => void, boolean][] = [
    [(channel) => channel.sendAndEnd([]), true],
    [
      (channel) => {
        channel.sendAndBreak([], new Error('connection reset'));
        setImmediate(() => channel.destroy());
      },
      false,
    ],
    [() => {}, false],
  ];
  for (const [leave, hasLeft] of leaves) {
    const channel = new Lingering().send([stream(1)]);
    const { destination, ended } = start(channel, { lingerMs: 300 });
    assert.equal((await ended).status, 'completed');
    leave(channel);
    assert.equal(await destination.sourceLeft(), hasLeft);
  }
});

test('a migration that fails over its last word may have been told of, and one that fails before may not', async () => {
  const channel = new ScriptedChannel().send([stream(1)]);
  const late = start(channel, {
    // What is under way is called lost then, wherever it is.
    commit: async () => void process.nextTick(() => channel.destroy()),
  });
  assert.equal((await late.ended).status, 'failed');
  const early = start(new ScriptedChannel().send([stream(1)]), {
    commit: () => Promise.reject(new Error('disk full')),
  });
  assert.equal((await early.ended).status, 'failed');
  assert.deepEqual([late.destination.mayBeTold, early.destination.mayBeTold], [true, false]);
});

test('a cancel ends it so that the source runs on: before, while pages come, while the last bytes are written', async () => {
  const aborted = AbortSignal.abort();
  const before = start(new ScriptedChannel().send([stream()]), { signal: aborted });
  assert.equal((await before.ended).status, 'cancelled');

  for (const isComplete of [false, true]) {
    const bytes = stream(1);
    const channel = new ScriptedChannel().send([isComplete ? bytes : bytes.subarray(0, 300)]);
    const controller = new AbortController();
    const target: MigrationTarget = new FileTarget({ write: () => {} });
    const running = start(channel, { signal: controller.signal, target, commit: () => assert.fail('committed') });
    await turns();
    controller.abort();
    assert.equal((await running.ended).status, 'cancelled');
    assert.equal(codeOf(running.destination), 'CANCELLED');
    await turns();
    assert.equal(channel.answer, `${ACK}${PONG}00000001${SHUT_1}`);
    assert.ok(channel.isDestroyed);
  }
});

test('a cancel during the commit comes too late', async () => {
  const controller = new AbortController();
  const channel = new ScriptedChannel().send([stream(1)]);
  const { ended } = start(channel, {
    signal: controller.signal,
    commit: async () => {
      controller.abort();
      await turns();
    },
  });
  assert.equal((await ended).status, 'completed');
  assert.ok(channel.answer.endsWith(SHUT_0));
});

test('PL-5: the first error is the one reported', async () => {
  const controller = new AbortController();
  const { destination, ended } = start(new ScriptedChannel().send([Buffer.from('GET / HTTP/1.1')]), {
    signal: controller.signal,
    onStatus: (status) => {
      if (status === 'failed') {
        controller.abort();
      }
    },
  });
  assert.equal((await ended).status, 'failed');
  assert.equal(codeOf(destination), 'NOT_A_STREAM');
});

test('a source that asks and does not listen is not read any more, and goes on when it listens', async () => {
  const pings = new Array(40_000).fill(5);
  const channel = new ScriptedChannel().send(inPieces(stream(...pings), 65_536));
  channel.holdWrites = true;
  const { destination, ended } = start(channel);
  await turns(100);
  assert.ok(channel.isPaused);
  const { transferred } = destination.report().ram;
  await turns(100);
  assert.equal(destination.report().ram.transferred, transferred);
  assert.ok(transferred < 300_000);
  channel.holdWrites = false;
  assert.equal((await ended).status, 'completed');
  assert.equal(channel.answer, ACK + `${PONG}00000005`.repeat(40_000) + SHUT_0);
});

test('progress comes at most every 100 ms', async (context) => {
  let now = 1000;
  context.mock.method(performance, 'now', () => now);
  const at: number[] = [];
  const slowly = function* (): Generator<Uint8Array> {
    const { bytes } = richStream();
    for (const piece of inPieces(bytes, Math.ceil(bytes.length / 350))) {
      now += 1;
      yield piece;
    }
  };
  const { ended } = start(new ScriptedChannel().send(slowly()), {
    onProgress: (report) => {
      assert.ok(report.ram.transferred > 0 && report.ram.mbps > 0);
      at.push(now);
    },
  });
  await ended;
  assert.deepEqual(at, [1100, 1200, 1300]);
});

for (const [kind, target] of [
  ['memory', memoryTarget],
  ['a file', fileTarget],
] as const) {
  for (const source of maliciousSources) {
    test(`into ${kind}: ${source.name}`, async () => {
      const channel = new ScriptedChannel().send(source.chunks());
      const controller = new AbortController();
      const { destination, ended } = start(channel, {
        target: target(),
        signal: controller.signal,
        deviceTailLimit: 2 ** 20,
      });
      if ('endless' in source.outcome || 'silent' in source.outcome) {
        // It goes on until it is told to stop.
        const enough = 'endless' in source.outcome ? 2 ** 20 : 0;
        do {
          await turns();
        } while (destination.report().ram.transferred < enough);
        assert.equal(destination.error, undefined);
        controller.abort();
        assert.equal((await ended).status, 'cancelled');
        return;
      }
      await ended;
      const { code, intoMemory = code } = 'code' in source.outcome ? source.outcome : {};
      assert.equal(codeOf(destination), kind === 'memory' ? intoMemory : code);
    });
  }
}
