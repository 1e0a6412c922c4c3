// Every interleaving of the source engine with guest stores, on the real engine, the real log and the twins of the
// kernels (spec/algorithms.md 15.2), against the oracle of 15.1: whatever the schedule, the destination ends with the
// guest's memory. Mutants show that the net holds.
//
//   pages 0 and 1 are written by the two guest threads; page 2 is free
//   a guest thread's write is: store ─▶ mark, with anything of the engine's in between
//   the engine can be interrupted before every access to the log, and while it reads a page (a torn read)
//   page 2 is discarded at some moment; or it is hinted: a thread writes it, reports it as free, and takes it back to write it
//   again, at once or (where hints are acknowledged) once the engine has acknowledged it, or never

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BitmapKernels } from '../../kernels/kernels.js';
import { bindBitmapTwin } from '../../kernels/twin/bitmap-twin.js';
import { explore, type Schedule, sample } from '../../test/schedules.js';
import {
  FREE_PAGE,
  hintScenarios,
  mutants,
  nameOf,
  PAGES,
  type Scenario,
  scenarios,
} from '../../test/source-scenarios.js';
import { allocateStoreBarrier } from '../dirty-log/store-barrier.js';
import { StoreBarrierLog } from '../dirty-log/store-barrier-log.js';
import { attachStoreBarrier } from '../dirty-log/store-barrier-writer.js';
import { BitmapMemory } from '../memory/bitmap-memory.js';
import { DirtyClient } from '../memory/dirty-memory.js';
import { RamBlockList } from '../memory/ram-block-list.js';
import { ramPage } from '../memory/units.js';
import type { HintedRange, HintSource, HintStatus } from './guest.js';
import { MigrationSource } from './migration-source.js';
import type { PageSink } from './page-sink.js';
import { defaultParameters } from './parameters.js';
import { SendBitmap } from './send-bitmap.js';

// One memory for all schedules: they run one after the other, and each begins by clearing what it uses.
let step: () => void = () => {};
const bitmaps = BitmapMemory.create(4 * 2 ** 20, (memory) => bindBitmapTwin(memory, () => step()));
const blocks = RamBlockList.create({ bitmaps, segmentBytes: 2 ** 18 });
const block = blocks.add({ name: 'ram', usedLength: PAGES * 4096 });

/** A guest thread: an endless alternation of store and mark over a list of pages. */
class Writer {
  readonly #todo: (number | 'hint')[];
  readonly #act: (() => void)[] = [];
  readonly #world: World;
  readonly #index: number;
  #page: number | undefined;

  constructor(world: World, index: number, pages: readonly (number | 'hint')[]) {
    this.#world = world;
    this.#index = index;
    this.#todo = [...pages];
  }

  get isOver(): boolean {
    return this.#act.length === 0 && this.#todo.length === 0;
  }

  get canStep(): boolean {
    const { hints } = this.#world;
    return this.#act.length > 0 || (!this.isOver && (this.#todo[0] === 'hint' ? hints.asked : !hints.pending));
  }

  get midWrite(): boolean {
    return this.#page !== undefined;
  }

  /** The page being written: stored to, perhaps, and not yet marked. */
  get page(): number | undefined {
    return this.#page;
  }

  step(): void {
    if (this.#act.length === 0) {
      const page = this.#todo.shift()!;
      if (page === 'hint') {
        this.#world.hints.give();
        return;
      }
      this.#page = page;
      const barrier = this.#world.barriers[this.#index]!;
      const store = (): void => {
        this.#world.content[page]! += 1;
        this.#world.hints.freed &&= page !== FREE_PAGE;
      };
      const mark = (): void => {
        barrier.mark(block, page);
        // Between two writes the thread passes a safepoint, and parks if it has nothing more to do.
        if (this.#todo.length > 0) {
          barrier.safepoint();
        } else {
          barrier.park();
        }
      };
      this.#act.push(...(this.#world.scenario.mutant === 'mark before store' ? [mark, store] : [store, mark]));
    }
    this.#act.shift()!();
    if (this.#act.length === 0) {
      this.#page = undefined;
    }
  }
}

