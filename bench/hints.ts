// Group `hints`: the same migration with the guest's free page hints and without them (the table of QEMU's patch series of
// 2018, spec/algorithms.md 3(a)). The peer is plain precopy of the same guest in the same run; the engine is ours both times.
//
//   source: guest, balloon, engine ──unix──▶ destination, a fresh process every time, which checks what arrived
//
// Free memory is full of garbage, as in a guest that has run for long: pages that were never touched would cost a plain
// migration next to nothing. The idle guest has 128 MiB in use. The build has 2 GiB of 8 in its file cache and compilers of
// 4 to 17 MiB that come and go, 60 MB/s in all. With init-on-alloc a guest zeroes each page that it takes, and so all its
// free memory when it reports it.

import { mkdtempSync, rmSync } from 'node:fs';
import { freemem, tmpdir } from 'node:os';
import { join } from 'node:path';
import type { WorkloadOptions } from '../src/guest/index.js';
import type { Benchmark, BenchmarkGroup } from './harness.js';
import type { HintMigration, HintMigrationResult } from './hints-source.js';
import { NodeChild } from './node-child.js';

const GIB = 2 ** 30;

const SIZES = [8 * GIB, 4 * GIB, 2 * GIB, GIB];

/** Source, destination, and something for everybody else. */
const memoryNeeded = (bytes: number): number => 2 * bytes + 2 * GIB;

/** Bytes per second; runs that a minute of bench allows. */
const LINKS = [
  { name: 'unlimited', maxBandwidth: 0, runs: 3 },
  { name: '10 Gbit/s', maxBandwidth: 1.25e9, runs: 1 },
  { name: '1 Gbit/s', maxBandwidth: 125e6, runs: 1 },
] as const;

const kinds = (memoryBytes: number): Readonly<Record<string, Partial<WorkloadOptions>>> => ({
  idle: { workload: 'idle', workingSetBytes: 128 * 2 ** 20 },
  build: { workload: 'build', workingSetBytes: memoryBytes, rate: 60e6 },
});

const median = (values: readonly number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1]!;

/** One guest, and how to send it. */
class Source {
  readonly #child: NodeChild<unknown>;
  readonly #socket: string;

  private constructor(child: NodeChild<unknown>, socket: string) {
    this.#child = child;
    this.#socket = socket;
  }

  static async start(options: WorkloadOptions, socket: string): Promise<Source> {
    const child = new NodeChild<unknown>('hints-source', [JSON.stringify(options)]);
    await child.next();
    return new Source(child, socket);
  }

  async migrate(maxBandwidth: number, hinted: boolean): Promise<HintMigrationResult> {
    const uri = `unix:${this.#socket}`;
    const destination = new NodeChild<unknown>('hints-destination', [uri]);
    try {
      await destination.next();
      const order: HintMigration = { uri, maxBandwidth, downtimeLimit: 50, hinted };
      const result = (await this.#child.ask(order)) as HintMigrationResult;
      await destination.next();
      return result;
    } finally {
      await destination.close();
    }
  }

  close(): Promise<void> {
    return this.#child.close();
  }
}

async function* benchmarks(memoryBytes: number, kind: string, folder: string): AsyncGenerator<Benchmark> {
  const options: WorkloadOptions = {
    memoryBytes,
    garbage: true,
    freePageHints: true,
    ...kinds(memoryBytes)[kind],
  };
  const size = `${memoryBytes / GIB} GiB`;
  const socket = join(folder, 'socket');
  const plain = new Map<string, HintMigrationResult[]>();
  const peer = 'plain precopy';
  const source = await Source.start(options, socket);
  try {
    for (const { name: link, maxBandwidth, runs } of LINKS) {
      const results = { plain: [] as HintMigrationResult[], hinted: [] as HintMigrationResult[] };
      plain.set(link, results.plain);
      const measure = async (side: 'plain' | 'hinted'): Promise<number> => {
        const result = await source.migrate(maxBandwidth, side === 'hinted');
        results[side].push(result);
        return result.milliseconds;
      };
      yield {
        name: `${kind}, ${size}, ${link}: time`,
        unit: 'ms',
        better: 'lower',
        ours: () => measure('hinted'),
        peer: { name: peer, measure: () => measure('plain') },
        runs,
        warmUpRuns: 0,
      };
      const figure = (side: 'plain' | 'hinted', of: (result: HintMigrationResult) => number) => (): number =>
        median(results[side].map(of));
      const rows = [
        { name: 'bytes', unit: 'MiB', better: 'lower', of: ({ bytes }: HintMigrationResult) => bytes / 2 ** 20 },
        ...(kind === 'build'
          ? [
              {
                name: 'the guest meanwhile',
                unit: 'MB/s',
                better: 'higher',
                of: ({ guestRate }: HintMigrationResult) => guestRate / 1e6,
              } as const,
            ]
          : []),
      ] as const;
      for (const { name, unit, better, of } of rows) {
        yield {
          name: `${kind}, ${size}, ${link}: ${name}`,
          unit,
          better,
          ours: figure('hinted', of),
          peer: { name: peer, measure: figure('plain', of) },
          runs: 1,
          warmUpRuns: 0,
        };
      }
    }
  } finally {
    await source.close();
  }
  for (const { name: link, maxBandwidth } of LINKS) {
    // A new guest for each: this one has zeroed its garbage when it is done.
    const zeroing = await Source.start({ ...options, initOnAlloc: true }, socket);
    try {
      yield {
        name: `${kind}, ${size}, ${link}, init-on-alloc: time`,
        unit: 'ms',
        better: 'lower',
        ours: async () => (await zeroing.migrate(maxBandwidth, true)).milliseconds,
        peer: { name: peer, measure: () => median(plain.get(link)!.map(({ milliseconds }) => milliseconds)) },
        runs: 1,
        warmUpRuns: 0,
      };
    } finally {
      await zeroing.close();
    }
  }
}

async function* run(): AsyncGenerator<Benchmark> {
  const memoryBytes = SIZES.find((bytes) => freemem() > memoryNeeded(bytes));
  if (memoryBytes === undefined) {
    throw new Error(`The hint benchmarks need ${memoryNeeded(SIZES.at(-1)!) / GIB} GiB of free memory`);
  }
  const folder = mkdtempSync(join(tmpdir(), 'ramferry-bench-'));
  try {
    for (const kind of Object.keys(kinds(memoryBytes))) {
      yield* benchmarks(memoryBytes, kind, folder);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

export const group: BenchmarkGroup = { name: 'hints', run };
