// What an engine does to its guest is undone: by itself, or by another thread from what it has noted in shared memory.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PAGE, RecordingSink, ScriptedGuest, ScriptedHints } from '../../test/source-kit.js';
import type { RamDiscardManager } from '../memory/ram-discard-manager.js';
import { allocateGuestHold, GuestHold, guestOwner, isGuestHeld } from './guest-hold.js';
import { MigrationSource } from './migration-source.js';
import { defaultParameters } from './parameters.js';

const makeGuest = () => {
  const guest = new ScriptedGuest([300]);
  const hints = new ScriptedHints();
  guest.hints = hints;
  const throttled: number[] = [];
  guest.throttle = (percentage) => throttled.push(percentage);
  const managers: RamDiscardManager[] = ['vmem0', 'vmem1'].map((name) => {
    const granularity = 64 * PAGE;
    const block = guest.blocks.add({ name, usedLength: 8 * granularity, discardGranularity: granularity });
    return block.discardManager!;
  });
  const isLogged = (): boolean => {
    const block = guest.blocks.blocks[0]!;
    guest.store(block, 0, 1);
    return guest.log.sync(block, false) > 0;
  };
  return { guest, hints, throttled, managers, isLogged };
};

/** What an engine does, in its order. */
const deeds: readonly ((hold: GuestHold) => unknown)[] = [
  (hold) => hold.freezeDiscards(),
  (hold) => hold.protect(),
  (hold) => hold.takeHints(),
  (hold) => hold.startLog(),
  (hold) => hold.throttle(40),
  (hold) => hold.stop(),
];

// TS-34, G-10
for (let done = 0; done <= deeds.length; done += 1) {
  test(`dead after ${done} of ${deeds.length} deeds: another thread undoes them`, async () => {
    const { guest, hints, throttled, managers, isLogged } = makeGuest();
    const shared = allocateGuestHold();
    const protector = { stops: 0, stop: () => (protector.stops += 1) };
    const engine = new GuestHold(guest, protector, shared);
    for (const deed of deeds.slice(0, done)) {
      await deed(engine);
    }
    assert.equal(isGuestHeld(shared), done > 0);
    assert.equal(guest.running, done < deeds.length);
    assert.deepEqual(await new GuestHold(guest, protector, shared).undo(), []);
    assert.equal(guest.running, true);
    assert.deepEqual(
      managers.map(({ isFrozen }) => isFrozen),
      [false, false],
    );
    assert.equal(guest.blocks.dirty.migrationTracking, false);
    assert.equal(isLogged(), false);
    assert.equal(throttled.at(-1) ?? 0, 0);
    assert.equal(hints.status, done > 2 ? 'done' : 'stop');
    assert.equal(protector.stops, done > 1 ? 1 : 0);
    assert.equal(isGuestHeld(shared), false);
  });
}

// RD-11: what is noted comes before what is done, so that the last one may be noted only
test('dead in the middle of freezing discards: what was not frozen is not thawed', async () => {
  const { guest, managers } = makeGuest();
  const shared = allocateGuestHold();
  managers[1]!.freeze = () => {
    throw new Error('killed');
  };
  const words = new Int32Array(shared);
  const engine = new GuestHold(guest, undefined, shared);
  assert.throws(() => engine.freezeDiscards());
  // As it is between the two.
  words[words.indexOf(1)] = 2;
  assert.deepEqual(await new GuestHold(guest, undefined, shared).undo(), []);
  for (const manager of managers) {
    assert.equal(manager.isFrozen, false);
    manager.populate(0, 64 * PAGE);
  }
});

// PC-11
for (const hasMoved of [true, false]) {
  test(`a guest that was ${hasMoved ? 'moved' : 'saved'} is not resumed, by nobody`, async () => {
    const { guest } = makeGuest();
    const shared = allocateGuestHold();
    const engine = new GuestHold(guest, undefined, shared);
    await engine.stop();
    engine.giveAway(hasMoved);
    assert.equal(guestOwner(shared), hasMoved ? 'moved' : 'saved');
    assert.deepEqual(await new GuestHold(guest, undefined, shared).undo(), []);
    assert.deepEqual([guest.running, guest.resumes, guest.left], [false, 0, hasMoved ? 'moved' : 'saved']);
  });
}

