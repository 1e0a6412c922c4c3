// The threads of dirty-memory-growth.test.ts: markers, which stand for vCPUs, and one drainer, which stands for the migration
// engine and the display.

import assert from 'node:assert/strict';
import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { DirtyClient, DirtyClientMask } from './dirty-memory.js';
import { RamBlockList, type SharedRamBlockList } from './ram-block-list.js';
import { ramPage } from './units.js';

export interface GrowthTask {
  readonly shared: SharedRamBlockList;
  readonly markers: number;
  /** Below `markers`: a marker, which marks pages with this remainder modulo `markers`; else the drainer. */
  readonly role: number;
  readonly flatPages: number;
  /** Byte address, in the bitmap memory, of the word that all threads work at. */
  readonly cursor: number;
}

/** Bitmaps of the flat space: what a marker marked, or what the drainer took, per client. */
export interface GrowthReport {
  readonly bitmaps: readonly Int32Array[];
  readonly operations: number;
}

const CLIENTS = Object.values(DirtyClient);

/** For this client the drainer clears the upper half of every 16 pages and the markers mark only the lower half. */
const isMarkable = (page: number, client: DirtyClient): boolean => client !== DirtyClient.code || (page & 8) === 0;

const { shared, markers, role, flatPages, cursor } = workerData as GrowthTask;
const port = parentPort as MessagePort;
const list = RamBlockList.attach(shared);
const bitmaps = CLIENTS.map(() => new Int32Array(flatPages / 32));
let operations = 0;

const random = (below: number): number => Math.floor(Math.random() * below);

const note = (page: number, client: DirtyClient): void => {
  bitmaps[client]![page >>> 5]! |= 1 << (page & 31);
};

/** Pages of the flat space that this thread knows blocks for; the blocks of this test leave no gaps. */
const knownPages = (): number => Math.max(...list.blocks.map((block) => block.ramPage + block.usedPages));

/** How many marks are made in one word before everybody moves on to the next: half of its pages. */
const MARKS_PER_WORD = 16;

/**
 * All markers sweep through memory together, each marking pages of its own that were never marked before, next to the pages
 * that the others mark and the drainer takes at the same moment: so nothing hides the loss of a mark. At the end of
 * memory, until it grows, they mark again what they had marked somewhere.
 */
const markSome = (): void => {
  const known = knownPages();
  for (let count = 0; count < 100; count += 1) {
    let word = Math.floor(Atomics.load(list.bitmaps.words, cursor >>> 2) / MARKS_PER_WORD);
    if (word * 32 < known) {
      Atomics.add(list.bitmaps.words, cursor >>> 2, 1);
    } else {
      word = random(known >>> 5);
    }
    const page = word * 32 + random(32 / markers) * markers + role;
    if (word * 32 + 32 <= known) {
      for (const client of CLIENTS.filter((each) => isMarkable(page, each))) {
        note(page, client);
        list.dirty.setPage(ramPage(page), 1 << client);
      }
    }
  }
  // Ranges may overlap those of other markers; few, so as not to hide too much.
  const first = random(known - 200);
  const count = 1 + random(200);
  list.dirty.setRange(ramPage(first), count, DirtyClientMask.migration | DirtyClientMask.vga);
  for (let page = first; page < first + count; page += 1) {
    note(page, DirtyClient.migration);
    note(page, DirtyClient.vga);
  }
};

/** Takes the marks at the place where the markers are, and somewhere else. */
const drainSome = (): void => {
  const { kernels } = list.bitmaps;
  const known = knownPages();
  const hot = Math.min(Math.floor(Atomics.load(list.bitmaps.words, cursor >>> 2) / MARKS_PER_WORD) * 32, known - 32);
  for (const page of operations % 64 === 0 ? [hot, random(known)] : [hot]) {
    const block = list.blocks.find(({ ramPage, usedPages }) => page >= ramPage && page < ramPage + usedPages)!;
    const first = Math.max(0, page - block.ramPage - random(70));
    const count = Math.min(1 + random(page === hot ? 140 : 100_000), block.usedPages - first);
    const before = kernels.countRange(block.bitmaps.send, first, count);
    const fresh = list.dirty.syncInto(block, first, count);
    // DM-13
    assert.equal(kernels.countRange(block.bitmaps.send, first, count) - before, fresh);

    for (let redraw = 0; redraw < 16; redraw += 1) {
      const snapshot = list.dirty.snapshotAndClear(ramPage(page), 1, DirtyClient.vga);
      for (let shown: number = snapshot.firstPage; shown < snapshot.firstPage + snapshot.pageCount; shown += 1) {
        if (snapshot.isDirty(ramPage(shown))) {
          note(shown, DirtyClient.vga);
        }
      }
    }

    const octet = Math.floor(page / 16) * 16 + 8;
    list.dirty.testAndClear(ramPage(octet + random(4)), 1 + random(4), DirtyClient.code);
  }
};

const act = role < markers ? markSome : drainSome;
for (let isRunning = true; isRunning; ) {
  act();
  operations += 1;
  for (let message = receiveMessageOnPort(port); message !== undefined; message = receiveMessageOnPort(port)) {
    if (message.message === 'stop') {
      isRunning = false;
    } else {
      list.update(message.message as SharedRamBlockList);
    }
  }
}
port.postMessage({ bitmaps, operations } satisfies GrowthReport);
