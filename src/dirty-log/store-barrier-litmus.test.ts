// The litmus test of spec/algorithms.md 14.2 with two real threads and the real barrier. Its question is what a processor
// does with a store, a mark, a clear and a read; no schedule on one thread can answer that. This file is also the
// writer thread.
//
//   round   engine                                       writer
//                                                        mark, and know it, if filtered
//           page = old; log.sync: mark is in SNAP
//        ───────────────────────────── both go ─────────────────────────────
//           log.clear; copy = page                       page = new; mark; safepoint
//        ──────────────────────────── both done ────────────────────────────
//           LOST if copy is old and REMOTE has no mark

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { RamBlockList, type SharedRamBlockList } from '../memory/index.js';
import { allocateStoreBarrier, type StoreBarrierShared, type StoreBarrierVariant } from './store-barrier.js';
import { StoreBarrierLog } from './store-barrier-log.js';
import { attachStoreBarrier } from './store-barrier-writer.js';

/** What the writer does: what it should, or a mistake that shows that the test would see a lost write. */
type Order = 'store, mark' | 'mark, store';

interface LitmusData {
  readonly blocks: SharedRamBlockList;
  readonly barrier: StoreBarrierShared;
  readonly control: SharedArrayBuffer;
  readonly order: Order;
}

// Words of the control buffer, each in a cache line of its own.
const GO = 0;
const PREPARE = 16;
const READY = 32;
const DONE = 48;
const QUIT = -1;
/** A page's content; at the far end, one line for each page of the block. */
const content = (page: number): number => 80 + 16 * page;
const PAGES = 64;

/** Different delays let the race fall on every instant of the other thread's work. */
const dawdle = (words: Int32Array, index: number, random: number, mask: number): void => {
  for (let i = (random >>> 8) & mask; i > 0; i -= 1) {
    words[index] = i;
  }
};

/** Waits for one of two values: spins, because the race wants both threads awake, but not against a thread that is not. */
const awaitWord = (words: Int32Array, index: number, wanted: number): number => {
  for (let spin = 1; ; spin += 1) {
    const value = Atomics.load(words, index);
    if (value === wanted || value === QUIT) {
      return value;
    }
    if (spin % 5000 === 0) {
      Atomics.wait(words, index, value, 0.05);
    }
  }
};

const nextRandom = (random: number): number => (Math.imul(random, 1664525) + 1013904223) | 0;

const runWriter = ({ blocks, barrier, control, order }: LitmusData): void => {
  const words = new Int32Array(control);
  const list = RamBlockList.attach(blocks);
  const block = list.blocks[0]!;
  const writer = attachStoreBarrier(barrier, 0, list.bitmaps);
  writer.unpark();
  let random = 1;
  for (let round = 1; ; round += 1) {
    const page = round % PAGES;
    // The engine may still be clearing for the last round. Then comes the mark that this round's clear will remove.
    while (Atomics.load(words, PREPARE) === round - 1) {
      writer.safepoint();
    }
    writer.mark(block, page);
    Atomics.store(words, READY, round);
    if (awaitWord(words, GO, round) === QUIT) {
      writer.park();
      return;
    }
    random = nextRandom(random);
    dawdle(words, 3, random, 63);
    if ((random & 64) !== 0) {
      // Otherwise a filtered clear, which waits for the next safepoint, would always read the new page.
      writer.safepoint();
    }
    if (order === 'store, mark') {
      words[content(page)] = round;
      writer.mark(block, page);
    } else {
      writer.mark(block, page);
      Atomics.wait(words, GO, round, 0.3);
      words[content(page)] = round;
    }
    writer.safepoint();
    Atomics.store(words, DONE, round);
  }
};

const litmus = async (
  variant: StoreBarrierVariant,
  order: Order,
  milliseconds: number,
): Promise<{ rounds: number; lost: number; raced: number }> => {
  const blocks = RamBlockList.create();
  const block = blocks.add({ name: 'pc.ram', usedLength: PAGES * 4096 });
  const barrier = allocateStoreBarrier(variant, 1);
  const control = new SharedArrayBuffer(4 * content(PAGES));
  const words = new Int32Array(control);
  const log = new StoreBarrierLog(barrier, blocks);
  log.start();
  const data: LitmusData = { blocks: blocks.share(), barrier, control, order };
  const thread = new Worker(new URL(import.meta.url), { workerData: data });
  await once(thread, 'online');

  const { kernels } = blocks.bitmaps;
  const deadline = performance.now() + milliseconds;
  let [rounds, lost, raced, random] = [0, 0, 0, 7];
  while (performance.now() < deadline && (order === 'store, mark' || lost === 0)) {
    // One lost write is all that the mistake has to show.
    for (let burst = 0; burst < 100 && (order === 'store, mark' || lost === 0); burst += 1) {
      const round = rounds + 1;
      const page = round % PAGES;
      Atomics.store(words, PREPARE, round);
      awaitWord(words, READY, round);
      log.sync(block, false);
      words[content(page)] = 0;
      Atomics.store(words, GO, round);
      random = nextRandom(random);
      if (order === 'store, mark') {
        dawdle(words, 67, random, 255);
      } else {
        Atomics.wait(words, GO, round, ((random >>> 8) & 7) * 0.05);
      }
      log.clear(block, 0, PAGES);
      const copy = words[content(page)];
      awaitWord(words, DONE, round);
      raced += copy === 0 ? 1 : 0;
      lost += copy === 0 && kernels.countRange(block.bitmaps.remote, page, 1) === 0 ? 1 : 0;
      rounds += 1;
    }
  }
  Atomics.store(words, GO, QUIT);
  Atomics.store(words, PREPARE, QUIT);
  await once(thread, 'exit');
  log.awaitParked();
  return { rounds, lost, raced };
};

if (isMainThread) {
  const { RAMFERRY_SLOW } = process.env;
  const milliseconds = RAMFERRY_SLOW === '1' ? 60_000 : 1000;
  for (const variant of ['unconditional', 'filtered'] as const) {
    // G-1, TS-10, TS-13, TS-14
    test(`litmus: the ${variant} barrier loses no store`, async (t) => {
      const { rounds, lost, raced } = await litmus(variant, 'store, mark', milliseconds);
      t.diagnostic(`${rounds} rounds, in ${raced} of them the engine read the old page`);
      assert.ok(rounds >= 100);
      assert.equal(lost, 0);
    });
  }
  // TS-1
  test('litmus: a mark before its store is caught', async (t) => {
    const { rounds, lost } = await litmus('unconditional', 'mark, store', 10_000);
    t.diagnostic(`${lost} lost in ${rounds} rounds`);
    assert.ok(lost > 0);
  });
} else {
  runWriter(workerData as LitmusData);
}
