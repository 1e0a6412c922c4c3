import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { BitmapMemory } from './bitmap-memory.js';
import type { RamferryError } from './errors.js';
import type { ClaimantResult, ClaimantStart } from './guest-claim.test.worker.js';
import { RamBlockList } from './ram-block-list.js';

const pages = (count: number): number => count * GUEST_PAGE_SIZE;
const small = (): RamBlockList =>
  RamBlockList.create({ bitmaps: BitmapMemory.create(2 ** 24), segmentBytes: pages(256) });
const noName = (): undefined => undefined;

const codeOf = (act: () => unknown): string | undefined => {
  try {
    act();
    return undefined;
  } catch (error) {
    return (error as RamferryError).code;
  }
};

test('one has the guest, through whichever copy of its list; the others are told who and what to do', () => {
  const list = small();
  list.add({ name: 'ram', usedLength: pages(10) });
  const copies = [list, RamBlockList.attach(list.share()), RamBlockList.attach(list.share())];
  for (const [purpose, name] of [
    ['migration', 'a migration'],
    ['backgroundSnapshot', 'a background snapshot'],
    ['save', 'a save'],
    ['incoming', 'an incoming migration'],
  ] as const) {
    for (const holder of copies) {
      const claim = holder.claim(purpose);
      for (const other of copies) {
        assert.equal(other.claimedFor, purpose);
        assert.throws(() => other.claim('save'), {
          code: 'GUEST_BUSY',
          message: `A save of this guest cannot start while ${name} of the guest is under way.`,
          hint: `wait until the ${name.replace(/^an? /, '')} has ended, or cancel it`,
        });
      }
      claim.release();
      assert.deepEqual(new Set(copies.map(({ claimedFor }) => claimedFor)), new Set([undefined]));
    }
  }
});

test('a claim is released once, by whoever knows its token; an old token takes nothing from the next holder', () => {
  const list = small();
  const first = list.claim('migration');
  const copy = RamBlockList.attach(list.share());
  copy.adoptClaim(first.token).release();
  assert.equal(first.isHeld, false);
  const second = list.claim('migration');
  first.release();
  assert.throws(() => copy.adoptClaim(first.token), { code: 'CLAIM_LOST' });
  assert.throws(() => first.check(noName), { code: 'CLAIM_LOST' });
  assert.throws(() => first.seal(noName), { code: 'CLAIM_LOST' });
  assert.ok(second.isHeld);
  second.check(noName);
});

test('a claimed guest keeps its blocks: plug and unplug change nothing', () => {
  const list = small();
  const block = list.add({ name: 'ram', usedLength: pages(10) });
  const observed: string[] = [];
  list.subscribe({ added: () => observed.push('added'), removing: () => observed.push('removing') });
  const claim = RamBlockList.attach(list.share()).claim('migration');
  const before = [list.version, list.blocks, list.bitmaps.words.slice()];
  assert.throws(() => list.add({ name: 'dimm0', usedLength: pages(5) }), {
    code: 'GUEST_BUSY',
    message: 'RAM block dimm0 cannot be plugged while a migration of the guest is under way.',
  });
  assert.throws(() => list.remove(block), { code: 'GUEST_BUSY', message: /^RAM block ram cannot be unplugged while/ });
  assert.deepEqual([[list.version, list.blocks, list.bitmaps.words.slice()], observed], [before, []]);
  claim.release();
  list.remove(block);
  list.reclaim();
  assert.equal(list.add({ name: 'dimm0', usedLength: pages(5) }).ramPage, 0);
});

test('a copy that is older than the list cannot claim; brought up to date it can', () => {
  const list = small();
  const copy = RamBlockList.attach(list.share());
  list.add({ name: 'ram', usedLength: pages(10) });
  assert.throws(() => copy.claim('migration'), { code: 'BLOCK_LIST_STALE', message: /version 0, .* version 1 by now/ });
  assert.equal(list.claimedFor, undefined);
  copy.update(list.share());
  copy.claim('migration').release();
});

// DM-23
test('a resize breaks the claim by name and is whole before anybody else gets the guest', () => {
  const list = small();
  const block = list.add({ name: 'rom', usedLength: pages(10), maxLength: pages(20) });
  const copy = RamBlockList.attach(list.share());
  const claim = copy.claim('migration');
  const names = (id: number): string | undefined => copy.blocks.find((each) => each.id === id)?.name;
  claim.check(names);
  let duringChange: string | undefined;
  const { setUsedLength } = block;
  block.setUsedLength = (bytes) => {
    // The holder hears of it and lets go in the midst of the resize.
    assert.throws(() => claim.check(names), { code: 'GEOMETRY_CHANGED', message: /RAM block rom was resized/ });
    claim.release();
    duringChange = codeOf(() => list.add({ name: 'other', usedLength: pages(1) }));
    setUsedLength.call(block, bytes);
  };
  list.resize(block, pages(15));
  assert.equal(duringChange, 'GUEST_BUSY');
  assert.equal(list.claimedFor, undefined);
  list.claim('migration').release();
});