/** The device, and what the guest knows of its hint. */
class Hints implements HintSource {
  stale = 0;
  readonly outside = 0;
  readonly isBroken = false;
  /** Whether the content of the page does not matter. */
  freed = false;
  /** Whether the guest has yet to wait for the page. */
  pending = false;
  asked = false;
  readonly #world: World;
  readonly #ring: number[] = [];
  #id = 0;

  constructor(world: World) {
    this.#world = world;
  }

  get acknowledged(): boolean {
    const { hints, mutant } = this.#world.scenario;
    return hints === 'acknowledged' || mutant === 'marks are dropped though the guest does not wait';
  }

  get status(): HintStatus {
    return this.asked ? 'start' : 'stop';
  }

  give(): void {
    this.#ring.push(this.#id);
    this.freed = true;
    this.pending = this.#world.scenario.hints === 'acknowledged';
  }

  request(): void {
    this.#id += 1;
    this.asked = true;
    this.#world.interrupt();
  }

  stop(): void {
    this.asked = false;
    this.#world.interrupt();
  }

  done(): void {
    this.asked = false;
    this.pending = false;
  }

  next(range: HintedRange): boolean {
    this.#world.interrupt();
    const id = this.#ring.shift();
    // Between taking a hint and applying it as well.
    this.#world.interrupt();
    if (id === undefined) {
      return false;
    }
    if (id !== this.#id && this.#world.scenario.mutant !== 'stale hints are applied') {
      this.stale += 1;
      this.pending = false;
      return false;
    }
    Object.assign(range, { blockId: block.id, firstPage: FREE_PAGE, pageCount: 1 });
    return true;
  }

  acknowledge(): void {
    this.pending = false;
    this.#world.interrupt();
  }
}

class World {
  readonly scenario: Scenario;
  readonly schedule: Schedule;
  /** A page's content is the number of stores to it. */
  readonly content = new Array<number>(PAGES).fill(1);
  readonly delivered = new Array<readonly [number, number]>(PAGES).fill([0, 0]);
  readonly timesSent = new Array<number>(PAGES).fill(0);
  readonly shared;
  readonly log: StoreBarrierLog;
  readonly barriers;
  readonly writers: readonly Writer[];
  readonly hints = new Hints(this);
  #guestRuns = false;
  #interrupting = false;
  discarded = false;

  constructor(scenario: Scenario, schedule: Schedule) {
    this.scenario = scenario;
    this.schedule = schedule;
    this.shared = allocateStoreBarrier(scenario.variant, scenario.writes.length);
    this.log = new StoreBarrierLog(this.shared, blocks, { wait: (_words, index) => this.#letRun(index) });
    this.barriers = scenario.writes.map((_, index) => attachStoreBarrier(this.shared, index, bitmaps));
    this.writers = scenario.writes.map((pages, index) => new Writer(this, index, pages));
  }

  /** The engine waits for a guest thread: it goes on to its next safepoint. */
  #letRun(wordIndex: number): void {
    // One cache line for the engine's words, then one for each thread (src/dirty-log/handshake.ts).
    const index = wordIndex / 16 - 1;
    const writer = this.writers[index]!;
    if (writer.canStep) {
      writer.step();
    } else if (writer.isOver) {
      this.barriers[index]!.park();
    } else {
      // It waits for the engine in a loop.
      this.barriers[index]!.safepoint();
    }
  }

  /** A point at which guest threads may come between. */
  interrupt(): void {
    if (!this.#guestRuns || this.#interrupting) {
      return;
    }
    this.#interrupting = true;
    for (;;) {
      const ready = this.writers.filter((writer) => writer.canStep);
      const choice = ready.length === 0 ? 0 : this.schedule.choose(ready.length + 1);
      if (choice === 0) {
        break;
      }
      ready[choice - 1]!.step();
    }
    this.#interrupting = false;
  }

  startGuest(): void {
    this.barriers.forEach((barrier, index) => {
      if (!this.writers[index]!.isOver) {
        barrier.unpark();
      }
    });
    this.#guestRuns = true;
  }

  stopGuest(): void {
    this.#guestRuns = false;
    // A thread parks between writes: what it has begun it ends, mark included (TS-3).
    for (let ready = this.#midWrite(); ready.length > 0; ready = this.#midWrite()) {
      ready[this.schedule.choose(ready.length)]!.step();
    }
    for (const barrier of this.barriers) {
      barrier.park();
    }
    this.log.awaitParked();
  }

  /** G-1: a page whose last store has not been delivered is dirty somewhere, or its writer is about to mark it. */
  checkNothingLost(): void {
    const { dirty } = blocks;
    for (let page = 0; page < PAGES; page += 1) {
      const delivered = this.delivered[page]!.every((value) => value === this.content[page]);
      const marked =
        plain.countRange(block.bitmaps.remote, page, 1) > 0 ||
        plain.countRange(block.bitmaps.send, page, 1) > 0 ||
        dirty.anyDirty(ramPage(block.ramPage + page), 1, DirtyClient.migration);
      const underWay = this.writers.some((writer) => writer.page === page);
      assert.ok(delivered || marked || underWay || this.isFree(page), `page ${page} is lost`);
    }
  }

  isFree(page: number): boolean {
    return page === FREE_PAGE && (this.scenario.hints === undefined || this.hints.freed);
  }

  #midWrite(): Writer[] {
    return this.writers.filter((writer) => writer.midWrite);
  }
}

