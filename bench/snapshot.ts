// Group `snapshot`: what the two protectors of background snapshots cost, one beside the other; and how long a guest that
// writes as fast as one thread can stands still for a snapshot, against stopping it for the whole save.

import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import {
  allocateStoreBarrier,
  allocateWriteProtect,
  StoreBarrierProtector,
  type StoreBarrierShared,
  type WriteProtector,
} from '../src/dirty-log/index.js';
import { userfaultfdProblem } from '../src/dirty-log/userfaultfd-node.js';
import { UserfaultfdProtector } from '../src/dirty-log/write-protect-userfaultfd-node.js';
import { WorkloadGuest } from '../src/guest/workload/workload-guest-node.js';
import { adviseHugePages } from '../src/memory/huge-pages-node.js';
import { RamBlockList } from '../src/memory/index.js';
import { Migration } from '../src/migration/migration.js';
import type { ProtectorKind } from '../src/migration/source-messages.js';
import type { Benchmark, BenchmarkGroup } from './harness.js';
import type { StorerData } from './snapshot-storer.js';

const GIB = 2 ** 30;
const RUNS = { runs: 5, warmUpRuns: 1 };

/** With a guest at full speed beside it, whose state differs more than runs do. */
const GUEST_RUNS = { runs: 3, warmUpRuns: 1 };

/** Pages that are stored to while nobody else saves any. */
const STORES = 20_000;

const missing = userfaultfdProblem();

/** What one protector costs, without a file: in milliseconds, and microseconds for each first store. */
interface Costs {
  readonly arm: number;
  readonly protect: number;
  readonly store: number;
  readonly finish: number;
}

/** A guest of 1 GiB, all of it present, and whoever protects it. */
class Protected {
  readonly #blocks = RamBlockList.create({ onSegment: adviseHugePages });
  readonly #block = this.#blocks.add({ name: 'ram', usedLength: GIB });
  readonly #barrier: StoreBarrierShared | undefined;
  readonly #protector: WriteProtector;

  constructor(kind: ProtectorKind) {
    for (const { segment, address, pageCount } of this.#block.extents) {
      for (let page = 0; page < pageCount; page += 1) {
        segment.words[(address + page * 4096) / 4] = 1;
      }
    }
    if (kind === 'store-barrier') {
      const protection = allocateWriteProtect(1);
      this.#barrier = allocateStoreBarrier('unconditional', 1, protection);
      this.#protector = new StoreBarrierProtector({ ...this.#barrier, protection }, this.#blocks);
    } else {
      this.#protector = new UserfaultfdProtector(this.#blocks);
    }
  }

