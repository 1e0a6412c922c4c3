// A relayed guest at its destination, which a test plays: it does not come to the order to run before it is released, and a
// destination that cannot take it is noticed while its origin can still go on.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { PostcopyDestination } from '../../test/postcopy-destination.js';
import { PAGE, ScriptedGuest } from '../../test/source-kit.js';
import { until } from '../../test/until.js';
import { requestPages, shut } from '../format/stream/return-path.js';
import { streamMagic } from '../format/stream/write.js';
import { RamferryError } from '../memory/errors.js';
import { SILENCE } from '../source/silence.js';
import { HeldGuest, type HeldGuestOptions, type Passage } from './held-guest.js';

/** Any bytes that do not begin as a command does; the destination knows them. */
const GATE = Uint8Array.of(4, 0, 0, 0, 9, 3, 0x67, 0x61, 0x74);
/** The page that the gate needs. */
const ROM = { blockName: 'block0', page: 13 };

/** What a healthy destination needs for something, many times over: longer is an error. */
const SOON_MS = SILENCE.loadHeld.giveUpMs * 4;

const within = async <Result>(work: Promise<Result>, what: string): Promise<Result> => {
  const late = delay(SOON_MS, undefined, { ref: false }).then(() => assert.fail(`after ${SOON_MS} ms: ${what}`));
  return Promise.race([work, late]);
};

/** Time for whatever would happen now. */
const turns = async (): Promise<void> => {
  for (let turn = 0; turn < 50; turn += 1) {
    await new Promise<void>((resolve) => setImmediate(resolve));
  }
};

const muteAtEnd = (destination: PostcopyDestination): void => {
  const say = destination.say.bind(destination);
  destination.say = (bytes) => destination.hasEnded || say(bytes);
};

interface Setting {
  readonly by: Passage['by'];
  /** Whether the gate asks for its page. */
  readonly asks?: boolean;
  readonly prepare?: (destination: PostcopyDestination) => void;
  readonly options?: Partial<HeldGuestOptions>;
}

const hold = ({ by, asks = true, prepare, options }: Setting) => {
  const guest = new ScriptedGuest([60, 20]);
  guest.running = false;
  for (const block of guest.blocks.blocks) {
    for (let page = 0; page < block.usedPages; page += 1) {
      guest.store(block, page, (page % 255) + 1);
    }
  }
  const destination = new PostcopyDestination(guest.blocks.blocks);
  destination.gate = { section: GATE, ...ROM, asks };
  prepare?.(destination);
  const channel = destination.connect();
  channel.write(streamMagic(), () => {});
  const passage: Passage = by === 'gate' ? { by, gate: GATE } : { by };
  const held = new HeldGuest(guest, channel, passage, { prefetchPages: 8, maxBandwidth: 0, ...options });
  const pages = (): string[] => destination.steps.filter((step) => step.startsWith('page '));
  return { guest, destination, held, pages };
};

const assertArrived = (guest: ScriptedGuest, destination: PostcopyDestination): void => {
  assert.deepEqual(destination.violations, []);
  for (const block of guest.blocks.blocks) {
    for (let page = 0; page < block.usedPages; page += 1) {
      assert.equal(destination.value(block.name, page), guest.load(block, page), `${block.name} page ${page}`);
    }
  }
};

test('a guest stands at the gate until it is released, whatever is asked for meanwhile; then it runs and gets its memory', async () => {
  let seenRunning = 0;
  const { guest, destination, held, pages } = hold({
    by: 'gate',
    options: { onSeenRunning: () => (seenRunning += 1) },
  });
  await within(held.loaded, 'it is not loaded');
  destination.request('block1', 4);
  await turns();
  assert.deepEqual([destination.isRunning, held.wasStarted, pages()], [false, false, []]);
  assert.ok(!destination.steps.includes('ping 3'), 'what is behind the gate is not reached');
  assert.equal(seenRunning, 0);
  held.release();
  const end = await within(held.ended, 'it does not end');
  assert.deepEqual([end.error, end.wasStarted, end.report.status], [undefined, true, 'completed']);
  const at = (step: string): number => destination.steps.indexOf(step);
  assert.ok(at('gate') < at('page block0:13') && at('page block0:13') < at('run'), destination.steps.join(', '));
  assertArrived(guest, destination);
});

