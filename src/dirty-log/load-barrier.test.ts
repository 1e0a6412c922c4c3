// The load barrier: interleavings of a guest thread's wait with the placing of pages, on the real reader's end and the real
// engine's end; and what each kind of access does about a page that never comes.
//
//   the guest thread   isThere: load, load │ announce │ read `arrived` │ isThere │ sleep or go on: reads both halves of the page
//   the engine         first half │ second half │ received bit │ waiting? wake

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { withAtomicSteps } from '../../test/atomic-steps.js';
import { explore, type Schedule } from '../../test/schedules.js';
import { BitmapMemory } from '../memory/bitmap-memory.js';
import { RamBlockList } from '../memory/ram-block-list.js';
import { allocateLoadBarrier, areMissingPages, LoadControl } from './load-barrier.js';
import { LoadBarrierReader } from './load-barrier-reader.js';
import { type ArrivedPages, noteReceived, ZERO_PAGE } from './missing-pages.js';
import { LoadBarrier } from './missing-pages-load-barrier.js';
import { allocateStoreBarrier } from './store-barrier.js';
import { attachStoreBarrier } from './store-barrier-writer.js';

const PAGE = 4096;

const setUp = () => {
  const blocks = RamBlockList.create({ bitmaps: BitmapMemory.create(4 * 2 ** 20), segmentBytes: 2 ** 18 });
  const block = blocks.add({ name: 'ram', usedLength: 8 * PAGE });
  const loads = allocateLoadBarrier(1);
  const shared = { ...allocateStoreBarrier('unconditional', 1, undefined, loads), loads };
  return { blocks, block, loads, shared, barrier: new LoadBarrier(shared, blocks) };
};

const arrived = ({ block }: ReturnType<typeof setUp>, page: number, value: number): ArrivedPages => ({
  block,
  extent: block.extents[0]!,
  pages: Int32Array.of(page),
  contents: Int32Array.of(value === 0 ? ZERO_PAGE : 0),
  count: 1,
  bytes: new Uint8Array(PAGE).fill(value),
});

const mutants = ['bit before content', 'wakes before the bit', 'none'] as const;

/** A thread that wants page 3 while it comes; throws for a torn page and for a wake-up that was missed. */
const race = async (schedule: Schedule, mutant: (typeof mutants)[number]): Promise<void> => {
  const world = setUp();
  const { blocks, block, loads, barrier } = world;
  const { segment, address } = block.extents[0]!;
  const control = new Int32Array(loads.control);
  barrier.arm(() => {});
  const pages = arrived(world, 3, 9);
  const at = address + 3 * PAGE;
  const wake = (): void => {
    if (control[LoadControl.waiting]! > 0) {
      control[LoadControl.arrived]! += 1;
    }
  };
  const steps = [
    () => segment.bytes.fill(9, at, at + 2048),
    () => segment.bytes.fill(9, at + 2048, at + PAGE),
    () => noteReceived(blocks.bitmaps.words, pages),
    wake,
  ];
  if (mutant === 'bit before content') {
    steps.unshift(...steps.splice(2, 1));
  } else if (mutant === 'wakes before the bit') {
    steps.splice(2, 0, ...steps.splice(3, 1));
  }
  const goOn = (): void => {
    while (steps.length > 0 && schedule.choose(2) === 1) {
      steps.shift()!();
    }
  };
  class Thread extends LoadBarrierReader {
    protected override sleep(seen: number): void {
      goOn();
      while (control[LoadControl.arrived] === seen) {
        assert.ok(steps.length > 0, 'nobody wakes the thread');
        steps.shift()!();
      }
    }
  }
  const thread = new Thread(loads, 0, blocks.bitmaps);
  withAtomicSteps([loads.control, blocks.bitmaps.memory.buffer as unknown as SharedArrayBuffer], goOn, () => {
    thread.beforeAccess(block, 3);
  });
  assert.deepEqual([segment.bytes[at], segment.bytes[at + PAGE - 1]], [9, 9], 'a part of the page is not there');
  barrier.finish();
};

// TS-1's counterpart for loads: content first, bit second, waiters third
test('a page is there as a whole or not at all, and no wake-up is missed, in every interleaving', async () => {
  const count = await explore((schedule) => race(schedule, 'none'));
  assert.ok(count > 100, `${count} schedules`);
});

