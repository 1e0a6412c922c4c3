// Group `postcopy`: a saved guest restored by `ramferry serve`, against QEMU's own load of the same mapped-ram file: how
// soon the guest runs, how soon it says something, how quickly all of it is there. One run gives all figures of one side.

import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { PostcopyPing } from '../src/format/stream/postcopy-commands.js';
import { pong, shut } from '../src/format/stream/return-path.js';
import { Lab, type LabGuest } from '../test/interop/lab.js';
import { Ramferry } from '../test/interop/ramferry.js';
import { openToolbox } from '../test/toolbox/toolbox.js';
import type { Benchmark, BenchmarkGroup } from './harness.js';

const RUNS = { runs: 10, warmUpRuns: 1 };

/** A line of the guest every 20 ms, so that its first output is that of its first moments. */
const HEARTBEAT_MS = 20;

/** Leaves to Linux what it needs. */
const churnMegabytes = (megabytes: number): number => Math.floor(megabytes * 0.92) - 90;

/** What one restore shows; milliseconds from `migrate-incoming`. */
interface Restore {
  readonly resumeMs: number;
  readonly firstOutputMs: number;
  /** Bytes of guest memory with content by the time until `completed`. */
  readonly gigabytesPerSecond: number;
  readonly serviceMs?: { readonly p50: number; readonly p99: number };
}

const epochMs = (): number => performance.timeOrigin + performance.now();

class Restores {
  readonly #lab: Lab;
  readonly #file: string;
  readonly #guest: { readonly memory: number; readonly workload: string; readonly heartbeatMs: number };
  /** Of the saved guest. */
  readonly #normalBytes: number;
  #count = 0;

  private constructor(lab: Lab, file: string, megabytes: number, workload: string, normalBytes: number) {
    this.#lab = lab;
    this.#file = file;
    this.#guest = { memory: megabytes, workload, heartbeatMs: HEARTBEAT_MS };
    this.#normalBytes = normalBytes;
  }

  static async create(lab: Lab, folder: string, megabytes: number): Promise<Restores> {
    const workload = `churn:${churnMegabytes(megabytes)}:20`;
    const guest = await lab.startGuest({ memory: megabytes, workload, heartbeatMs: HEARTBEAT_MS });
    await guest.waitReady();
    const file = join(folder, `${megabytes}.mapped`);
    const { ram } = await guest.saveStream(file, { capabilities: { 'mapped-ram': true } });
    await guest.qemu.quit();
    return new Restores(lab, file, megabytes, workload, ram!['normal-bytes']);
  }

  async byQemu(): Promise<Restore> {
    const guest = await this.#destination();
    return this.#measure(guest, `file:${this.#file}`, 'mapped-ram', () => guest.bad());
  }

  async byServe(): Promise<Restore> {
    const guest = await this.#destination();
    const uri = `unix:${this.#lab.path(`serve-${this.#count++}`)}`;
    const serving = Ramferry.start(this.#lab, 'serve', this.#file, uri, '--json', '--retry', '60', '--no-demand');
    // It has opened the file and waits for the guest to listen.
    await delay(700);
    // All of it takes the guest a quarter of a minute at 4 GiB: in the warm-up only.
    const check = this.#count === 1 ? () => guest.verifyAll() : () => guest.bad();
    const restore = await this.#measure(guest, uri, 'postcopy-ram', check);
    const { stdout, status, stderr } = await serving.exited;
    if (status !== 0) {
      throw new Error(stderr + stdout);
    }
    const { ramferry } = JSON.parse(stdout) as { ramferry: { postcopy: { serviceMs: { p50: number; p99: number } } } };
    return { ...restore, serviceMs: ramferry.postcopy.serviceMs };
  }

  /** GB/s into a peer that only reads: what the server could do. */
  async byReader(): Promise<number> {
    const path = this.#lab.path(`reader-${this.#count++}`);
    const moments = { first: 0, last: 0, bytes: 0 };
    const listener = net.createServer((socket) => {
      moments.first = performance.now();
      socket.write(pong(PostcopyPing.DEVICES_LOADED));
      const watch = setInterval(() => {
        // All content, and then nothing more: the server waits for the last word.
        if (moments.bytes >= this.#normalBytes && performance.now() - moments.last > 100) {
          clearInterval(watch);
          socket.end(shut(0));
        }
      }, 20);
      socket.on('data', ({ length }) => {
        moments.bytes += length;
        moments.last = performance.now();
      });
    });
    listener.listen(path);
    const serving = Ramferry.start(this.#lab, 'serve', this.#file, `unix:${path}`, '--json', '--no-demand');
    const { status, stderr } = await serving.exited;
    listener.close();
    if (status !== 0) {
      throw new Error(stderr);
    }
    return this.#normalBytes / (moments.last - moments.first) / 1e6;
  }

  #destination(): Promise<LabGuest> {
    return this.#lab.startGuest({ ...this.#guest, incoming: 'defer' });
  }

  async #measure(
    guest: LabGuest,
    uri: string,
    capability: string,
    check: () => Promise<number> | number,
  ): Promise<Restore> {
    await guest.qmp.execute('migrate-set-capabilities', {
      capabilities: ['events', capability].map((name) => ({ capability: name, state: true })),
    });
    const resumed = guest.qmp.waitEvent('RESUME');
    const completed = guest.qmp.waitEvent('MIGRATION', { where: ({ data }) => data['status'] === 'completed' });
    const start = epochMs();
    await guest.qmp.execute('migrate-incoming', { uri });
    const firstOutput = this.#firstOutput(guest);
    const [resume, complete, output] = await Promise.all([resumed, completed, firstOutput]);
    if ((await check()) > 0) {
      throw new Error(`the guest's memory is not what it was: ${guest.serial().slice(-300)}`);
    }
    guest.qemu.kill();
    await guest.qemu.exited;
    return {
      resumeMs: resume.timestampMs - start,
      firstOutputMs: output - start,
      gigabytesPerSecond: this.#normalBytes / (complete.timestampMs - start) / 1e6,
    };
  }

  async #firstOutput(guest: LabGuest): Promise<number> {
    while (guest.serial() === '') {
      await delay(1);
    }
    return epochMs();
  }
}

