// Group `postcopy`: a saved guest restored by `ramferry serve`, against QEMU's own load of the same mapped-ram file: how
// soon the guest runs, how soon it says something, how quickly all of it is there.

import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { PostcopyPing } from '../src/format/stream/postcopy-commands.js';
import { pong, shut } from '../src/format/stream/return-path.js';
import { type GuestOptions, Lab, type LabGuest, type QemuRelease } from '../test/interop/lab.js';
import { Ramferry } from '../test/interop/ramferry.js';
import { openToolbox } from '../test/toolbox/toolbox.js';
import { type CTwin, keepMemory, requireStreamTwin, warmMemory } from './c-twin.js';
import type { Benchmark, BenchmarkGroup } from './harness.js';
import { StreamEnd } from './stream-end.js';

const RUNS = { runs: 10, warmUpRuns: 1 };

/** A line of the guest every 20 ms, so that its first output is that of its first moments. */
const HEARTBEAT_MS = 20;

/** Leaves to Linux what it needs. */
const churnMegabytes = (megabytes: number): number => Math.floor(megabytes * 0.92) - 90;

/** Loads of all memory, which takes seconds. */
const WHOLE_RUNS = { runs: 5, warmUpRuns: 1 };

/** What the start of one restore shows; milliseconds from `migrate-incoming`. */
interface Start {
  readonly resumeMs: number;
  readonly firstOutputMs: number;
}

/** A restore that is over. */
interface Whole {
  /** Bytes of guest memory with content by the time until `completed`. */
  readonly gigabytesPerSecond: number;
  readonly serviceMs?: { readonly p50: number; readonly p99: number };
}

const epochMs = (): number => performance.timeOrigin + performance.now();

class Restores {
  readonly #lab: Lab;
  readonly #file: string;
  readonly #guest: GuestOptions;
  /** Of the saved guest: what its pages with content come to. */
  readonly #contentBytes: number;
  /** By then a server has opened the file, for which it reads a stream through, and waits for the guest to listen. */
  readonly #opensInMs: number;
  readonly #tool: CTwin;
  #count = 0;
  #isVerified = false;

  private constructor(lab: Lab, tool: CTwin, file: string, guest: GuestOptions, contentBytes: number) {
    this.#lab = lab;
    this.#tool = tool;
    this.#opensInMs = guest.release === '7.2' ? 1000 + contentBytes / 1e6 : 1000;
    this.#file = file;
    this.#guest = guest;
    this.#contentBytes = contentBytes;
  }

  /** Of a guest that `release` has saved: mapped-ram, or a stream where it has none. */
  static async create(
    lab: Lab,
    tool: CTwin,
    folder: string,
    memory: number,
    release: QemuRelease = '10',
  ): Promise<Restores> {
    const options = { memory, release, workload: `churn:${churnMegabytes(memory)}:20`, heartbeatMs: HEARTBEAT_MS };
    const guest = await lab.startGuest(options);
    await guest.waitReady();
    const file = join(folder, `${memory}-${release}`);
    await guest.saveStream(file, release === '7.2' ? {} : { capabilities: { 'mapped-ram': true } });
    await guest.qemu.quit();
    const { stdout } = await Ramferry.run(lab, 'inspect', file, '--json');
    const { ram } = JSON.parse(stdout) as { ram: { presentPages: number; pageSize: number } };
    return new Restores(lab, tool, file, options, ram.presentPages * ram.pageSize);
  }

