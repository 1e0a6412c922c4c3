// Who decides how a migration ends: from the destination's confirmation on, nothing else.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MemoryChannel, RecordingSink, ScriptedGuest } from '../../test/source-kit.js';
import { nextTurn, until } from '../../test/until.js';
import { pong, shut } from '../format/stream/return-path.js';
import { systemClock } from './clock.js';
import { allocateGuestHold, guestOwner } from './guest-hold.js';
import { MigrationSource, type MigrationSourceOptions } from './migration-source.js';
import type { PageSink } from './page-sink.js';
import { defaultParameters } from './parameters.js';
import { StreamSink } from './stream-sink.js';

const engine = (options: Pick<MigrationSourceOptions, 'guest' | 'sink'> & Partial<MigrationSourceOptions>) =>
  new MigrationSource({ parameters: defaultParameters, ...options });

/** A migration whose destination has all bytes, and has not answered yet. */
async function undecided(options: Partial<MigrationSourceOptions> = {}) {
  const guest = new ScriptedGuest([50]);
  const channel = new MemoryChannel();
  const sink = new StreamSink(channel, { returnPath: true });
  const source = engine({ guest, sink, ...options });
  const ended = source.run();
  await until(() => sink.isUndecided);
  return { guest, channel, sink, source, ended };
}

// PL-4
for (const what of ['cancel', 'fail', 'the channel cannot be closed'] as const) {
  test(`after the confirmation, ${what}: completed, and the guest is not resumed`, async () => {
    const { guest, channel, source, ended } = await undecided();
    if (what === 'the channel cannot be closed') {
      channel.end = async () => {
        throw new Error('connection reset');
      };
    }
    channel.answer(shut(0));
    // In the very moment of the confirmation, before the engine's loop has heard of it.
    assert.equal(source.state.value, 'completed');
    if (what === 'cancel') {
      assert.equal(source.cancel(), false);
    } else if (what === 'fail') {
      assert.equal(source.fail(new Error('too late')), false);
    }
    const report = await ended;
    assert.equal(report.status, 'completed');
    assert.equal(report['error-desc'], undefined);
    assert.equal(source.error, undefined);
    assert.deepEqual([guest.running, guest.resumes, guest.left], [false, 0, 'moved']);
    const warnings =
      what === 'the channel cannot be closed' ? [/After the destination had confirmed: connection reset/] : [];
    assert.equal(report.ramferry.warnings.length, warnings.length);
    for (const [index, pattern] of warnings.entries()) {
      assert.match(report.ramferry.warnings[index]!, pattern);
    }
  });
}

for (const how of ['cancel', 'fail'] as const) {
  // The destination may run the guest already when the order comes: its answer is in our socket, or on the line.
  test(`${how} when the destination has everything waits for its answer, which is a confirmation`, async () => {
    const { guest, channel, source, ended } = await undecided();
    assert.equal(how === 'cancel' ? source.cancel() : source.fail(new Error('given up')), true);
    await nextTurn();
    assert.equal(source.state.value, 'device');
    assert.equal(guest.running, false);
    channel.answer(shut(0));
    const report = await ended;
    assert.equal(report.status, 'completed');
    assert.deepEqual([guest.running, guest.resumes], [false, 0]);
    assert.match(report.ramferry.warnings.join(), /given up when the destination had everything, and then/);
  });

  test(`${how} when the destination has everything and then closes: the guest runs on`, async () => {
    const { guest, channel, source, ended } = await undecided();
    assert.equal(how === 'cancel' ? source.cancel() : source.fail(new Error('given up')), true);
    channel.reader!.ended();
    const report = await ended;
    assert.equal(report.status, how === 'cancel' ? 'cancelled' : 'failed');
    assert.equal(report['error-desc'], how === 'cancel' ? 'The migration was cancelled.' : 'given up');
    assert.equal(guest.running, true);
  });

  test(`${how} when the destination has everything and says nothing any more: the guest runs on in the end`, async () => {
    let slept = 0;
    const clock = {
      ...systemClock,
      sleep: async (milliseconds: number) => {
        slept = Math.max(slept, milliseconds);
      },
    };
    const { guest, source, ended } = await undecided({ clock });
    assert.equal(how === 'cancel' ? source.cancel() : source.fail(new Error('given up')), true);
    const report = await ended;
    assert.equal(report.status, how === 'cancel' ? 'cancelled' : 'failed');
    assert.equal(guest.running, true);
    assert.equal(slept, 10_000);
  });
}

test('a guest that did not run is not waited for', async () => {
  const guest = new ScriptedGuest([50]);
  guest.running = false;
  const sink = new StreamSink(new MemoryChannel(), { returnPath: true });
  const source = engine({ guest, sink });
  const ended = source.run();
  await until(() => sink.isUndecided);
  source.cancel();
  assert.equal(source.state.value, 'cancelling');
  assert.equal((await ended).status, 'cancelled');
});

test('a destination that breaks off when it has everything may run the guest, which the error says', async () => {
  const { guest, channel, source, ended } = await undecided();
  channel.reader!.ended();
  assert.equal((await ended).status, 'failed');
  assert.match(source.error!.message, /had everything and closed the return path without confirming/);
  assert.match((source.error as { hint?: string }).hint!, /does not run there/);
  assert.equal(guest.running, true);
});

