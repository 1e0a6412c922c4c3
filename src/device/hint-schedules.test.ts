// Device, driver and engine against each other, in every order of their steps, and with one of them coming between any two
// accesses of another to the shared words. The oracle is what the guest may rely on, not how the code gets there.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { withAtomicSteps } from '../../test/atomic-steps.js';
import { ALL_FEATURES, balloonSetup, DATA_PAGE } from '../../test/balloon-kit.js';
import { testMachine } from '../../test/device-kit.js';
import { explore, type Schedule, sample } from '../../test/schedules.js';
import { BalloonFeature } from './balloon.js';
import { isHintId } from './hint-exchange.js';

const SLOW = process.env['RAMFERRY_SLOW'] === '1';

type EngineStep = 'request' | 'stop' | 'done' | 'take';
type DriverStep = 'start' | 'hint' | 'end' | 'reset' | 'collect';

interface Scenario {
  readonly acknowledge: boolean;
  readonly engine: readonly EngineStep[];
  readonly driver: readonly DriverStep[];
  /** How often one agent may come between two accesses of another, and how often it does not for each time that it could. */
  readonly preemptions: number;
  readonly reluctance: number;
}

/** A hint that the driver gave. Each has a page of its own, by which the engine's side is recognised. */
interface GivenHint {
  /** The id that the driver had announced last, 0 after its end marker. */
  readonly underId: number;
  readonly head: number;
  /** Its element came back, or the device was reset: the guest may write to the page. */
  isFree: boolean;
}

const machine = testMachine();

const run = (schedule: Schedule, scenario: Scenario): { applied: number; rounds: number } => {
  const { device, driver, engine, shared } = balloonSetup({ now: () => 0 }, machine);
  const features = scenario.acknowledge ? ALL_FEATURES : ALL_FEATURES & ~BalloonFeature.acknowledgeHints;
  driver.start(features, 16);
  const engineSteps = [...scenario.engine];
  const driverSteps = [...scenario.driver];

  // What the oracle knows.
  let current = 0; // the id that the engine asked for last, 0 once it stopped
  let announced = 0;
  const hints: GivenHint[] = [];
  const ids: number[] = [];
  let applied = 0;
  let isResetting = false;

  const collect = (): void => {
    if (isResetting) {
      if (!driver.virtio.isReset) {
        return;
      }
      isResetting = false;
      for (const hint of hints) {
        hint.isFree = true;
      }
      driver.start(features, 16);
      return;
    }
    for (const head of driver.returned()) {
      const hint = hints.find((candidate) => candidate.head === head && !candidate.isFree);
      if (hint !== undefined && scenario.acknowledge) {
        hint.isFree = true;
      }
    }
  };

  const engineStep = (): void => {
    switch (engineSteps.shift()) {
      case 'request':
        engine.request();
        if (isHintId(driver.commandId)) {
          current = driver.commandId;
          assert.ok(!ids.includes(current), 'FH-11: a new id');
          ids.push(current);
        }
        return;
      case 'stop':
        engine.stop();
        current = 0;
        return;
      case 'done':
        engine.done();
        current = 0;
        return;
      case 'take': {
        const range = { blockId: 0, firstPage: 0, pageCount: 0 };
        while (engine.next(range)) {
          const hint = hints[range.firstPage - DATA_PAGE]!;
          assert.notEqual(current, 0, 'FH-7, FH-8: no hint between stop and the next request');
          assert.equal(hint.underId, current, 'FH-5, FH-6: only hints under the current id');
          assert.ok(!hint.isFree, 'FH-24, FH-29: the guest may have written to the page');
          preempt();
          assert.ok(!hint.isFree, 'FH-24, FH-29: the guest got the page back while the hint was being applied');
          applied += 1;
          engine.acknowledge();
        }
        return;
      }
    }
  };

  const driverStep = (): void => {
    collect();
    if (isResetting) {
      return;
    }
    switch (driverSteps.shift()) {
      case 'start':
        if (isHintId(driver.commandId) && driver.commandId !== announced) {
          announced = driver.commandId;
          driver.send(announced);
        }
        return;
      case 'hint': {
        const head = driver.send(undefined, [DATA_PAGE + hints.length, 1]);
        hints.push({ underId: announced, head, isFree: false });
        return;
      }
      case 'end':
        // With an id that is not the current one, as Linux: 0.
        announced = 0;
        driver.send(0);
        return;
      case 'reset':
        announced = 0;
        isResetting = true;
        driver.virtio.requestReset();
        return;
      case 'collect':
        return;
    }
  };

  // The device's thread sleeps on the doorbell: it runs again only if that moved.
  let doorbell = -1;
  let again = true;
  const isAwake = (): boolean => again || doorbell !== device.virtio.doorbell;
  const deviceStep = (): void => {
    doorbell = device.virtio.doorbell;
    again = device.service();
  };

  let preemptions = scenario.preemptions;
  let running: (() => void) | undefined;
  /** Where another agent may come between. */
  const preempt = (): void => {
    const others = [engineStep, driverStep, deviceStep].filter(
      (agent) =>
        agent !== running &&
        (agent !== engineStep || engineSteps.length > 0) &&
        (agent !== driverStep || driverSteps.length > 0) &&
        (agent !== deviceStep || isAwake()),
    );
    if (preemptions === 0 || others.length === 0) {
      return;
    }
    const choice = schedule.choose(scenario.reluctance + others.length) - scenario.reluctance + 1;
    if (choice > 0) {
      preemptions -= 1;
      const interrupted = running;
      const left = preemptions;
      // What comes between is not interrupted itself.
      preemptions = 0;
      others[choice - 1]!();
      preemptions = left;
      running = interrupted;
    }
  };
  const buffers = [shared.hints, shared.virtio.registers];

  for (let turns = 0; engineSteps.length + driverSteps.length > 0 || isAwake(); turns += 1) {
    assert.ok(turns < 200, 'nobody waits for ever');
    const agents = [
      ...(engineSteps.length > 0 ? [engineStep] : []),
      ...(driverSteps.length > 0 ? [driverStep] : []),
      ...(isAwake() ? [deviceStep] : []),
    ];
    running = agents.length === 1 ? agents[0]! : agents[schedule.choose(agents.length)]!;
    withAtomicSteps(buffers, preempt, running);
    running = undefined;
  }
  // Everybody sleeps or is done, and the engine has stopped: the guest has all it gave.
  collect();
  if (isResetting) {
    collect();
  }
  assert.ok(!isResetting, 'FH-24: the reset is finished');
  assert.equal(driver.hints.inFlight, 0, 'FH-6, FH-22: every element came back');
  return { applied, rounds: ids.length };
};

