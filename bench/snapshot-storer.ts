// A guest thread of the snapshot benchmarks: stores once to each of so many pages, in the order of a permutation, and
// says how long that took.

import { parentPort, workerData } from 'node:worker_threads';
import { attachStoreBarrier, type StoreBarrierShared } from '../src/dirty-log/index.js';
import { RamBlockList, type SharedRamBlockList } from '../src/memory/index.js';

export interface StorerData {
  readonly blocks: SharedRamBlockList;
  /** Undefined: stores are not announced. */
  readonly barrier: StoreBarrierShared | undefined;
  readonly stores: number;
  /** 1 to begin. */
  readonly go: Int32Array;
}

const { blocks: shared, barrier: sharedBarrier, stores, go } = workerData as StorerData;
const blocks = RamBlockList.attach(shared);
const block = blocks.blocks[0]!;
const barrier = sharedBarrier && attachStoreBarrier(sharedBarrier, 0, blocks.bitmaps);
parentPort!.postMessage('ready');
Atomics.wait(go, 0, 0);
barrier?.unpark();
const started = performance.now();
for (let index = 0; index < stores; index += 1) {
  // Any odd stride is a permutation of a power of two.
  const page = Math.imul(index, 7919) & (block.usedPages - 1);
  const { segment, address, firstPage } = block.extentOf(page);
  barrier?.beforeStore(block, page);
  segment.words[(address + (page - firstPage) * 4096) / 4]! += 1;
}
const milliseconds = performance.now() - started;
barrier?.park();
parentPort!.postMessage(milliseconds);