test('a destination that never asks for the page of the gate is told to run, which is said, and gets no page before the release', async () => {
  const { guest, destination, held, pages } = hold({ by: 'gate', asks: false });
  await within(held.loaded, 'it is not loaded');
  assert.deepEqual([destination.isRunning, held.wasStarted], [true, true]);
  destination.request('block0', 40);
  await turns();
  assert.deepEqual(pages(), []);
  held.release();
  const end = await within(held.ended, 'it does not end');
  assert.deepEqual([end.error, end.wasSeenRunning], [undefined, true]);
  assert.equal(pages()[0], 'page block0:40');
  assertArrived(guest, destination);
});

// It has come to the gate, and not to what waits there: nobody knows whether it will.
test('a destination that says that it is at the gate, and does not ask for its page, is given up soon', async () => {
  const startedAt = performance.now();
  const { destination, held } = hold({
    by: 'gate',
    asks: false,
    prepare: (destination) => {
      destination.answersLoaded = false;
    },
  });
  await within(
    assert.rejects(held.loaded, (error: RamferryError) => {
      assert.equal(error.code, 'PEER_STALLED');
      assert.match(error.message, /has not loaded the devices in 1\.5 s\./);
      assert.match(error.hint!, /what the destination printed/);
      return true;
    }),
    'it is waited for',
  );
  assert.ok(performance.now() - startedAt >= SILENCE.loadHeld.giveUpMs);
  assert.ok(destination.steps.includes('ping 5'));
  const { error, wasStarted } = await held.ended;
  assert.deepEqual([error?.code, wasStarted], ['PEER_STALLED', false]);
  assert.throws(() => held.throwIfLost(), { code: 'PEER_STALLED' });
});

test('a destination whose devices read memory is waited for as long as they do', async () => {
  const { destination, held, pages } = hold({
    by: 'gate',
    prepare: (destination) => {
      // In front of the gate, and for longer than silence is borne.
      destination.gate = undefined;
      destination.ping = (value) => destination.step(`held ping ${value}`);
    },
  });
  let page = 20;
  const startedAt = performance.now();
  const asking = setInterval(() => destination.request('block0', (page += 1)), SILENCE.loadHeld.giveUpMs / 5);
  let isSettled = false;
  held.loaded.then(
    () => (isSettled = true),
    () => (isSettled = true),
  );
  await delay(SILENCE.loadHeld.giveUpMs * 1.8);
  assert.equal(isSettled, false);
  assert.ok(pages().length > 3, 'it gets what it asks for');
  clearInterval(asking);
  await within(assert.rejects(held.loaded, { code: 'PEER_STALLED' }), 'it is waited for');
  assert.ok(performance.now() - startedAt < SOON_MS);
});

for (const by of ['gate', 'memory-first'] as const) {
  test(`${by}: a destination that dies before it has loaded the guest is named, with a hint`, async () => {
    const { destination, held } = hold({
      by,
      prepare: (destination) => {
        destination.ping = (value) => (value === 1 ? undefined : destination.breakLink());
      },
    });
    await within(
      assert.rejects(held.loaded, (error: RamferryError) => /what the destination printed/.test(error.hint!)),
      'nobody notices',
    );
    const { error, wasStarted } = await held.ended;
    assert.ok(error !== undefined);
    assert.deepEqual([wasStarted, destination.isRunning, destination.hasEnded], [false, false, false]);
  });

  test(`${by}: a destination that dies while it holds the guest is noticed before the release, and never had it`, async () => {
    const { destination, held } = hold({ by });
    await within(held.loaded, 'it is not loaded');
    held.throwIfLost();
    destination.breakLink();
    const { error, wasStarted } = await within(held.ended, 'nobody notices');
    assert.deepEqual([error?.code, wasStarted], ['PEER_CLOSED', false]);
    assert.throws(() => held.throwIfLost(), { code: 'PEER_CLOSED' });
    assert.deepEqual([destination.isRunning, destination.hasEnded], [false, false]);
  });

  test(`${by}: a guest that is abandoned while it is held never comes to the order to run`, async () => {
    const { destination, held } = hold({ by });
    await within(held.loaded, 'it is not loaded');
    held.abandon(new RamferryError('failed', 'CANCELLED', 'The guest stays at the origin.'));
    const { error, wasStarted } = await within(held.ended, 'it does not end');
    await turns();
    assert.equal(error?.code, 'CANCELLED');
    assert.deepEqual([wasStarted, destination.isRunning, destination.hasEnded], [false, false, false]);
  });
}

