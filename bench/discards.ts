// Group `discards`: what a region costs that is mostly not plugged. A workload guest with 256 MiB plugged of a region of 64 GiB,
// migrated to another process, against the same guest with a region that is plugged all over; and QEMU's own save of a
// stopped guest with a region of 16 GiB, plugged not at all, against ours of a guest like it.
//
//   migrate     from the start of the migration until the destination has confirmed
//   exclude     the exclusion by itself, of 64 GiB in blocks of 2 MiB, every other one plugged

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { WorkloadGuest } from '../src/guest/index.js';
import { RamBlockList } from '../src/memory/index.js';
import { Migration } from '../src/migration/migration.js';
import { excludeDiscarded } from '../src/source/discarded-pages.js';
import { SendBitmap } from '../src/source/send-bitmap.js';
import { Lab } from '../test/interop/lab.js';
import { MIB, SparseDestination, sparseOptions, startSparseGuest } from '../test/sparse-guest.js';
import { openToolbox } from '../test/toolbox/toolbox.js';
import type { Benchmark, BenchmarkGroup, Measure } from './harness.js';

const PLUGGED = 256 * MIB;
const REGION = 2 ** 36;
const BLOCK = 2 * MIB;

/** A migration to a fresh process; milliseconds. */
const migrate = async (regionBytes: number): Promise<number> => {
  const options = sparseOptions(regionBytes, PLUGGED);
  const source = await startSparseGuest(options);
  const destination = await SparseDestination.start(options);
  try {
    const guest = { kind: 'workload', shared: source.share() } as const;
    const { report, error } = await new Migration({ guest, uri: destination.uri }).ended;
    if (error !== undefined) {
      throw error;
    }
    return report['total-time'];
  } finally {
    destination.close();
    await source.shutdown();
  }
};

const exclusion = (): Measure => {
  const blocks = RamBlockList.create();
  const block = blocks.add({ name: 'vmem0', usedLength: REGION, discardGranularity: BLOCK });
  for (let offset = 0; offset < REGION; offset += 2 * BLOCK) {
    block.discardManager!.populate(offset, BLOCK);
  }
  return () => {
    const send = new SendBitmap({ blocks, log: undefined, clearBitmapShift: undefined, trace: {} });
    const start = performance.now();
    excludeDiscarded(send, blocks);
    return performance.now() - start;
  };
};

/** Saves of a stopped guest with an empty region of 16 GiB into a file; milliseconds. */
class Saves {
  readonly #file: string;

  constructor(folder: string) {
    this.#file = join(folder, 'saved.mig');
  }

  async ours(): Promise<number> {
    const guest = WorkloadGuest.create({ memoryBytes: 16 * MIB, virtioMem: { regionBytes: 2 ** 34 } });
    const { report, error } = await new Migration({
      guest: { kind: 'workload', shared: guest.share() },
      uri: `file:${this.#file}`,
      returnPath: false,
    }).ended;
    if (error !== undefined) {
      throw error;
    }
    return report['total-time'];
  }

  async qemu(lab: Lab): Promise<number> {
    const guest = await lab.startGuest({
      memory: 16,
      extraArguments: [
        ...['-m', '16M,maxmem=32G', '-object', 'memory-backend-ram,id=vmem0,size=16G'],
        ...['-device', 'virtio-mem-pci,memdev=vmem0'],
      ],
    });
    const info = await guest.saveStream(this.#file);
    await guest.qemu.quit();
    return info['total-time']!;
  }
}

export const group: BenchmarkGroup = {
  name: 'discards',
  async *run(): AsyncIterable<Benchmark> {
    yield {
      name: 'migrate 256 MiB plugged of 64 GiB',
      unit: 'ms',
      better: 'lower',
      ours: () => migrate(REGION),
      peer: { name: 'ours, a region of 256 MiB', measure: () => migrate(PLUGGED) },
      runs: 5,
      warmUpRuns: 1,
    };
    yield {
      name: 'exclude half of 64 GiB',
      unit: 'ms',
      better: 'lower',
      ours: exclusion(),
      peer: { missing: 'nobody says' },
    };
    const folder = mkdtempSync(join(tmpdir(), 'ramferry-bench-'));
    const saves = new Saves(folder);
    const toolbox = openToolbox();
    const lab = 'missing' in toolbox ? undefined : new Lab(toolbox);
    try {
      yield {
        name: 'save an empty region of 16 GiB',
        unit: 'ms',
        better: 'lower',
        ours: () => saves.ours(),
        peer: lab === undefined ? { missing: 'no QEMU' } : { name: 'QEMU, total-time', measure: () => saves.qemu(lab) },
        runs: 5,
        warmUpRuns: 1,
      };
    } finally {
      await lab?.close();
      rmSync(folder, { recursive: true });
    }
  },
};