/** Runs all schedules if there are few or time does not matter, else a sample, and makes sure that they were no empty ones. */
const check = async (scenario: Scenario, samples: number): Promise<void> => {
  let applied = 0;
  let rounds = 0;
  const attempt = async (schedule: Schedule): Promise<void> => {
    const result = run(schedule, scenario);
    applied += result.applied;
    rounds = Math.max(rounds, result.rounds);
  };
  if (samples === ALL) {
    await explore(attempt);
  } else {
    await sample(attempt, samples, 1);
  }
  assert.ok(applied > 0);
  assert.ok(rounds > 0);
};

const ALL = Number.POSITIVE_INFINITY;

test('every schedule of a round that is stopped, with one agent between any two accesses of another', async () => {
  await check(
    {
      acknowledge: true,
      engine: ['request', 'take', 'stop'],
      driver: ['start', 'hint'],
      preemptions: 1,
      reluctance: 1,
    },
    ALL,
  );
});

// FH-5, FH-8
test('a range that is on its way into the ring when the engine stops is not taken in the next round', async () => {
  let stale = 0;
  const runs = await explore(async (schedule) => {
    const { driver, engine, serve, taken, shared } = balloonSetup({}, machine);
    driver.start();
    engine.request();
    driver.send(driver.commandId, [DATA_PAGE, 1]);
    let isStopped = false;
    const stop = (): void => {
      if (!isStopped && schedule.choose(2) === 1) {
        isStopped = true;
        engine.stop();
      }
    };
    withAtomicSteps([shared.hints, shared.virtio.registers], stop, serve);
    engine.stop();
    const before = engine.stale;
    engine.request();
    assert.deepEqual(taken(), []);
    stale += engine.stale - before;
    serve();
    assert.equal(driver.returned().length, 1);
  });
  assert.ok(runs > 10 && stale > 0);
});

test('a guest that answers as soon as it sees an id is never too early', async () => {
  const runs = await explore(async (schedule) => {
    const { driver, engine, serve, shared } = balloonSetup({}, machine);
    driver.start();
    let answered = false;
    const answer = (): void => {
      if (!answered && isHintId(driver.commandId)) {
        answered = true;
        driver.send(driver.commandId);
        serve();
      }
    };
    withAtomicSteps(
      [shared.hints, shared.virtio.registers],
      () => schedule.choose(2) === 1 && answer(),
      () => engine.request(),
    );
    answer();
    assert.equal(engine.status, 'start');
  });
  assert.ok(runs > 10);
});

test('a reset while hints are applied', async () => {
  await check(
    {
      acknowledge: true,
      engine: ['request', 'take', 'stop'],
      driver: ['start', 'hint', 'reset'],
      preemptions: 1,
      reluctance: SLOW ? 1 : 20,
    },
    SLOW ? ALL : 5000,
  );
});

for (const acknowledge of [false, true]) {
  test(`rounds, ends, resets (${acknowledge ? 'acknowledge mode' : 'plain'})`, async () => {
    await check(
      {
        acknowledge,
        engine: ['request', 'take', 'take', 'stop', 'request', 'take', 'stop', 'request', 'take', 'take', 'done'],
        driver: [
          ...(['start', 'hint', 'hint', 'end', 'start', 'hint', 'collect', 'reset', 'collect'] as const),
          ...(['start', 'hint', 'hint', 'end'] as const),
        ],
        preemptions: 4,
        reluctance: 20,
      },
      SLOW ? 200_000 : 4000,
    );
  });
}