  async measure(): Promise<Costs> {
    const { kernels } = this.#blocks.bitmaps;
    kernels.setRange(this.#block.bitmaps.send, 0, this.#block.usedPages);
    const go = new Int32Array(new SharedArrayBuffer(4));
    const workerData: StorerData = { blocks: this.#blocks.share(), barrier: this.#barrier, stores: STORES, go };
    const storer = new Worker(new URL('./snapshot-storer.js', import.meta.url), { workerData });
    await new Promise((resolve) => storer.once('message', resolve));
    let stored: number | undefined;
    storer.on('message', (milliseconds: number) => {
      stored = milliseconds;
    });

    const marks = [performance.now()];
    this.#protector.arm();
    marks.push(performance.now());
    this.#protector.protect();
    marks.push(performance.now());
    Atomics.store(go, 0, 1);
    Atomics.notify(go, 0);
    const pages = new Int32Array(this.#block.usedPages);
    for (let idle = 0; stored === undefined; ) {
      const urgent = this.#protector.nextUrgent();
      if (urgent === undefined) {
        // The answer comes by the event loop.
        idle += 1;
        await (idle % 1000 === 0 ? new Promise(setImmediate) : undefined);
        continue;
      }
      const { block, extent, firstPage, pageCount } = urgent;
      for (let index = 0; index < pageCount; index += 1) {
        pages[index] = firstPage + index;
      }
      this.#protector.release({ block, extent, pages, count: pageCount });
    }
    const finished = performance.now();
    this.#protector.stop();
    const finish = performance.now() - finished;
    await storer.terminate();
    return { arm: marks[1]! - marks[0]!, protect: marks[2]! - marks[1]!, store: (stored * 1000) / STORES, finish };
  }
}

const costNames: Readonly<Record<keyof Costs, string>> = {
  arm: 'arm while the guest runs, 1 GiB',
  protect: 'protect with the guest stopped, 1 GiB',
  store: 'first store to a page, nothing written',
  finish: 'lift what is left, 1 GiB',
};

async function* protectorRows(): AsyncGenerator<Benchmark> {
  const ours = new Protected('store-barrier');
  const theirs = missing === undefined ? new Protected('userfaultfd') : undefined;
  for (const [cost, name] of Object.entries(costNames) as [keyof Costs, string][]) {
    yield {
      name,
      unit: cost === 'store' ? 'us' : 'ms',
      better: 'lower',
      ours: async () => (await ours.measure())[cost],
      peer:
        theirs === undefined
          ? { missing: missing! }
          : { name: 'userfaultfd', measure: async () => (await theirs.measure())[cost] },
      ...RUNS,
    };
  }
}

class BusyGuest {
  readonly guest: WorkloadGuest;
  readonly #path: string;

  constructor(bytes: number, folder: string) {
    this.guest = WorkloadGuest.create({ memoryBytes: bytes, writers: 1 });
    this.#path = join(folder, 'guest');
  }

  async #migrate(backgroundSnapshot?: { readonly protector: ProtectorKind }): Promise<number> {
    const { report, error } = await new Migration({
      guest: { kind: 'workload', shared: this.guest.share() },
      uri: `file:${this.#path}`,
      mappedRam: {},
      ...(backgroundSnapshot !== undefined && { backgroundSnapshot }),
    }).ended;
    rmSync(this.#path, { force: true });
    if (error !== undefined) {
      throw error;
    }
    const { stopMs, syncMs, ramMs, deviceMs, ackMs } = report.ramferry.downtimeBreakdown!;
    return stopMs + syncMs + ramMs + deviceMs + ackMs;
  }

  /** Milliseconds that the guest stood still. */
  snapshot(protector: ProtectorKind): Promise<number> {
    return this.#migrate({ protector });
  }

  /** The same for a guest that is stopped, saved and resumed. */
  async stopAndSave(): Promise<number> {
    const started = performance.now();
    await this.guest.stop();
    await this.#migrate();
    await this.guest.resume();
    return performance.now() - started;
  }

  /** GB/s that the guest writes. */
  async throughput(milliseconds = 1500): Promise<number> {
    const before = this.guest.counters().pagesWritten;
    const started = performance.now();
    await sleep(milliseconds);
    return ((this.guest.counters().pagesWritten - before) * 4096) / (performance.now() - started) / 1e6;
  }
}

async function* guestRows(gibibytes: number, folder: string): AsyncGenerator<Benchmark> {
  const busy = new BusyGuest(gibibytes * GIB, folder);
  await busy.guest.start();
  // Before the first one, since what a snapshot might leave behind, such as split huge pages, stays.
  await busy.throughput();
  const fresh = await busy.throughput(3000);
  try {
    for (const protector of ['store-barrier', 'userfaultfd'] as const) {
      if (protector === 'userfaultfd' && missing !== undefined) {
        continue;
      }
      yield {
        name: `pause, ${protector}, ${gibibytes} GiB`,
        unit: 'ms',
        better: 'lower',
        ours: () => busy.snapshot(protector),
        peer: { name: 'stop and save', measure: () => busy.stopAndSave() },
        ...GUEST_RUNS,
      };
      yield {
        name: `guest writes after it, ${protector}, ${gibibytes} GiB`,
        unit: 'GB/s',
        better: 'higher',
        ours: async () => {
          await busy.snapshot(protector);
          return busy.throughput();
        },
        peer: { name: 'before any snapshot', measure: () => fresh },
        ...GUEST_RUNS,
      };
    }
  } finally {
    await busy.guest.shutdown();
  }
}

export const group: BenchmarkGroup = {
  name: 'snapshot',
  async *run() {
    yield* protectorRows();
    const folder = mkdtempSync('/dev/shm/ramferry-bench-');
    process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
    for (const gibibytes of [1, 4]) {
      yield* guestRows(gibibytes, folder);
    }
  },
};
