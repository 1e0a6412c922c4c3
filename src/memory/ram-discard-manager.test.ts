// Which parts of a block are memory, against a model that is an array of granules.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import fc from 'fast-check';
import { BitmapMemory } from './bitmap-memory.js';
import { RamBlockList } from './ram-block-list.js';
import type { RamDiscardListener, RamDiscardManager } from './ram-discard-manager.js';

const GRANULE = 16384;
const GRANULES = 100;
/** The last granule is half of one. */
const LENGTH = GRANULES * GRANULE - GRANULE / 2;

/** One list for all runs: it takes the block back after each. */
const blocks = RamBlockList.create({ bitmaps: BitmapMemory.create(2 ** 22), segmentBytes: 2 ** 21 });
const fresh = (list = blocks): RamDiscardManager => {
  const before = list.find('vmem0');
  if (before !== undefined) {
    list.remove(before);
  }
  return list.add({ name: 'vmem0', usedLength: LENGTH, discardGranularity: GRANULE }).discardManager!;
};

const endOf = (granule: number): number => Math.min(LENGTH, granule * GRANULE);

/** Ranges of granules, as [first, end). */
const granuleRange = fc
  .tuple(fc.nat(GRANULES - 1), fc.integer({ min: 1, max: 20 }))
  .map(([first, count]) => [first, Math.min(GRANULES, first + count)] as const);

/** Sections with any bounds. */
const section = fc.tuple(fc.nat(LENGTH), fc.nat(LENGTH)).map(([one, other]) => {
  const offset = Math.min(one, other);
  return { offset, length: Math.max(one, other) - offset };
});

interface Run {
  readonly offset: number;
  readonly length: number;
}

const replayed = (manager: RamDiscardManager, kind: 'replayPopulated' | 'replayDiscarded', of: Run): Run[] => {
  const runs: Run[] = [];
  manager[kind](of.offset, of.length, (offset, length) => runs.push({ offset, length }));
  return runs;
};

/** What a listener believes to be populated, one cell for each quarter of a granule; throws if told what it knows. */
class Believer implements RamDiscardListener {
  readonly populated = new Set<number>();
  refuse = false;

  populate = (offset: number, length: number): void => {
    if (this.refuse) {
      throw new Error('refused');
    }
    this.#each(offset, length, (cell) => assert.equal(this.populated.has(cell), false));
    this.#each(offset, length, (cell) => this.populated.add(cell));
  };

  discard = (offset: number, length: number): void => {
    this.#each(offset, length, (cell) => assert.ok(this.populated.delete(cell)));
  };

  #each(offset: number, length: number, visit: (cell: number) => void): void {
    for (let at = offset; at < offset + length; at += GRANULE / 4) {
      visit(at);
    }
  }
}

const changes = fc.array(fc.record({ range: granuleRange, plug: fc.boolean() }), { maxLength: 12 });

/** Applies the changes that are allowed to a manager and to the model. */
const apply = (manager: RamDiscardManager, steps: typeof changes extends fc.Arbitrary<infer T> ? T : never) => {
  const model = new Array<boolean>(GRANULES).fill(false);
  for (const { range, plug } of steps) {
    const [first, end] = range;
    const offset = first * GRANULE;
    const length = endOf(end) - offset;
    if (!plug) {
      manager.discard(offset, length);
      model.fill(false, first, end);
    } else if (model.slice(first, end).every((populated) => !populated)) {
      manager.populate(offset, length);
      model.fill(true, first, end);
    } else {
      assert.throws(() => manager.populate(offset, length), { code: 'RAM_DISCARD_STATE' });
    }
  }
  return model;
};

