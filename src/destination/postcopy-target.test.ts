// What the kernel reports of memory that is none: threads that touch it are let go here, and nobody is asked for it.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import type { MissingPage } from '../dirty-log/missing-pages.js';
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
