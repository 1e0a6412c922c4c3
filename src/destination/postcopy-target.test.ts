// What the kernel reports of memory that is none: threads that touch it are let go here, and nobody is asked for it.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import type { MissingPage, MissingPages } from '../dirty-log/missing-pages.js';
import { UserfaultfdMissingPages } from '../dirty-log/missing-pages-userfaultfd-node.js';
import { userfaultfdProblem } from '../dirty-log/userfaultfd-node.js';
import { BitmapMemory } from '../memory/bitmap-memory.js';
import { RamBlockList } from '../memory/ram-block-list.js';
import { PostcopyTarget } from './postcopy-target.js';

const PAGE = 4096;
const GRANULE_PAGES = 64;

/** Reads the byte at each address that it is told, once both threads have been. */
const READER = `
const { parentPort, workerData: { bytes, turns } } = require('node:worker_threads');
parentPort.on('message', ({ address, together }) => {
  Atomics.add(turns, 0, 1);
  while (Atomics.load(turns, 0) < together) {}
  parentPort.postMessage(bytes[address]);
});`;

/** Makes nobody wait. */
const nobodyWaits: MissingPages = {
  arm: () => {},
  nextFault: () => undefined,
  place: () => {},
  finish: () => {},
  abandon: () => {},
};

// RD-11, spec/algorithms.md 8.6
test('from the switch on nothing is plugged until all pages have come, or never will', async () => {
  for (const end of ['finish', 'abandon'] as const) {
    const blocks = RamBlockList.create({ bitmaps: BitmapMemory.create(2 ** 20) });
    const managers = ['vmem0', 'vmem1'].map(
      (name) => blocks.add({ name, usedLength: 4 * PAGE, discardGranularity: PAGE }).discardManager!,
    );
    const target = new PostcopyTarget({ blocks, missingPages: () => nobodyWaits });
    target.listen(() => {});
    for (const manager of managers) {
      assert.throws(() => manager.populate(0, PAGE), { code: 'RAM_DISCARD_BUSY' });
    }
    await target[end]();
    for (const manager of managers) {
      assert.equal(manager.isFrozen, false, `after ${end}`);
      manager.populate(0, PAGE);
    }
    // A second end, as a failure brings it, thaws nobody else's.
    managers[0]!.freeze();
    await target.abandon();
    assert.equal(managers[0]!.isFrozen, true);
  }
});

// RD-16
test('two threads that touch the same discarded page read zero; only memory is waited for', {
  skip: userfaultfdProblem('missing') ?? false,
}, async () => {
  const blocks = RamBlockList.create({ bitmaps: BitmapMemory.create(2 ** 20) });
  const granule = GRANULE_PAGES * PAGE;
  const block = blocks.add({ name: 'vmem', usedLength: 4 * granule, discardGranularity: granule });
  block.discardManager!.populate(granule, granule);
  const target = new PostcopyTarget({
    blocks,
    missingPages: () => new UserfaultfdMissingPages(blocks, () => {}),
  });
  const { segment, address: start } = block.extentOf(0);
  const turns = new Int32Array(new SharedArrayBuffer(4));
  const threads = [0, 1].map(() => new Worker(READER, { eval: true, workerData: { bytes: segment.bytes, turns } })) as [
    Worker,
    Worker,
  ];
  const read = async (thread: Worker, page: number, together = 0): Promise<number> => {
    thread.postMessage({ address: start + page * PAGE, together });
    return (await once(thread, 'message'))[0];
  };
  const waitedFor: MissingPage[] = [];
  let heard = (): void => {};
  const fault = new Promise<void>((resolve) => {
    heard = resolve;
  });
  try {
    target.listen(() => {
      for (let missing = target.nextFault(); missing !== undefined; missing = target.nextFault()) {
        waitedFor.push(missing);
        heard();
      }
    });
    assert.deepEqual(await Promise.all(threads.map((thread) => read(thread, 3, 2))), [0, 0]);
    // It is there now.
    assert.equal(await read(threads[0], 3), 0);
    const waiting = read(threads[1], GRANULE_PAGES + 1);
    await fault;
    assert.deepEqual(waitedFor, [{ block, page: GRANULE_PAGES + 1 }]);
    await target.finish();
    assert.equal(await waiting, 0);
  } finally {
    // A thread that the kernel holds up does not end.
    target.abandon();
    await Promise.all(threads.map((thread) => thread.terminate()));
  }
});