test('memory first: all of it is there before the release, but for the end of the stream', async () => {
  const { guest, destination, held } = hold({ by: 'memory-first' });
  await within(held.loaded, 'it is not loaded');
  await turns();
  assert.equal(destination.hasEnded, false);
  assert.equal(held.wasStarted, false);
  assertArrived(guest, destination);
  held.release();
  const end = await within(held.ended, 'it does not end');
  assert.deepEqual([end.error, end.report.status, destination.hasEnded], [undefined, 'completed', true]);
});

// QEMU answers behind the end of the stream when it has started the guest.
test('memory first: a link that breaks between the end of the stream and the answer leaves a guest that may run there', async () => {
  const { destination, held } = hold({ by: 'memory-first', prepare: muteAtEnd });
  await within(held.loaded, 'it is not loaded');
  held.release();
  await until(() => destination.hasEnded);
  destination.breakLink();
  const end = await within(held.ended, 'nobody notices');
  assert.deepEqual([end.error?.code, end.by, end.wasStarted], ['PEER_CLOSED', 'memory-first', true]);
});

test('memory first: a destination that has the end of the stream and never answers is given up, and may run the guest', async (context) => {
  const { destination, held } = hold({ by: 'memory-first', prepare: muteAtEnd });
  await within(held.loaded, 'it is not loaded');
  context.mock.timers.enable({ apis: ['setTimeout'] });
  held.release();
  await until(() => destination.hasEnded);
  context.mock.timers.tick(SILENCE.stall - 1);
  await turns();
  let isOver = false;
  void held.ended.then(() => (isOver = true));
  await turns();
  assert.equal(isOver, false);
  context.mock.timers.tick(1);
  await turns();
  assert.equal(isOver, true, 'it is waited for');
  const { error, wasStarted } = await held.ended;
  assert.deepEqual([error?.code, error?.value, wasStarted], ['PEER_STALLED', SILENCE.stall, true]);
});

// PL-4
test('memory first: who confirms in front of the end of the stream has not got the guest, and is refused', async () => {
  const { destination, held } = hold({ by: 'memory-first' });
  await within(held.loaded, 'it is not loaded');
  destination.say(shut(0));
  const { error } = await within(held.ended, 'it is believed');
  assert.equal(error?.code, 'CONFIRMED_TOO_EARLY');
  assert.equal(destination.hasEnded, false);
});

test('memory first: a destination that asks for pages has misunderstood, and is left', async () => {
  const { destination, held } = hold({ by: 'memory-first' });
  await within(held.loaded, 'it is not loaded');
  destination.say(requestPages(0, PAGE, 'block0'));
  const { error } = await within(held.ended, 'it is believed');
  assert.equal(error?.code, 'RETURN_PATH_MESSAGE');
});

test('memory first: a destination that says nothing of its devices is given up', async () => {
  const startedAt = performance.now();
  const { destination, held } = hold({
    by: 'memory-first',
    prepare: (destination) => {
      destination.answersLoaded = false;
    },
  });
  await until(() => destination.steps.includes('ping 3'));
  const late = delay(SILENCE.loadHeldBehindMemory.giveUpMs * 3, undefined, { ref: false });
  await Promise.race([
    assert.rejects(held.loaded, { code: 'PEER_STALLED' }),
    late.then(() => assert.fail('it is waited for')),
  ]);
  assert.ok(performance.now() - startedAt >= SILENCE.loadHeldBehindMemory.giveUpMs);
  assert.equal(destination.hasEnded, false);
});