for (const mutant of mutants.slice(0, 2)) {
  test(`the schedules find an engine that does it in the wrong order: ${mutant}`, async () => {
    await assert.rejects(explore((schedule) => race(schedule, mutant)));
  });
}

// TS-1's counterpart for loads, on the engine's own end
test('whoever waits for a page is woken when it is placed, and nobody else makes the engine wake', () => {
  const world = setUp();
  const { blocks, block, loads, barrier } = world;
  const control = new Int32Array(loads.control);
  barrier.arm(() => {});
  barrier.place(arrived(world, 1, 4));
  assert.equal(control[LoadControl.arrived], 0, 'nobody waits yet');
  let slept = 0;
  class Thread extends LoadBarrierReader {
    protected override sleep(seen: number): void {
      slept += 1;
      assert.deepEqual(barrier.nextFault(), { block, page: 3 });
      barrier.place(arrived(world, 3, 9));
      assert.notEqual(control[LoadControl.arrived], seen, 'nobody wakes the thread');
    }
  }
  new Thread(loads, 0, blocks.bitmaps).beforeAccess(block, 3);
  assert.deepEqual([slept, block.read(3 * PAGE, 1)[0], control[LoadControl.waiting]], [1, 9, 0]);
  barrier.finish();
});

test('the last page wakes who waits for it, and so does the end of what comes', () => {
  const world = setUp();
  const { blocks, block, loads, barrier } = world;
  const control = new Int32Array(loads.control);
  for (const end of [() => barrier.finish(), () => barrier.abandon()]) {
    barrier.arm(() => {});
    blocks.bitmaps.kernels.testAndClearRange(block.bitmaps.received, 0, 8);
    class Thread extends LoadBarrierReader {
      protected override sleep(seen: number): void {
        end();
        assert.notEqual(control[LoadControl.arrived], seen, 'nobody wakes the thread');
      }
    }
    const thread = new Thread(loads, 0, blocks.bitmaps);
    try {
      thread.beforeAccess(block, 3);
    } catch (error) {
      assert.equal((error as { code?: string }).code, 'GUEST_MEMORY_LOST');
    }
  }
});

// PC-3: a page that was sent in precopy, discarded, and is zero by now
test('a zero page that comes takes the place of what was there', () => {
  const world = setUp();
  const { block, barrier } = world;
  block.write(2 * PAGE, new Uint8Array(3 * PAGE).fill(5));
  barrier.arm(() => {});
  barrier.place(arrived(world, 3, 0));
  assert.ok(block.read(3 * PAGE, PAGE).every((byte) => byte === 0));
  assert.ok([...block.read(2 * PAGE, PAGE), ...block.read(4 * PAGE, PAGE)].every((byte) => byte === 5));
  barrier.finish();
});

test('loads and stores alike wait for a page; what never comes ends the thread', () => {
  const world = setUp();
  const { blocks, block, loads, shared, barrier } = world;
  barrier.arm(() => {});
  const thread = attachStoreBarrier(shared, 0, blocks.bitmaps);
  thread.unpark();
  barrier.place(arrived(world, 2, 7));
  thread.beforeLoad(block, 2);
  thread.beforeStore(block, 2);
  assert.equal(block.read(2 * PAGE, 1)[0], 7);
  barrier.abandon();
  assert.ok(areMissingPages(loads));
  assert.throws(() => thread.beforeLoad(block, 3), { code: 'GUEST_MEMORY_LOST', value: 3 });
  assert.throws(() => thread.beforeStore(block, 4), { code: 'GUEST_MEMORY_LOST', value: 4 });
});

test('at the end what never came is zero, whatever was there before, and nobody asks any more', () => {
  const world = setUp();
  const { blocks, block, loads, shared, barrier } = world;
  block.write(5 * PAGE, Uint8Array.of(1));
  barrier.arm(() => {});
  const thread = attachStoreBarrier(shared, 0, blocks.bitmaps);
  thread.unpark();
  barrier.finish();
  thread.beforeLoad(block, 5);
  assert.equal(block.read(5 * PAGE, 1)[0], 0);
  assert.equal(areMissingPages(loads), false);
  assert.equal(blocks.bitmaps.kernels.countRange(block.bitmaps.received, 0, 8), 8);
});
