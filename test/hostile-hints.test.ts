// Whole migrations of guests whose balloon driver lies, with the real device between it and the engine: the migration
// completes, what was ignored is named, and all memory arrives, that included which no device of the guest can see.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  allocateBalloon,
  BalloonDevice,
  BalloonHints,
  BalloonQueue,
  GuestMemory,
  layOutQueue,
} from '../src/device/index.js';
import { guestAddress } from '../src/memory/index.js';
import { MigrationSource } from '../src/source/migration-source.js';
import { changeParameters, defaultParameters } from '../src/source/parameters.js';
import type { MigrationReport } from '../src/source/statistics.js';
import { ALL_FEATURES, DATA_PAGE, TestBalloonDriver } from './balloon-kit.js';
import { randomChoices } from './random.js';
import { PAGE, RecordingSink, ScriptedGuest } from './source-kit.js';

const PAGES = 512;
/** Addresses of the hint queue that TestBalloonDriver sets up. */
const QUEUE = layOutQueue(guestAddress(0x10000 + BalloonQueue.freePageHint * 0x8000), 64);

interface Scene {
  readonly driver: TestBalloonDriver;
  readonly memory: GuestMemory;
  readonly device: BalloonDevice;
  readonly hints: BalloonHints;
  /** Calls the device until it would sleep, for a while at most. */
  serve(): void;
}

/** One act of the driver; called again and again while the guest runs, `turn` from 0. */
type Attack = (scene: Scene, turn: number) => void;

const setUp = (attack: Attack) => {
  const guest = new ScriptedGuest([PAGES, 16]);
  const [ram, invisible] = guest.blocks.blocks;
  for (let page = DATA_PAGE; page < PAGES; page += 1) {
    guest.store(ram!, page, 1 + (page % 255));
  }
  for (let page = 0; page < 16; page += 1) {
    guest.store(invisible!, page, 0x55);
  }
  const shared = allocateBalloon({ acknowledgeHints: true });
  const memory = new GuestMemory([{ guestAddress: guestAddress(0), block: ram!, offset: 0, bytes: PAGES * PAGE }], {
    markRange: (block, first, count) => guest.mark(block, first, count),
  });
  const device = new BalloonDevice(shared, memory);
  const driver = new TestBalloonDriver(shared, memory);
  driver.start(ALL_FEATURES, QUEUE.size);
  const serve = (): void => {
    for (let calls = 0; device.service(); calls += 1) {
      assert.ok(calls < 1000, 'the device comes to an end');
    }
  };
  const hints = new BalloonHints(shared);
  guest.hints = hints;
  const scene: Scene = { driver, memory, device, hints, serve };
  const sink = new RecordingSink();
  sink.limit = 16;
  let turn = 0;
  const act = (): void => {
    if (guest.running) {
      attack(scene, turn);
      turn += 1;
      serve();
    }
  };
  sink.beforeRead = act;
  sink.afterRead = act;
  guest.beforeStop = act;
  const migrate = (): Promise<MigrationReport> =>
    new MigrationSource({
      guest,
      sink,
      parameters: changeParameters(defaultParameters, { hintWaitMs: 'off' }),
    }).run();
  /** Pages that did not arrive as they are. */
  const missing = (): string[] =>
    guest.blocks.blocks.flatMap((block) =>
      Array.from({ length: block.usedPages }, (_, page) => page)
        .filter((page) => sink.delivered.get(`${block.name}:${page}`) !== guest.load(block, page))
        .map((page) => `${block.name}:${page}`),
    );
  return { scene, migrate, missing };
};

const BROKEN = [/broke the protocol/];
const OUTSIDE = [/no guest memory as free, \d+ times/];

const attacks: Record<
  string,
  { readonly attack: Attack; readonly warnings: readonly RegExp[]; readonly stale?: true }