test('dead between the confirmation and its effect on the guest: it is not resumed', async () => {
  const { guest } = makeGuest();
  const shared = allocateGuestHold();
  const engine = new GuestHold(guest, undefined, shared);
  await engine.stop();
  guest.leave = () => {
    throw new Error('killed');
  };
  engine.giveAway(true);
  Reflect.deleteProperty(guest, 'leave');
  assert.deepEqual(await new GuestHold(guest, undefined, shared).undo(), []);
  assert.deepEqual([guest.running, guest.resumes, guest.left], [false, 0, 'moved']);
});

// PL-36
test('a guest that is undecided runs on if its engine says so, and stands still if that has died', async () => {
  for (const isDecided of [true, false]) {
    const { guest } = makeGuest();
    const shared = allocateGuestHold();
    const engine = new GuestHold(guest, undefined, shared);
    await engine.stop();
    engine.offer();
    assert.deepEqual([guestOwner(shared), engine.isGone, engine.willRun], ['undecided', false, true]);
    if (isDecided) {
      engine.withdraw();
    }
    assert.deepEqual(await new GuestHold(guest, undefined, shared).undo(), []);
    assert.deepEqual([guest.running, guest.left], isDecided ? [true, undefined] : [false, 'moved']);
  }
});

// G-10
test('the engine itself resumes a guest that the destination had and did not confirm', async () => {
  const { guest } = makeGuest();
  const shared = allocateGuestHold();
  const sink = new RecordingSink();
  Object.defineProperty(sink, 'movesGuest', { value: true });
  const owners: string[] = [];
  sink.finish = async () => {
    owners.push(guestOwner(shared));
    throw new Error('connection reset');
  };
  const source = new MigrationSource({ guest, sink, parameters: defaultParameters, hold: shared });
  assert.equal((await source.run()).status, 'failed');
  assert.deepEqual([owners, guestOwner(shared), guest.running], [['undecided'], 'here', true]);
});

test('every step of the clean-up is tried, and the report says what failed', async () => {
  const { guest, hints, throttled, managers, isLogged } = makeGuest();
  guest.resume = async () => {
    throw new Error('a vCPU thread died');
  };
  hints.done = () => {
    throw new Error('the device is gone');
  };
  const sink = new RecordingSink();
  sink.failIn = 'devices';
  const source = new MigrationSource({ guest, sink, parameters: defaultParameters });
  const report = await source.run();
  assert.equal(report.status, 'failed');
  // The first cause is the one reported (PL-5).
  assert.equal(report['error-desc'], 'the device is gone');
  const warnings = report.ramferry.warnings.join('\n');
  assert.match(warnings, /could not be resumed and stands still: a vCPU thread died/);
  assert.match(warnings, /free page hints could not be ended: the device is gone/);
  assert.equal(guest.blocks.dirty.migrationTracking, false);
  assert.equal(isLogged(), false);
  assert.equal(throttled.at(-1) ?? 0, 0);
  assert.ok(managers.every(({ isFrozen }) => !isFrozen));
});

// The engine resumes what the engine stopped, and nothing else
for (const when of ['in precopy', 'in the switchover'] as const) {
  for (const how of ['cancel', 'an error'] as const) {
    test(`a guest that its owner pauses ${when} stays paused after ${how}`, async () => {
      const { guest } = makeGuest();
      const sink = new RecordingSink();
      sink.limit = 50;
      const end = (): unknown => (how === 'cancel' ? source.cancel() : sink.abort(new Error('connection reset')));
      const source = new MigrationSource({ guest, sink, parameters: defaultParameters });
      let batches = 0;
      sink.afterRead = () => {
        batches += 1;
        if (when === 'in precopy' && batches === 3) {
          guest.pause();
          end();
        }
      };
      if (when === 'in the switchover') {
        sink.writeDevices = () => {
          guest.pause();
          end();
        };
      }
      const { status } = await source.run();
      assert.equal(status, how === 'cancel' ? 'cancelled' : 'failed');
      assert.equal(guest.stops, when === 'in precopy' ? 0 : 1);
      assert.equal(guest.running, false);
    });
  }
}