// RD-8, RD-9
test('replays partition any section, in maximal ascending runs; queries agree with them', () => {
  fc.assert(
    fc.property(changes, section, (steps, of) => {
      const manager = fresh();
      const model = apply(manager, steps);
      const isPopulatedAt = (byte: number): boolean => model[Math.floor(byte / GRANULE)]!;
      const populated = replayed(manager, 'replayPopulated', of);
      const discarded = replayed(manager, 'replayDiscarded', of);
      let at = of.offset;
      let last: boolean | undefined;
      for (const run of [...populated, ...discarded].sort((one, other) => one.offset - other.offset)) {
        assert.equal(run.offset, at);
        assert.ok(run.length > 0);
        const kind = populated.includes(run);
        assert.notEqual(kind, last, 'neighbours of one kind are one run');
        assert.equal(isPopulatedAt(run.offset), kind);
        assert.equal(isPopulatedAt(run.offset + run.length - 1), kind);
        at += run.length;
        last = kind;
      }
      assert.equal(at, of.offset + of.length);
      assert.equal(manager.isPopulated(of.offset, of.length), discarded.length === 0);
      assert.equal(manager.isDiscarded(of.offset, of.length), populated.length === 0);
      if (of.length > 0) {
        const first = populated[0]?.offset === of.offset ? populated[0].length : 0;
        const end = manager.populatedEnd(of.offset);
        assert.equal(Math.max(0, Math.min(end - of.offset, of.length)), first);
      }
      const bytes = model.reduce((sum, on, granule) => sum + (on ? endOf(granule + 1) - granule * GRANULE : 0), 0);
      assert.equal(manager.populatedBytes, bytes);
    }),
  );
});

// RD-10
test('a replay ends at the first visit that throws, with what it threw', () => {
  const manager = fresh();
  for (const granule of [1, 3, 5]) {
    manager.populate(granule * GRANULE, GRANULE);
  }
  const seen: number[] = [];
  assert.throws(
    () =>
      manager.replayPopulated(0, LENGTH, (offset) => {
        seen.push(offset / GRANULE);
        if (seen.length === 2) {
          throw new Error('enough');
        }
      }),
    /enough/,
  );
  assert.deepEqual(seen, [1, 3]);
});

// RD-23
test('listeners know exactly what is populated in their section, from registering to unregistering', () => {
  fc.assert(
    fc.property(changes, changes, section, (before, after, of) => {
      const manager = fresh();
      apply(manager, before);
      const listener = new Believer();
      const everywhere = new Believer();
      // Cells of a quarter of a granule: sections that cut granules elsewhere would only complicate the believer.
      const offset = of.offset - (of.offset % (GRANULE / 4));
      const length = of.length - (of.length % (GRANULE / 4));
      manager.register(listener, { offset, length });
      manager.register(everywhere);
      for (const { range, plug } of after) {
        const [first, end] = range;
        const start = first * GRANULE;
        if (!plug || manager.isDiscarded(start, endOf(end) - start)) {
          manager[plug ? 'populate' : 'discard'](start, endOf(end) - start);
        }
        for (let at = 0; at < LENGTH; at += GRANULE / 4) {
          const inside = at >= offset && at < offset + length;
          assert.equal(listener.populated.has(at), inside && manager.isPopulated(at, 1));
          assert.equal(everywhere.populated.has(at), manager.isPopulated(at, 1));
        }
      }
      manager.unregister(listener);
      assert.equal(listener.populated.size, 0);
      manager.discard(0, LENGTH);
      assert.equal(everywhere.populated.size, 0);
    }),
  );
});

// RD-22
test('a listener that refuses leaves the state and every listener as they were', () => {
  const manager = fresh();
  manager.populate(0, GRANULE);
  const told = [new Believer(), new Believer(), new Believer()];
  for (const listener of told) {
    manager.register(listener);
  }
  told[1]!.refuse = true;
  assert.throws(() => manager.populate(4 * GRANULE, 2 * GRANULE), /refused/);
  assert.equal(manager.isDiscarded(GRANULE, LENGTH - GRANULE), true);
  assert.deepEqual(
    told.map(({ populated }) => populated.size),
    [4, 4, 4],
  );
  // Also when it registers: what it was told before is taken back.
  const late = new Believer();
  late.refuse = true;
  assert.throws(() => manager.register(late), /refused/);
  told[1]!.refuse = false;
  manager.populate(4 * GRANULE, 2 * GRANULE);
  assert.deepEqual(
    told.map(({ populated }) => populated.size),
    [12, 12, 12],
  );
  assert.equal(late.populated.size, 0);
});