test('what refuses a resize keeps the migration alive; what is sealed refuses it', () => {
  const list = small();
  const block = list.add({ name: 'rom', usedLength: pages(10), maxLength: pages(20) });
  const claim = list.claim('migration');
  const unsubscribe = list.subscribe({
    resizing: () => {
      throw new Error('not now');
    },
  });
  assert.throws(() => list.resize(block, pages(15)), /not now/);
  claim.check(noName);
  unsubscribe();
  claim.seal(noName);
  claim.seal(noName);
  assert.throws(() => list.resize(block, pages(15)), {
    code: 'GUEST_BUSY',
    message: /^RAM block rom cannot be resized/,
  });
  claim.check(noName);
  assert.equal(block.usedPages, 10);
  claim.release();
  list.resize(block, pages(15));
});

test('who loads a guest makes its blocks; nobody else does meanwhile', () => {
  const list = small();
  const claim = list.claim('incoming');
  const block = list.changeAs(claim, () => list.add({ name: 'ram', usedLength: pages(10), maxLength: pages(20) }));
  list.changeAs(claim, () => list.resize(block, pages(20)));
  claim.check(noName);
  assert.throws(() => list.add({ name: 'dimm', usedLength: pages(1) }), { code: 'GUEST_BUSY' });
  assert.throws(() => list.resize(block, pages(10)), { code: 'GUEST_BUSY', message: /an incoming migration/ });
  claim.release();
  assert.throws(() => list.changeAs(claim, () => list.remove(block)), { code: 'CLAIM_LOST' });
  assert.deepEqual(list.blocks, [block]);
});

test('a claim or a change in the midst of a change is refused, and the list stays usable', () => {
  const list = small();
  const block = list.add({ name: 'ram', usedLength: pages(10) });
  const refused: (string | undefined)[] = [];
  const unsubscribe = list.subscribe({
    removing: () => {
      refused.push(
        codeOf(() => list.claim('save')),
        codeOf(() => list.add({ name: 'x', usedLength: pages(1) })),
      );
      throw new Error('no');
    },
  });
  const started = performance.now();
  assert.throws(() => list.remove(block), /no/);
  assert.deepEqual(refused, ['GUEST_BUSY', 'GUEST_BUSY']);
  assert.ok(performance.now() - started < 5000);
  unsubscribe();
  list.claim('save').release();
  list.remove(block);
});

test('a claim made in the midst of a plug waits for its end, and is for the list with the new block', {
  timeout: 60_000,
}, async () => {
  const over = new Int32Array(new SharedArrayBuffer(8));
  let duringPlug: string | undefined;
  const list = RamBlockList.create({
    bitmaps: BitmapMemory.create(2 ** 24),
    segmentBytes: pages(256),
    onSegment: () => {
      Atomics.store(over, 0, 1);
      Atomics.notify(over, 0);
      duringPlug = Atomics.wait(over, 1, 0, 300);
    },
  });
  const workerData: ClaimantStart = { shared: list.share(), over, version: list.version + 1 };
  const worker = new Worker(new URL('./guest-claim.test.worker.js', import.meta.url), { workerData });
  await once(worker, 'message');
  list.add({ name: 'ram', usedLength: pages(10) });
  assert.equal(duringPlug, 'timed-out', 'the guest was claimed while its list changed');
  Atomics.wait(over, 1, 0, 10_000);
  assert.equal(list.claimedFor, 'migration');
  // A thread that dies lets go of nothing; its owner can.
  await worker.terminate();
  assert.throws(() => list.claim('save'), { code: 'GUEST_BUSY' });
  list.adoptClaim().release();
  assert.throws(() => list.adoptClaim(), { code: 'CLAIM_LOST' });
  list.claim('save').release();
});

test('threads that claim, against an owner that plugs, unplugs and resizes: nobody has a guest that changes unseen', {
  timeout: 60_000,
}, async () => {
  const list = small();
  const rom = list.add({ name: 'rom', usedLength: pages(10), maxLength: pages(20) });
  const over = new Int32Array(new SharedArrayBuffer(8));
  const workerData: ClaimantStart = { shared: list.share(), over };
  const workers = [0, 1].map(
    () => new Worker(new URL('./guest-claim.test.worker.js', import.meta.url), { workerData }),
  );
  const results = Promise.all(workers.map((worker) => once(worker, 'message')));
  // Both run.
  while (Atomics.load(over, 1) < 2) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  let [changes, refusals] = [0, 0];
  for (const until = performance.now() + 1500; performance.now() < until || changes === 0 || refusals === 0; ) {
    for (let round = 0; round < 200; round += 1) {
      try {
        const dimm = list.find('dimm');
        if (round % 50 === 0) {
          list.resize(rom, pages(10 + (changes % 2)));
        } else if (dimm === undefined) {
          list.add({ name: 'dimm', usedLength: pages(5) });
        } else {
          list.remove(dimm);
          list.reclaim();
        }
        changes += 1;
      } catch (error) {
        assert.equal((error as RamferryError).code, 'GUEST_BUSY');
        refusals += 1;
      }
    }
    await new Promise((resolve) => setImmediate(resolve));
  }
  Atomics.store(over, 0, 1);
  const ends = (await results).map(([result]) => result as ClaimantResult);
  assert.deepEqual(
    ends.map(({ violations }) => violations),
    [0, 0],
  );
  assert.ok(
    ends.some(({ claims }) => claims > 0),
    'nobody had the guest',
  );
  assert.equal(list.claimedFor, undefined);
});