/** Only the accesses that a guest thread can see are worth an interruption: those to REMOTE, and the reading of pages. */
const withInterrupts = (world: World): void => {
  step = () => {};
  const { kernels } = bitmaps;
  const wrapped = kernels as { -readonly [Name in keyof BitmapKernels]: BitmapKernels[Name] };
  wrapped.fetchLog = (...args) => {
    world.interrupt();
    return plain.fetchLog(...args);
  };
  wrapped.clearLog = (...args) => {
    world.interrupt();
    const removed = plain.clearLog(...args);
    world.interrupt();
    return removed;
  };
  wrapped.clearListed = (bitmap, list, count) => {
    const cleared = plain.clearListed(bitmap, list, count);
    return world.scenario.mutant === 'counter ignores clean bits' ? count : cleared;
  };
  wrapped.sync = (source, target, wordCount) => {
    const moved = plain.countRange(source, 0, wordCount * 64);
    const added = plain.sync(source, target, wordCount);
    return world.scenario.mutant === 'sync counts old bits' ? moved : added;
  };
};
const plain: BitmapKernels = { ...bitmaps.kernels };

/** The engine, with the places where a mutant or a discard comes in. */
class TestedSource extends MigrationSource {
  readonly #world: World;

  constructor(world: World, sink: PageSink) {
    let now = 0;
    super({
      guest: {
        machine: 'none',
        uuid: undefined,
        ramSectionId: 1,
        blocks,
        log: {
          clearAlignPages: world.log.clearAlignPages,
          hasRangedClear: true,
          start: () => {
            world.log.start();
            world.startGuest();
          },
          stop: () => world.log.stop(),
          sync: (synced, last) => world.log.sync(synced, last),
          clear: (cleared, first, count) => world.log.clear(cleared, first, count),
          forget: (forgotten, first, count) => world.log.forget(forgotten, first, count),
          syncCostMs: () => 0,
        },
        ...(world.scenario.hints !== undefined && { hints: world.hints }),
        isRunning: () => true,
        stop: async () => world.stopGuest(),
        resume: async () => {},
        saveDevices: () => ({ early: new Uint8Array(), sections: new Uint8Array(), description: '' }),
      },
      sink,
      parameters: {
        ...defaultParameters,
        clearBitmapShift: 6,
        hintWaitMs: 'off',
        eagerClear: world.scenario.eagerClear ?? false,
        availSwitchoverBandwidth: world.scenario.early ? 1e9 : 0,
        downtimeLimit: world.scenario.early ? 1000 : 0,
      },
      onPass: () => world.checkNothingLost(),
      // Every look at the clock ends an accounting window, so that a threshold exists from the first batch on.
      clock: { now: () => (now += 200), sleep: async () => {}, yield: async () => {} },
    });
    this.#world = world;
  }

