// Dirty memory grows from 64 MiB to 64 GiB of address space in 200 hot-plugs while four threads mark pages for all clients and
// a fifth drains them. Exact to the bit: at the end, what was marked is what was drained or is still dirty.
//
//   markers ──▶ private bitmaps M            dirty memory D ──▶ drainer: send bitmaps S, display snapshots V
//
//   migration: D | S == M        display: D | V == M        translated code: D == M (only pages beside the marks are cleared)

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { DirtyClient } from './dirty-memory.js';
import type { GrowthReport, GrowthTask } from './dirty-memory-growth.test.worker.js';
import type { RamBlock } from './ram-block.js';
import { RamBlockList } from './ram-block-list.js';

const MIB = 2 ** 20;
const START_MIB = 64;
const END_MIB = 64 * 1024;
const PLUGS = 200;
const MARKERS = 4;
const DURATION_MS = 10_000;

const CLIENTS = Object.values(DirtyClient);

// DM-1, DM-2, DM-5, DM-12, DM-14, TS-5, TS-6
test('200 hot-plugs under four marking threads: no mark is lost, none invented, no bitmap block moves', async (t) => {
  const list = RamBlockList.create();

  /** A new block is dirty for everyone; taking that away before any thread knows the block leaves the marks alone. */
  const plug = (mebibytes: number): RamBlock => {
    const block = list.add({ name: `dimm${list.blocks.length}`, usedLength: mebibytes * MIB });
    for (const client of CLIENTS) {
      assert.ok(list.dirty.allDirty(block.ramPage, block.usedPages, client));
      list.dirty.testAndClear(block.ramPage, block.usedPages, client);
    }
    return block;
  };

  plug(START_MIB);
  const flatPages = (END_MIB * MIB) / GUEST_PAGE_SIZE;
  const cursor = list.bitmaps.allocate(32);
  const shared = list.share();
  const workers = Array.from(
    { length: MARKERS + 1 },
    (_, role) =>
      new Worker(new URL('./dirty-memory-growth.test.worker.js', import.meta.url), {
        workerData: { shared, markers: MARKERS, role, cursor, flatPages } satisfies GrowthTask,
      }),
  );
  t.after(() => Promise.all(workers.map((worker) => worker.terminate())));
  const reports = workers.map(async (worker) => (await once(worker, 'message'))[0] as GrowthReport);

  const started = performance.now();
  let addresses = CLIENTS.map((client) => list.dirty.blockAddresses(client));
  for (let count = 1, plugged = START_MIB; count <= PLUGS; count += 1) {
    await setTimeout(started + (count * DURATION_MS) / PLUGS - performance.now());
    const size = Math.round((END_MIB - plugged) / (PLUGS - count + 1));
    plug(size);
    plugged += size;
    const grown = CLIENTS.map((client) => list.dirty.blockAddresses(client));
    for (const client of CLIENTS) {
      assert.deepEqual(grown[client]!.slice(0, addresses[client]!.length), addresses[client], 'DM-2');
    }
    addresses = grown;
    const description = list.share();
    for (const worker of workers) {
      worker.postMessage(description);
    }
  }
  for (const worker of workers) {
    worker.postMessage('stop');
  }
  const finished = await Promise.all(reports);
  const drained = finished.pop()!;

  assert.equal(list.blocks.length, PLUGS + 1);
  assert.equal(list.dirty.blockCount, END_MIB / 8192);
  const { words } = list.bitmaps;
  let marks = 0;
  for (const block of list.blocks) {
    for (let page = 0; page < block.usedPages; page += 32) {
      const flat = block.ramPage + page;
      for (const client of CLIENTS) {
        const marked = finished.reduce((bits, { bitmaps }) => bits | bitmaps[client]![flat >>> 5]!, 0);
        const dirty = words[addresses[client]![flat >>> 21]! / 4 + ((flat & (2 ** 21 - 1)) >>> 5)]!;
        const taken =
          client === DirtyClient.migration
            ? words[block.bitmaps.send / 4 + (page >>> 5)]!
            : drained.bitmaps[client]![flat >>> 5]!;
        if ((dirty | taken) !== marked) {
          assert.fail(`client ${client}, ram pages from ${flat}: marked ${marked}, dirty ${dirty}, taken ${taken}`);
        }
        marks += marked === 0 ? 0 : 1;
      }
    }
  }
  // The comparison means something only if there was something to compare, in every part of the memory.
  const untouched = list.blocks.filter(({ ramPage, usedPages }) =>
    finished.some(({ bitmaps }) =>
      bitmaps[0]!.subarray(ramPage >>> 5, (ramPage + usedPages) >>> 5).every((word) => word === 0),
    ),
  );
  assert.ok(untouched.length < PLUGS / 10, `${untouched.length} blocks were not marked by every thread`);
  assert.ok(marks > 10_000, `${marks} words were marked`);
  assert.ok(drained.operations > 1000, `${drained.operations} drains`);
});