// The state a listener finds when it hears of a discard is the new one, unlike QEMU's (spec/algorithms.md 6(g)).
test('listeners hear in order, and find discarded what they hear is', () => {
  const manager = fresh();
  manager.populate(0, 4 * GRANULE);
  const heard: string[] = [];
  for (const name of ['first', 'second']) {
    manager.register({
      populate: () => heard.push(`${name} populate`),
      discard: (offset, length) => heard.push(`${name} ${manager.isDiscarded(offset, length)}`),
    });
  }
  heard.length = 0;
  manager.discard(GRANULE, GRANULE);
  manager.populate(GRANULE, GRANULE);
  assert.deepEqual(heard, ['first true', 'second true', 'first populate', 'second populate']);
});

// RD-11
test('frozen, nothing changes, however often it is frozen; another list of the block sees the same', () => {
  const list = RamBlockList.create({ bitmaps: BitmapMemory.create(2 ** 22), segmentBytes: 2 ** 21 });
  const manager = fresh(list);
  manager.populate(0, GRANULE);
  const elsewhere = RamBlockList.attach(list.share()).find('vmem0')!.discardManager!;
  assert.equal(elsewhere.granularity, GRANULE);
  assert.equal(elsewhere.isPopulated(0, GRANULE), true);
  manager.freeze();
  elsewhere.freeze();
  manager.thaw();
  for (const change of [() => manager.populate(GRANULE, GRANULE), () => elsewhere.discard(0, GRANULE)]) {
    assert.throws(change, { code: 'RAM_DISCARD_BUSY' });
  }
  assert.ok(manager.isFrozen);
  assert.deepEqual(replayed(manager, 'replayPopulated', { offset: 0, length: LENGTH }), [
    { offset: 0, length: GRANULE },
  ]);
  elsewhere.thaw();
  manager.discard(0, GRANULE);
  assert.equal(elsewhere.isDiscarded(0, LENGTH), true);
});

// RD-11: a migration begins in its own thread while the device's thread is plugging
test('who freezes while the state changes is woken when it has, and finds it changed', async () => {
  const list = RamBlockList.create({ bitmaps: BitmapMemory.create(2 ** 22), segmentBytes: 2 ** 21 });
  const manager = fresh(list);
  const word = { words: list.bitmaps.words, index: manager.address >>> 2 };
  const progress = new Int32Array(new SharedArrayBuffer(4));
  // All that `freeze` waits by; no engine's thread would wake for anything else.
  const engine = new Worker(
    `const { parentPort, workerData: { words, index, progress } } = require('node:worker_threads');
    Atomics.store(progress, 0, 1);
    Atomics.notify(progress, 0);
    while (Atomics.load(words, index) !== -1) {}
    Atomics.store(progress, 0, 2);
    parentPort.postMessage(Atomics.wait(words, index, -1, 20_000));`,
    { eval: true, workerData: { ...word, progress } },
  );
  const woken = once(engine, 'message');
  Atomics.wait(progress, 0, 0);
  const section = { offset: 0, length: LENGTH };
  manager.register(
    {
      populate: () => {
        while (Atomics.load(progress, 0) !== 2) {}
        // It goes to sleep within this time, or the value has changed before.
        Atomics.wait(progress, 0, 2, 50);
      },
      discard: () => {},
    },
    section,
  );
  manager.populate(0, GRANULE);
  assert.match((await woken)[0], /^(ok|not-equal)$/);
  manager.freeze();
  assert.equal(manager.isPopulated(0, GRANULE), true);
  manager.thaw();
  await engine.terminate();
});