> = {
  'never answers': { attack: () => {}, warnings: [] },
  'sends ids of the past and of the future': {
    attack: ({ driver }, turn) => {
      driver.returned();
      const id = driver.commandId + [-1, 1, 2 ** 30, 5][turn % 4]!;
      driver.send(id >>> 0, [DATA_PAGE, 200]);
    },
    warnings: [],
    stale: true,
  },
  'hints without having been asked': {
    attack: ({ driver }) => {
      driver.returned();
      driver.send(undefined, [DATA_PAGE, 200]);
    },
    warnings: [],
    stale: true,
  },
  'hints what is beyond memory': {
    attack: ({ driver }, turn) => {
      driver.returned();
      if (turn === 0) {
        driver.send(driver.commandId);
      }
      driver.hints.add([], [{ address: guestAddress(PAGES * PAGE + turn * 2 ** 40), length: 2 ** 32 - 1 }]);
      driver.virtio.notify(driver.hints);
    },
    warnings: OUTSIDE,
  },
  'hints parts of pages': {
    attack: ({ driver }, turn) => {
      driver.returned();
      if (turn === 0) {
        driver.send(driver.commandId);
      }
      driver.hints.add([], [{ address: guestAddress((DATA_PAGE + turn) * PAGE + 1), length: 2 * PAGE - 2 }]);
      driver.virtio.notify(driver.hints);
    },
    warnings: [],
  },
  'sends an id of three bytes': {
    attack: ({ driver }) => {
      driver.hints.add([{ address: guestAddress(0x40000), length: 3 }], []);
      driver.virtio.notify(driver.hints);
    },
    warnings: BROKEN,
  },
  'links a descriptor to itself': {
    attack: ({ driver, memory }, turn) => {
      if (turn === 0) {
        const head = driver.send(driver.commandId, [DATA_PAGE, 1]);
        const flags = guestAddress(QUEUE.descriptorTable + 16 * head + 12);
        memory.writeUint32(flags, 1 | (head << 16));
      }
    },
    warnings: BROKEN,
  },
  'says that more is available than the ring holds': {
    attack: ({ memory, driver }, turn) => {
      if (turn === 0) {
        memory.storeUint16(guestAddress(QUEUE.availableRing + 2), 1000);
        driver.virtio.notify(driver.hints);
      }
    },
    warnings: BROKEN,
  },
  'fills its queue with noise, resets, and does it again': {
    attack: ({ driver, memory, serve }, turn) => {
      const random = randomChoices(turn + 1);
      const noise = Uint8Array.from({ length: 16 * QUEUE.size }, () => random(256));
      memory.write(QUEUE.descriptorTable, noise);
      memory.storeUint16(guestAddress(QUEUE.availableRing + 2), turn % 64);
      driver.virtio.notify(driver.hints);
      serve();
      if (turn % 3 === 2) {
        driver.virtio.requestReset();
        serve();
        driver.start(ALL_FEATURES, QUEUE.size);
      }
    },
    // Only if the last thing it did was not a reset.
    warnings: [],
  },
};

// FH-4, FH-5, FH-6, FH-19, FH-21, FH-22, FH-24
for (const [name, { attack, warnings, stale }] of Object.entries(attacks)) {
  test(`a driver that ${name}: the migration completes, and nothing is lost`, async () => {
    const { migrate, missing } = setUp(attack);
    const report = await migrate();
    assert.equal(report.status, 'completed', report['error-desc']);
    assert.deepEqual(missing(), []);
    assert.equal(report.ramferry.hints.honoured, 0);
    assert.ok(stale === undefined || report.ramferry.hints.stale > 0);
    for (const [index, warning] of warnings.entries()) {
      assert.match(report.ramferry.warnings[index] ?? '', warning);
    }
  });
}

// FH-6, FH-17
test('a driver that answers after the end: its elements come back, and the next migration is not deceived', async () => {
  let id = 0;
  const { scene, migrate, missing } = setUp(({ driver }) => {
    id = driver.commandId;
  });
  const { driver, hints, serve } = scene;
  assert.equal((await migrate()).status, 'completed');
  const heads = [driver.send(id, [DATA_PAGE, 100]), driver.send(undefined, [DATA_PAGE, 100])];
  serve();
  assert.deepEqual(driver.returned(), heads);
  assert.equal(hints.next({ blockId: 0, firstPage: 0, pageCount: 0 }), false);
  driver.send(id, [DATA_PAGE, 100]);
  const report = await migrate();
  assert.equal(report.ramferry.hints.honoured, 0);
  assert.deepEqual(missing(), []);
});
