// Background snapshots: interleavings of guest threads with the saving of a page, on the real writer's end, the real
// protector and the real send bitmap.
//
//   a guest thread   attempt: claim │ copy │ unprotect │ push ─▶ │ store, first half │ second half
//   the engine       next │ read, first half │ second half │ release
//
// Anybody may come in at a │. A thread that came in goes on until it waits or has stored; the engine step by step.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { bindBitmapTwin } from '../../kernels/twin/bitmap-twin.js';
import { explore, type Schedule, sample } from '../../test/schedules.js';
import { PAGE, ScriptedGuest } from '../../test/source-kit.js';
import { allocateStoreBarrier } from '../dirty-log/store-barrier.js';
import { allocateWriteProtect, ProtectControl, protectionOf } from '../dirty-log/write-protect.js';
import { StoreBarrierProtector } from '../dirty-log/write-protect-store-barrier.js';
import { WriteProtectWriter } from '../dirty-log/write-protect-writer.js';
import type { PagesToSave } from '../dirty-log/write-protector.js';
import { BitmapMemory } from '../memory/bitmap-memory.js';
import type { RamBlock } from '../memory/ram-block.js';
import { RamBlockList } from '../memory/ram-block-list.js';
import { BackgroundSnapshot } from './background-snapshot.js';
import { systemClock } from './clock.js';
import { GuestHold } from './guest-hold.js';
import { SendBitmap } from './send-bitmap.js';

const PAGES = 2;

const RANDOM_SCHEDULES = process.env['RAMFERRY_SLOW'] === '1' ? 1_000_000 : 3000;

const mutants = {
  'stores to a page that is being saved': 'writer',
  'unprotects before it copies': 'writer',
  'pushes before it copies': 'writer',
  'fills a full ring': 'writer',
  'saves what a writer has claimed': 'engine',
  'releases before it reads': 'engine',
} as const;
type Mutant = keyof typeof mutants;

interface Scenario {
  /** For each guest thread the pages it stores to, in order. */
  readonly writes: readonly (readonly number[])[];
  readonly ringPages: number;
  readonly mutant?: Mutant;
}

// One memory for all schedules, which run one after the other.
const bitmaps = BitmapMemory.create(4 * 2 ** 20, (memory) => bindBitmapTwin(memory, () => {}));
const blocks = RamBlockList.create({ bitmaps, segmentBytes: 2 ** 18 });
const block = blocks.add({ name: 'ram', usedLength: PAGES * PAGE });
const ram = block.extents[0]!;

/** Where the two halves of a page are looked at. */
const halves = (page: number): readonly [number, number] => [
  ram.address + page * PAGE,
  ram.address + (page + 1) * PAGE - 1,
];

class TestedWriter extends WriteProtectWriter {
  readonly #world: World;
  readonly #index: number;
  readonly #todo: number[];
  #stores: (() => void)[] = [];
  /** Waits until something is released, counted from before its attempt: as `beforeStore` does. */
  #waitsSince: number | undefined;
  /** Inside an attempt, with somebody else on top of it. */
  isSuspended = false;

  constructor(world: World, index: number, pages: readonly number[]) {
    super(world.protection, index, bitmaps);
    this.#world = world;
    this.#index = index;
    this.#todo = [...pages];
  }

  get isDone(): boolean {
    return this.#todo.length === 0;
  }

  get canStep(): boolean {
    return !this.isDone && !this.isSuspended && this.#waitsSince !== this.#world.releases;
  }

