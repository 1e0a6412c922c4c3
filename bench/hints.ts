// Group `hints`: the same migration with the guest's free page hints and without them (the table of QEMU's patch series of
// 2018, spec/algorithms.md 3(a)). The peer is plain precopy of the same guest in the same run; the engine is ours both times.
//
//   source: guest, balloon, engine ──unix──▶ destination, which checks what arrived
//
// The source's process is new for each migration, so that every guest is in the same state. Free memory is full of garbage, as
// in a guest that has run for long: pages that were never touched would cost a plain migration next to nothing.
//
//   idle      has 128 MiB in use
//   build     has a quarter of its memory in its file cache, and two compilers of 4 to 17 MiB that come and go, 60 MB/s in all
//   flat out  a build of 512 MiB whose two threads never wait: the engine, the balloon and the destination take their cores
//
// With init-on-alloc a guest zeroes each page that it takes, and so all its free memory when it reports it.

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

interface Link {
  readonly name: string;
  /** Bytes per second, 0 for unlimited. */
  readonly maxBandwidth: number;
  /** As many as a few minutes of bench allow. */
  readonly runs: number;
}

const UNLIMITED: Link = { name: 'unlimited', maxBandwidth: 0, runs: 5 };
const LINKS: readonly Link[] = [
  UNLIMITED,
  { name: '10 Gbit/s', maxBandwidth: 1.25e9, runs: 1 },
  { name: '1 Gbit/s', maxBandwidth: 125e6, runs: 1 },
];

interface Kind {
  readonly name: string;
  readonly options: Partial<WorkloadOptions>;
  readonly links: readonly Link[];
  readonly downtimeLimit: number;
  readonly zeroing: boolean;
  /** How many of `FIGURES` mean something. */
  readonly figures: number;
}

const KINDS: readonly Kind[] = [
  {
    name: 'idle',
    options: { workload: 'idle', workingSetBytes: 128 * 2 ** 20 },
    links: LINKS,
    downtimeLimit: 50,
    zeroing: true,
    figures: 1,
  },
  {
    name: 'build',
    options: { workload: 'build', rate: 60e6 },
    links: LINKS,
    downtimeLimit: 50,
    zeroing: true,
    figures: 2,
  },
  {
    name: 'flat out',
    options: { workload: 'build', workingSetBytes: 512 * 2 ** 20 },
    links: [UNLIMITED],
    // Else it would not converge without hints.
    downtimeLimit: 1000,
    zeroing: false,
    figures: 3,
  },
];

type Side = 'plain' | 'hinted' | 'zeroing';

const median = (values: readonly number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1]!;

/** Where the guests go. */
type Destination = NodeChild<unknown>;

const migrate = async (
  destination: Destination,
  options: WorkloadOptions,
  order: HintMigration,
): Promise<HintMigrationResult> => {
  const source = new NodeChild<unknown>('hints-source', [JSON.stringify(options)]);
  try {
    await Promise.all([source.next(), destination.next()]);
    await destination.ask(order.uri);
    const result = (await source.ask(order)) as HintMigrationResult;
    await destination.next();
    return result;
  } finally {
    await source.close();
  }
};

/** Further figures of the migrations that the row of times made; the last one is of guests that have no time to lose. */
const FIGURES: readonly (Pick<Benchmark, 'unit' | 'better'> & {
  readonly name: string;
  of(result: HintMigrationResult): number;
})[] = [
  { name: 'bytes', unit: 'MiB', better: 'lower', of: ({ bytes }) => bytes / 2 ** 20 },
  { name: 'the guest writes meanwhile', unit: 'MB/s', better: 'higher', of: ({ rate }) => rate / 1e6 },
  {
    name: 'what the guest loses',
    unit: 'ms',
    better: 'lower',
    of: ({ milliseconds, downtimeMs, rate, rateBefore }) =>
      milliseconds - ((milliseconds - downtimeMs) * rate) / rateBefore,
  },
];

interface Place {
  readonly destination: Destination;
  readonly memoryBytes: number;
  readonly uri: string;
}

async function* benchmarks(kind: Kind, link: Link, place: Place): AsyncGenerator<Benchmark> {
  const { destination, memoryBytes, uri } = place;
  const results: Readonly<Record<Side, HintMigrationResult[]>> = { plain: [], hinted: [], zeroing: [] };
  const measure = async (side: Side): Promise<number> => {
    const result = await migrate(
      destination,
      { memoryBytes, garbage: true, freePageHints: true, initOnAlloc: side === 'zeroing', ...kind.options },
      {
        uri,
        maxBandwidth: link.maxBandwidth,
        downtimeLimit: kind.downtimeLimit,
        hinted: side !== 'plain',
      },
    );
    results[side].push(result);
    return result.milliseconds;
  };
  const name = `${kind.name}, ${memoryBytes / GIB} GiB, ${link.name}`;
  const peer = (of: () => number | Promise<number>) => ({ name: 'plain precopy', measure: of });
  yield {
    name: `${name}: time`,
    unit: 'ms',
    better: 'lower',
    ours: () => measure('hinted'),
    peer: peer(() => measure('plain')),
    runs: link.runs,
    warmUpRuns: 0,
  };
  for (const { name: figure, unit, better, of } of FIGURES.slice(0, kind.figures)) {
    yield {
      name: `${name}: ${figure}`,
      unit,
      better,
      ours: () => median(results.hinted.map(of)),
      peer: peer(() => median(results.plain.map(of))),
      runs: 1,
      warmUpRuns: 0,
    };
  }
  if (kind.zeroing) {
    yield {
      name: `${name}, init-on-alloc: time`,
      unit: 'ms',
      better: 'lower',
      ours: () => measure('zeroing'),
      peer: peer(() => median(results.plain.map(({ milliseconds }) => milliseconds))),
      runs: link.runs,
      warmUpRuns: 0,
    };
  }
}

async function* run(): AsyncGenerator<Benchmark> {
  const memoryBytes = SIZES.find((bytes) => freemem() > memoryNeeded(bytes));
  if (memoryBytes === undefined) {
    throw new Error(`The hint benchmarks need ${memoryNeeded(SIZES.at(-1)!) / GIB} GiB of free memory`);
  }
  const folder = mkdtempSync(join(tmpdir(), 'ramferry-bench-'));
  const destination: Destination = new NodeChild('hints-destination', [`${memoryBytes}`]);
  try {
    const place = { destination, memoryBytes, uri: `unix:${join(folder, 'socket')}` };
    for (const kind of KINDS) {
      for (const link of kind.links) {
        yield* benchmarks(kind, link, place);
      }
    }
  } finally {
    await destination.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

export const group: BenchmarkGroup = { name: 'hints', run };