async function* benchmarks(lab: Lab, folder: string): AsyncGenerator<Benchmark> {
  for (const megabytes of [1024, 4096]) {
    const restores = await Restores.create(lab, folder, megabytes);
    const done = { ours: [] as Restore[], peer: [] as Restore[] };
    const size = `${megabytes / 1024} GiB guest`;
    yield {
      name: `migrate-incoming to RESUME, ${size}`,
      unit: 'ms',
      better: 'lower',
      ours: async () => {
        const restore = await restores.byServe();
        done.ours.push(restore);
        return restore.resumeMs;
      },
      peer: {
        name: 'QEMU, mapped-ram',
        measure: async () => {
          const restore = await restores.byQemu();
          done.peer.push(restore);
          return restore.resumeMs;
        },
      },
      ...RUNS,
    };
    const rest: readonly (readonly [string, string, 'lower' | 'higher', (restore: Restore) => number])[] = [
      ['migrate-incoming to first output', 'ms', 'lower', ({ firstOutputMs }) => firstOutputMs],
      ['all of it loaded', 'GB/s', 'higher', ({ gigabytesPerSecond }) => gigabytesPerSecond],
    ];
    for (const [name, unit, better, figure] of rest) {
      const replay = (restored: readonly Restore[]) => {
        let index = 0;
        return () => figure(restored[index++]!);
      };
      const peer = { name: 'QEMU, mapped-ram', measure: replay(done.peer) };
      yield { name: `${name}, ${size}`, unit, better, ours: replay(done.ours), peer, ...RUNS };
    }
    yield {
      name: `all of it, to a peer that only reads, ${size}`,
      unit: 'GB/s',
      better: 'higher',
      ours: () => restores.byReader(),
      peer: { missing: 'QEMU serves no files' },
      ...{ runs: 3, warmUpRuns: 1 },
    };
    for (const quantile of ['p50', 'p99'] as const) {
      let index = 0;
      yield {
        name: `a page asked for, ${quantile}, ${size}`,
        unit: 'ms',
        better: 'lower',
        ours: () => done.ours[index++]!.serviceMs![quantile],
        peer: { missing: 'QEMU loads all before the guest runs' },
        ...RUNS,
      };
    }
  }
}

export const group: BenchmarkGroup = {
  name: 'postcopy',
  async *run() {
    const toolbox = openToolbox();
    if ('missing' in toolbox) {
      process.stderr.write(`postcopy: ${toolbox.missing}\n`);
      return;
    }
    const lab = new Lab(toolbox);
    const folder = mkdtempSync(join('/dev/shm', 'ramferry-bench-'));
    const remove = (): void => rmSync(folder, { recursive: true, force: true });
    process.once('exit', remove);
    try {
      yield* benchmarks(lab, folder);
    } finally {
      await lab.close();
      remove();
    }
  },
};