  remove(): void {
    rmSync(this.#file);
  }

  async startByQemu(): Promise<Start> {
    const guest = await this.#destination();
    const start = await this.#start(guest, `file:${this.#file}`, 'mapped-ram');
    await this.#end(guest);
    return start;
  }

  async loadByQemu(): Promise<Whole> {
    const guest = await this.#destination();
    await keepMemory(this.#tool, 0);
    await warmMemory(this.#tool, this.#contentBytes * 1.1);
    const whole = await this.#load(guest, `file:${this.#file}`, 'mapped-ram');
    await this.#end(guest);
    return whole;
  }

  async startByServe(): Promise<Start> {
    const guest = await this.#destination();
    const { uri, serving } = await this.#serve();
    const start = await this.#start(guest, uri, 'postcopy-ram');
    serving.kill('SIGKILL');
    await serving.exited;
    await this.#end(guest);
    return start;
  }

  async loadByServe(): Promise<Whole> {
    const guest = await this.#destination();
    // Its pages arrive one by one; those of QEMU's own load are huge.
    await keepMemory(this.#tool, this.#contentBytes * 1.3);
    const { uri, serving } = await this.#serve();
    const whole = await this.#load(guest, uri, 'postcopy-ram');
    const { stdout, status, stderr } = await serving.exited;
    if (status !== 0) {
      throw new Error(stderr + stdout);
    }
    const { ramferry } = JSON.parse(stdout) as { ramferry: { postcopy: { serviceMs: { p50: number; p99: number } } } };
    // All of it takes the guest a quarter of a minute at 4 GiB: once.
    if ((this.#isVerified ? guest.bad() : await guest.verifyAll()) > 0) {
      throw new Error(`the guest's memory is not what it was: ${guest.serial().slice(-300)}`);
    }
    this.#isVerified = true;
    await this.#end(guest);
    return { ...whole, serviceMs: ramferry.postcopy.serviceMs };
  }

  async #serve(): Promise<{ readonly uri: string; readonly serving: Ramferry }> {
    const uri = `unix:${this.#lab.path(`serve-${this.#count++}`)}`;
    const serving = Ramferry.start(this.#lab, 'serve', this.#file, uri, '--json', '--retry', '60', '--no-demand');
    await delay(this.#opensInMs);
    return { uri, serving };
  }

  /** GB/s into a peer that only reads: what the server could do. */
  async byReader(): Promise<number> {
    const path = this.#lab.path(`reader-${this.#count++}`);
    let [first, last] = [0, 0];
    const listener = net.createServer((socket) => {
      first = performance.now();
      socket.write(pong(PostcopyPing.DEVICES_LOADED));
      const end = new StreamEnd();
      socket.on('data', (chunk: Buffer) => {
        if (end.isAfter(chunk)) {
          last = performance.now();
          socket.write(shut(0));
        }
      });
    });
    listener.listen(path);
    const serving = Ramferry.start(this.#lab, 'serve', this.#file, `unix:${path}`, '--json', '--no-demand');
    const { status, stderr, stdout } = await serving.exited;
    listener.close();
    if (status !== 0) {
      throw new Error(stderr + stdout);
    }
    return this.#contentBytes / (last - first) / 1e6;
  }

  #destination(): Promise<LabGuest> {
    return this.#lab.startGuest({ ...this.#guest, incoming: 'defer' });
  }

  async #start(guest: LabGuest, uri: string, capability: string): Promise<Start> {
    const resumed = guest.qmp.waitEvent('RESUME');
    const start = await this.#incoming(guest, uri, capability);
    const [resume, output] = await Promise.all([resumed, this.#firstOutput(guest)]);
    return { resumeMs: resume.timestampMs - start, firstOutputMs: output - start };
  }

  async #load(guest: LabGuest, uri: string, capability: string): Promise<Whole> {
    const completed = guest.qmp.waitEvent('MIGRATION', { where: ({ data }) => data['status'] === 'completed' });
    const start = await this.#incoming(guest, uri, capability);
    const { timestampMs } = await completed;
    return { gigabytesPerSecond: this.#contentBytes / (timestampMs - start) / 1e6 };
  }

  /** When it was ordered, on the clock of QEMU's events. */
  async #incoming(guest: LabGuest, uri: string, capability: string): Promise<number> {
    await guest.qmp.execute('migrate-set-capabilities', {
      capabilities: ['events', capability].map((name) => ({ capability: name, state: true })),
    });
    const start = epochMs();
    await guest.qmp.execute('migrate-incoming', { uri });
    return start;
  }

  async #end(guest: LabGuest): Promise<void> {
    guest.qemu.kill();
    await guest.qemu.exited;
  }

  async #firstOutput(guest: LabGuest): Promise<number> {
    while (guest.serial() === '') {
      await delay(1);
    }
    return epochMs();
  }
}

async function* benchmarks(lab: Lab, tool: CTwin, folder: string): AsyncGenerator<Benchmark> {
  for (const megabytes of [1024, 4096]) {
    const restores = await Restores.create(lab, tool, folder, megabytes);
    const starts = { ours: [] as Start[], peer: [] as Start[] };
    const wholes: Whole[] = [];
    const size = `${megabytes / 1024} GiB guest`;
    const peerName = 'QEMU, mapped-ram';
    // One run gives several figures.
    const noted = async <Figures>(run: Promise<Figures>, list: Figures[]): Promise<Figures> => {
      const figures = await run;
      list.push(figures);
      return figures;
    };
    const replay = <Figures>(list: readonly Figures[], figure: (figures: Figures) => number) => {
      let index = 0;
      return () => figure(list[index++]!);
    };
    yield {
      name: `migrate-incoming to RESUME, ${size}`,
      unit: 'ms',
      better: 'lower',
      ours: async () => (await noted(restores.startByServe(), starts.ours)).resumeMs,
      peer: { name: peerName, measure: async () => (await noted(restores.startByQemu(), starts.peer)).resumeMs },
      ...RUNS,
    };
    yield {
      name: `migrate-incoming to first output, ${size}`,
      unit: 'ms',
      better: 'lower',
      ours: replay(starts.ours, ({ firstOutputMs }) => firstOutputMs),
      peer: { name: peerName, measure: replay(starts.peer, ({ firstOutputMs }) => firstOutputMs) },
      ...RUNS,
    };
    yield {
      name: `all of it loaded, ${size}`,
      unit: 'GB/s',
      better: 'higher',
      ours: async () => (await noted(restores.loadByServe(), wholes)).gigabytesPerSecond,
      peer: { name: peerName, measure: async () => (await restores.loadByQemu()).gigabytesPerSecond },
      ...WHOLE_RUNS,
    };
    yield {
      name: `all of it, to a peer that only reads, ${size}`,
      unit: 'GB/s',
      better: 'higher',
      ours: () => restores.byReader(),
      peer: { missing: 'QEMU serves no files' },
      runs: 3,
      warmUpRuns: 1,
    };
    for (const quantile of ['p50', 'p99'] as const) {
      yield {
        name: `a page asked for, ${quantile}, ${size}`,
        unit: 'ms',
        better: 'lower',
        ours: replay(wholes, ({ serviceMs }) => serviceMs![quantile]),
        peer: { missing: 'QEMU up to 11.1 loads all before it runs' },
        ...WHOLE_RUNS,
      };
    }
    restores.remove();
    const older = await Restores.create(lab, tool, folder, megabytes, '7.2');
    yield {
      name: `migrate-incoming to RESUME, QEMU 7.2, ${size}`,
      unit: 'ms',
      better: 'lower',
      ours: async () => (await older.startByServe()).resumeMs,
      peer: { missing: 'it has no mapped-ram' },
      ...RUNS,
    };
    older.remove();
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
    const tool = requireStreamTwin('postcopy', 'to prepare memory');
    const lab = new Lab(toolbox);
    const folder = mkdtempSync(join('/dev/shm', 'ramferry-bench-'));
    const remove = (): void => rmSync(folder, { recursive: true, force: true });
    process.once('exit', remove);
    try {
      yield* benchmarks(lab, tool, folder);
    } finally {
      tool.close();
      await lab.close();
      remove();
    }
  },
};