  step(): void {
    const page = this.#todo[0]!;
    if (this.#stores.length > 0) {
      this.#stores.shift()!();
      if (this.#stores.length === 0) {
        this.#todo.shift();
      }
      return;
    }
    this.isSuspended = true;
    const { releases } = this.#world;
    const mayStore = this.attempt(block, page) || this.#world.mutant === 'stores to a page that is being saved';
    this.isSuspended = false;
    this.#waitsSince = mayStore ? undefined : releases;
    if (mayStore) {
      this.#stores = halves(page).map((at) => () => {
        ram.segment.bytes[at] = 100 + this.#index;
      });
    }
  }

  protected override hasRoom(): boolean {
    return super.hasRoom() || this.#world.mutant === 'fills a full ring';
  }

  protected override claim(word: number, bit: number): boolean {
    const won = super.claim(word, bit);
    this.#world.interrupt();
    return won;
  }

  protected override copy(of: RamBlock, page: number): void {
    if (this.#world.mutant === 'unprotects before it copies') {
      super.unprotect((protectionOf(block.bitmaps).isProtected >>> 2) + (page >>> 5), 1 << page);
      this.#world.interrupt();
    }
    if (this.#world.mutant === 'pushes before it copies') {
      const control = new Int32Array(this.#world.protection.control);
      super.push(of, page);
      this.#world.interrupt();
      // Into the slot that was pushed.
      control[ProtectControl.rings + this.#index * 16]! -= 1;
      super.copy(of, page);
      return;
    }
    super.copy(of, page);
    this.#world.interrupt();
  }

  protected override unprotect(word: number, bit: number): void {
    super.unprotect(word, bit);
    this.#world.interrupt();
  }
}

const protections = new Map<string, ReturnType<typeof allocateWriteProtect>>();

class World {
  readonly mutant: Mutant | undefined;
  readonly protection;
  readonly protector: StoreBarrierProtector;
  readonly writers: readonly TestedWriter[];
  readonly send;
  readonly saved: (readonly [page: number, first: number, second: number])[] = [];
  releases = 0;
  readonly #schedule: Schedule;
  readonly #snapshot: BackgroundSnapshot;
  #engineSteps: (() => void)[] = [];
  /** The engine found nothing to do, and nobody has done anything since. */
  #engineIdles = false;

  constructor({ writes, ringPages, mutant }: Scenario, schedule: Schedule) {
    this.mutant = mutant;
    this.#schedule = schedule;
    const key = `${writes.length} ${ringPages}`;
    this.protection = protections.get(key) ?? allocateWriteProtect(writes.length, ringPages);
    protections.set(key, this.protection);
    const barrier = { ...allocateStoreBarrier('unconditional', writes.length), protection: this.protection };
    this.protector = new StoreBarrierProtector(barrier, blocks);
    if (mutant === 'saves what a writer has claimed') {
      this.protector.claim = ({ count }) => count;
    }
    const guest = new ScriptedGuest([]);
    this.#snapshot = new BackgroundSnapshot(guest, this.protector, new GuestHold(guest), systemClock);
    ram.segment.bytes.fill(0, ram.address, ram.address + PAGES * PAGE);
    for (let page = 0; page < PAGES; page += 1) {
      for (const at of halves(page)) {
        ram.segment.bytes[at] = 1 + page;
      }
    }
    this.send = new SendBitmap({ blocks, log: undefined, clearBitmapShift: undefined, trace: {} });
    this.protector.arm();
    this.protector.protect();
    this.writers = writes.map((pages, index) => new TestedWriter(this, index, pages));
  }

  get #engineCanStep(): boolean {
    return this.#engineSteps.length > 0 || (this.send.remaining > 0 && !this.#engineIdles);
  }

  #engineStep(): void {
    if (this.#engineSteps.length === 0) {
      if (!this.#snapshot.next(this.send, () => 256)) {
        this.#engineIdles = true;
        return;
      }
      this.send.take();
      const { extent, count } = this.send.batch;
      const pages: PagesToSave = { block, extent, pages: this.send.batch.pages.slice(), count };
      const read = (page: number, offset: number): number =>
        extent.segment.bytes[extent.address + (page - extent.firstPage) * PAGE + offset]!;
      const firsts: number[] = [];
      const numbers = [...pages.pages.subarray(0, count)];
      const steps = [
        () => firsts.push(...numbers.map((page) => read(page, 0))),
        () => this.saved.push(...numbers.map((page, at) => [page, firsts[at]!, read(page, PAGE - 1)] as const)),
        () => {
          this.#snapshot.release(pages);
          this.releases += 1;
        },
      ];
      this.#engineSteps = this.mutant === 'releases before it reads' ? [steps[2]!, steps[0]!, steps[1]!] : steps;
      return;
    }
    this.#engineSteps.shift()!();
  }

  /** Lets agents do one step each, as the schedule says; `stay` is the choice of nobody. */
  #letStep(stay: boolean): boolean {
    const agents = [
      ...(this.#engineCanStep ? [() => this.#engineStep()] : []),
      ...this.writers
        .filter((writer) => writer.canStep)
        .map((writer) => () => {
          writer.step();
          this.#engineIdles = false;
        }),
    ];
    const options = agents.length + (stay ? 1 : 0);
    const choice = options > 1 ? this.#schedule.choose(options) : 0;
    if (options === 0 || (stay && choice === 0)) {
      return false;
    }
    agents[choice - (stay ? 1 : 0)]!();
    return true;
  }

  /** A point inside an attempt at which others may come in. */
  interrupt(): void {
    this.#engineIdles = false;
    while (this.#letStep(true)) {}
  }

  run(): void {
    while (this.#letStep(false)) {}
    // Nobody can go on: everybody is done.
    assert.ok(
      this.writers.every((writer) => writer.isDone),
      'a guest thread waits for ever',
    );
    assert.equal(this.send.remaining, 0);
    // BS-1, BS-2
    assert.deepEqual(
      this.saved.toSorted(([one], [other]) => one - other),
      Array.from({ length: PAGES }, (_, page) => [page, 1 + page, 1 + page]),
    );
    // BS-6
    for (const bitmap of Object.values(protectionOf(block.bitmaps))) {
      assert.equal(bitmaps.kernels.countRange(bitmap, 0, PAGES), 0);
    }
    this.#snapshot.end();
  }
}

const scenarios: readonly Scenario[] = [
  { writes: [[0]], ringPages: 2 },
  { writes: [[0, 1]], ringPages: 1 },
  { writes: [[0], [0]], ringPages: 2 },
  { writes: [[0], [1]], ringPages: 1 },
];

const nameOf = ({ writes, ringPages }: Scenario): string =>
  `threads storing to pages ${writes.map((pages) => pages.join('+')).join(' and ')}, rings of ${ringPages}`;

/** One thread: every schedule there is. Two: too many, so that many at random stand for them. */
const runAll = async (scenario: Scenario): Promise<number> => {
  const run = async (schedule: Schedule): Promise<void> => new World(scenario, schedule).run();
  if (scenario.writes.length === 1) {
    return explore(run);
  }
  await sample(run, RANDOM_SCHEDULES, 1);
  return RANDOM_SCHEDULES;
};

describe('background snapshot, schedules', () => {
  for (const scenario of scenarios) {
    // BS-1, BS-2, BS-3, BS-5, BS-6
    test(`the instant is saved: ${nameOf(scenario)}`, async (t) => {
      const runs = await runAll(scenario);
      t.diagnostic(`${runs} schedules`);
      assert.ok(runs > 1000, `only ${runs} schedules`);
    });
  }

  for (const mutant of Object.keys(mutants) as Mutant[]) {
    test(`the net holds: the fault "${mutant}" of the ${mutants[mutant]} is caught`, async () => {
      await assert.rejects(async () => {
        for (const scenario of scenarios.toReversed()) {
          await runAll({ ...scenario, mutant });
        }
      }, /Expected values|waits for ever/);
    });
  }
});