// A lying destination, or one that confuses two migrations
test('a confirmation at any byte before the end is an error of the peer, and the guest runs on', async () => {
  const whole = await undecided();
  whole.channel.answer(shut(0));
  await whole.ended;
  const { length } = whole.channel.chunks;
  assert.ok(length > 2);
  for (let chunks = 0; chunks < length; chunks += 1) {
    const guest = new ScriptedGuest([50]);
    const channel = new MemoryChannel();
    const sink = new StreamSink(channel, { returnPath: true });
    const source = engine({ guest, sink });
    const ended = source.run();
    await until(() => channel.chunks.length >= chunks && channel.reader !== undefined);
    const isWhole = sink.isUndecided;
    channel.answer(chunks % 2 === 0 ? shut(0) : Uint8Array.of(...pong(1), ...shut(0)));
    const report = await ended;
    if (!isWhole) {
      assert.equal(
        (source.error as { code?: string } | undefined)?.code,
        'CONFIRMED_TOO_EARLY',
        `after ${chunks} writes`,
      );
      assert.match(source.error!.message, /^The destination test:peer confirmed the migration after \d+ bytes, before/);
    }
    assert.equal(report.status, isWhole ? 'completed' : 'failed');
    assert.equal(guest.running, !isWhole);
  }
});

test('a cancel before the start is one', async () => {
  const guest = new ScriptedGuest([50]);
  const source = engine({ guest, sink: new RecordingSink() });
  assert.equal(source.cancel(), true);
  assert.equal((await source.run()).status, 'cancelled');
  assert.deepEqual([guest.running, guest.stops], [true, 0]);
});

// Behind `exec:ssh …` all has left long before the command ends.
for (const how of ['cancel', 'fail', 'the command ends badly'] as const) {
  test(`without a return path, ${how} when all has left: the guest may run there, and stands still here`, async () => {
    const guest = new ScriptedGuest([50]);
    const channel = new MemoryChannel();
    let endBadly!: () => void;
    let isEnding = false;
    channel.end = () => {
      isEnding = true;
      return new Promise((_resolve, reject) => {
        endBadly = () => reject(new Error('status 1'));
      });
    };
    const { destroy } = MemoryChannel.prototype;
    channel.destroy = () => {
      destroy.call(channel);
      endBadly();
    };
    const clock = { ...systemClock, sleep: async () => {} };
    const hold = allocateGuestHold();
    const source = engine({ guest, sink: new StreamSink(channel, { returnPath: false }), clock, hold });
    const ended = source.run();
    await until(() => isEnding);
    // What another thread does by this, should the engine's die now.
    assert.equal(guestOwner(hold), 'undecided');
    if (how === 'the command ends badly') {
      endBadly();
    } else {
      source[how](new Error('given up'));
    }
    const report = await ended;
    assert.equal(report.status, how === 'cancel' ? 'cancelled' : 'failed');
    assert.deepEqual([guest.running, guest.resumes, guest.left], [false, 0, 'moved']);
    assert.equal(guestOwner(hold), 'undecided');
    assert.match(
      report.ramferry.warnings.join(),
      /nothing tells whether it runs the guest, which therefore stands still/,
    );
  });
}

test('without a return path, a stream that breaks before its end was begun leaves the guest running', async () => {
  const guest = new ScriptedGuest([50]);
  const channel = new MemoryChannel();
  const save = guest.saveDevices.bind(guest);
  guest.saveDevices = () => {
    channel.capacity = 0;
    return { ...save(), sections: new Uint8Array(100) };
  };
  const report = await engine({ guest, sink: new StreamSink(channel, { returnPath: false }) }).run();
  assert.deepEqual([report.status, guest.running, guest.left], ['failed', true, undefined]);
  assert.deepEqual(report.ramferry.warnings, []);
});

for (const [isSaved, left] of [
  [false, 'moved'],
  [true, 'saved'],
] as const) {
  test(`without a return path, a guest that is sent ${isSaved ? 'into a file' : 'elsewhere'} is ${left} in the end`, async () => {
    const guest = new ScriptedGuest([50]);
    const sink = new StreamSink(new MemoryChannel(), { returnPath: false, isSaved });
    const report = await engine({ guest, sink }).run();
    assert.deepEqual([report.status, guest.running, guest.left], ['completed', false, left]);
  });
}

// A save ends when the file has its name; what fails behind that does not take it away
test('a file that has its name is a completed save, whatever fails then', async () => {
  const guest = new ScriptedGuest([50]);
  const sink = new RecordingSink();
  sink.movesGuest = false;
  sink.finish = async () => {
    (sink as PageSink).onConfirmed?.();
    throw new Error('the folder cannot be synced');
  };
  const source = engine({ guest, sink });
  const report = await source.run();
  assert.equal(report.status, 'completed');
  assert.match(report.ramferry.warnings.join(), /the folder cannot be synced/);
  assert.deepEqual([guest.running, guest.resumes, guest.left], [false, 0, 'saved']);
});