  protected override transferBatch(send: SendBitmap, sink: PageSink): number {
    if (this.#world.scenario.hints === undefined && !this.#world.discarded && this.#world.schedule.choose(2) === 1) {
      this.#world.discarded = true;
      send.exclude(block, FREE_PAGE, 1);
    }
    if (this.#world.scenario.mutant === 'clear after read') {
      send.take();
      const zeroPages = sink.writePages(send.batch);
      send.payDebts();
      return zeroPages;
    }
    return super.transferBatch(send, sink);
  }
}

/** One migration under one schedule, judged by the oracle. */
async function migrate(scenario: Scenario, schedule: Schedule): Promise<void> {
  const world = new World(scenario, schedule);
  for (const address of Object.values(block.bitmaps)) {
    plain.testAndClearRange(address, 0, 64);
  }
  blocks.dirty.testAndClear(block.ramPage, PAGES, DirtyClient.migration);
  withInterrupts(world);
  const sink: PageSink = {
    transferred: 1_000_000,
    queued: 0,
    ready: true,
    whenReady: async () => {},
    start: () => {},
    batchLimit: () => 256,
    beginIteration: () => {},
    writePages: ({ pages, count }) => {
      for (const page of pages.subarray(0, count)) {
        // Nobody writes to the other pages, so nothing can come between their reading and anything else.
        const interrupt = (): void => (page <= FREE_PAGE ? world.interrupt() : undefined);
        interrupt();
        const first = world.content[page]!;
        interrupt();
        world.delivered[page] = [first, world.content[page]!];
        world.timesSent[page]! += 1;
      }
      world.interrupt();
      return 0;
    },
    endIteration: () => world.checkNothingLost(),
    flush: async () => {},
    writeDevices: () => {},
    finish: async () => {},
    abort: () => {},
  };
  const source = new TestedSource(world, sink);
  const { payAllDebts } = SendBitmap.prototype;
  if (scenario.mutant === 'hints are asked for before the log is cleared') {
    SendBitmap.prototype.payAllDebts = () => {};
  }
  const report = await source.run();
  SendBitmap.prototype.payAllDebts = payAllDebts;
  // G-2: the counter says what the bitmap says, or the engine refuses to complete.
  assert.equal(report.status, 'completed', report['error-desc']);
  // G-8: destination memory equals source memory, on every page that is not free.
  for (let page = 0; page < PAGES; page += 1) {
    if (!world.isFree(page)) {
      assert.deepEqual(world.delivered[page], [world.content[page], world.content[page]], `page ${page} differs`);
    }
  }
  // ST-8, PL-34: an initial and a final sync at least, and nothing is left in the log's way.
  assert.ok(report.ram['dirty-sync-count'] >= 2);
  assert.equal(report.ram.remaining, 0);
}

for (const scenario of [...scenarios, ...hintScenarios]) {
  // G-1, G-2, G-4, G-5, G-7, CB-1, CB-2, CB-3, CB-4, TS-13, TS-14
  test(`every schedule delivers the guest's memory: ${nameOf(scenario)}`, async (t) => {
    const runs = await explore(async (schedule) => {
      await migrate(scenario, schedule);
    });
    t.diagnostic(`${runs} schedules`);
    assert.ok(runs > 1000, `only ${runs} schedules`);
  });
}

test('random schedules of longer runs deliver it too', async () => {
  for (const variant of ['unconditional', 'filtered'] as const) {
    const scenario = { variant, early: false };
    const together: Scenario = {
      ...scenario,
      writes: [
        [0, 1, 0, 0],
        [1, 1, 0, 1],
      ],
    };
    await sample((schedule) => migrate(together, schedule), 5000, 1);
    for (const hints of ['acknowledged', 'unacknowledged'] as const) {
      // Page 0 shares its chunk with the hinted one: sending it pays the debt of both.
      const writes = [
        [0, 0],
        [FREE_PAGE, 'hint', FREE_PAGE, FREE_PAGE],
      ] as const;
      await sample((schedule) => migrate({ ...scenario, writes, hints }, schedule), 2000, 1);
    }
  }
});

for (const scenario of mutants) {
  test(`the net holds: a source with the fault "${scenario.mutant}" is caught`, async () => {
    await assert.rejects(
      explore(async (schedule) => {
        await migrate(scenario, schedule);
      }),
      /page \d is lost|page \d differs|The send bitmap is empty|counter says/,
    );
  });
}