// RD-21
test('a granularity below the page size, or of a block that can be resized, is refused', () => {
  const list = RamBlockList.create({ bitmaps: BitmapMemory.create(2 ** 22), segmentBytes: 2 ** 21 });
  const add = (spec: object) => () => list.add({ name: 'vmem0', usedLength: 2 ** 21, ...spec });
  for (const spec of [
    { discardGranularity: 2048 },
    { discardGranularity: 3 * 4096 },
    { discardGranularity: 4096, hostPageSize: 8192 },
    { discardGranularity: 4096, maxLength: 2 ** 22 },
  ]) {
    assert.throws(add(spec), { code: 'DISCARD_GRANULARITY_INVALID' });
  }
  const block = add({ discardGranularity: 8192, hostPageSize: 8192 })();
  for (const [offset, length] of [
    [4096, 8192],
    [0, 4096],
    [0, 2 ** 22],
  ] as const) {
    assert.throws(() => block.discardManager!.populate(offset, length), { code: 'RAM_DISCARD_STATE' });
  }
});

test('the state goes with its block', () => {
  const list = RamBlockList.create({ bitmaps: BitmapMemory.create(2 ** 22), segmentBytes: 2 ** 21 });
  const first = list.add({ name: 'vmem0', usedLength: 2 ** 20, discardGranularity: 4096 });
  first.discardManager!.populate(0, 2 ** 20);
  list.remove(first);
  const second = list.add({ name: 'vmem1', usedLength: 2 ** 20, discardGranularity: 4096 });
  assert.equal(second.discardManager!.isDiscarded(0, 2 ** 20), true);
  assert.equal(list.add({ name: 'pc.ram', usedLength: 2 ** 20 }).discardManager, undefined);
});

// RD-11: freed bitmaps are not written any more, whoever still has the manager
test('an unplugged block takes its RamDiscardManager with it, in every thread', () => {
  const list = RamBlockList.create({ bitmaps: BitmapMemory.create(2 ** 22), segmentBytes: 2 ** 21 });
  const block = list.add({ name: 'vmem0', usedLength: LENGTH, discardGranularity: GRANULE });
  const copy = RamBlockList.attach(list.share());
  const [manager, there] = [block.discardManager!, copy.find('vmem0')!.discardManager!];
  let told = 0;
  list.subscribe({ removing: () => (told += 1) });
  there.freeze();
  assert.throws(() => list.remove(block), { code: 'RAM_DISCARD_BUSY', message: /vmem0 cannot be unplugged/ });
  assert.equal(told, 0, 'nobody hears of an unplug that is refused');
  there.thaw();
  assert.throws(() => there.thaw(), { code: 'RAM_DISCARD_STATE', message: /not frozen/ });
  manager.populate(0, GRANULE);
  list.remove(block);

  const uses = (of: RamDiscardManager): (() => unknown)[] => [
    () => of.freeze(),
    () => of.populate(GRANULE, GRANULE),
    () => of.discard(0, GRANULE),
  ];
  // Before the other thread has heard of it, and after; then the memory is somebody else's.
  for (const use of [...uses(manager), ...uses(there)]) {
    assert.throws(use, { code: 'RAM_BLOCK_UNKNOWN', message: /vmem0 was unplugged/ });
  }
  copy.update(list.share());
  list.reclaim();
  const states = Array.from({ length: 12 }, () => list.bitmaps.allocate(512));
  assert.ok(states.includes(manager.address), 'the freed state is not reused, so the test shows nothing');
  for (const use of [
    ...uses(manager),
    ...uses(there),
    () => manager.thaw(),
    () => there.thaw(),
    () => there.populatedBytes,
  ]) {
    assert.throws(use, { code: 'RAM_BLOCK_UNKNOWN' });
  }
  for (const address of states) {
    assert.ok(list.bitmaps.words.subarray(address / 4, address / 4 + 16).every((word) => word === 0));
  }
});

test('a block whose memory is being changed cannot be unplugged in the midst of that', () => {
  const list = RamBlockList.create({ bitmaps: BitmapMemory.create(2 ** 22), segmentBytes: 2 ** 21 });
  const block = list.add({ name: 'vmem0', usedLength: LENGTH, discardGranularity: GRANULE });
  let refused = 0;
  block.discardManager!.register({
    populate: () => {
      assert.throws(() => list.remove(block), { code: 'RAM_DISCARD_BUSY' });
      refused += 1;
    },
    discard: () => {},
  });
  block.discardManager!.populate(0, GRANULE);
  assert.equal(refused, 1);
  assert.deepEqual(list.blocks, [block]);
  list.remove(block);
});
