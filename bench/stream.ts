// Group `stream`: QEMU's stream over a unix socket, ours against QEMU's own, the same guest and the same C program at the
// other end of the socket (bench/c/stream.c). Figures are bytes of nonzero guest memory by time.
//
//   send     QEMU, stopped guest ─┐                     time from the first byte to the last, as the sink sees it
//            ours, the same guest ┴─▶ unix ─▶ C sink
//
//   receive  C sender (the file QEMU wrote) ─▶ unix ─┬▶ QEMU -incoming    time from the first byte until the receiver, done
//                                                    └▶ ours, in memory   with loading, closes the connection
//
//   save     QEMU, stopped guest ─┬▶ file: (itself)                        time from the command until it is complete
//                                 └▶ unix ─▶ ours ─▶ file
//
// A receiver is a fresh process in every run, on both sides: touching memory for the first time is part of receiving. Both
// ask for huge pages; without the optional dependency koffi ours cannot, and where the system gives them only on demand
// (`madvise` in /sys/kernel/mm/transparent_hugepage/enabled) it then pays a page fault for every 4 KiB.

import { mkdtempSync, rmSync, statfsSync } from 'node:fs';
import { freemem, tmpdir } from 'node:os';
import { join } from 'node:path';
import { Lab, type LabGuest, wake } from '../test/interop/lab.js';
import { openToolbox } from '../test/toolbox/toolbox.js';
import { type CTwin, keepMemory, requireStreamTwin, warmMemory } from './c-twin.js';
import type { Benchmark, BenchmarkGroup, Measure } from './harness.js';
import { NodeChild } from './node-child.js';
import { patternContent, qemuContent, type StreamContent } from './stream-content.js';

const SIZES_MB = [1024, 4096];

/** The stream file and a guest on either side, or a second file; and something for everybody else. */
const memoryNeeded = (megabytes: number): number => (3.2 * megabytes + 1024) * 2 ** 20;

/** Runs of a second and more: their spread is that of the machine, and more of them cost minutes. */
const RUNS = { runs: 5, warmUpRuns: 1 };

/** A folder for the stream files, in memory where there is room. Goes with this process. */
const scratchFolder = (bytes: number): string => {
  const { bavail, bsize } = statfsSync('/dev/shm');
  const folder = mkdtempSync(join(bavail * bsize > bytes ? '/dev/shm' : tmpdir(), 'ramferry-bench-'));
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
  return folder;
};

/** One size of guest. */
class StreamBenchmarks {
  readonly #tool: CTwin;
  readonly #lab: Lab | undefined;
  readonly #missing: string;
  readonly #megabytes: number;
  readonly #file: string;
  readonly #socket: string;
  /** Where saved guests go. */
  readonly #saved: string;
  #content!: StreamContent;

  constructor(tool: CTwin, lab: Lab | string, megabytes: number, folder: string) {
    this.#tool = tool;
    [this.#lab, this.#missing] = typeof lab === 'string' ? [undefined, lab] : [lab, ''];
    this.#megabytes = megabytes;
    this.#file = join(folder, 'stream');
    this.#socket = join(folder, 'socket');
    this.#saved = join(folder, 'saved');
  }

  async *run(): AsyncGenerator<Benchmark> {
    this.#content = await (this.#lab === undefined
      ? patternContent(this.#megabytes, this.#file)
      : qemuContent(this.#lab, this.#megabytes, this.#file));
    const { guest } = this.#content;
    const source = new NodeChild<unknown>('stream-source', [this.#file]);
    try {
      await source.next();
      yield this.#benchmark('send', () => this.#ourSend(source), guest && (() => this.#qemuSend(guest)));
    } finally {
      await source.close();
    }
    if (guest !== undefined) {
      await keepMemory(this.#tool, this.#freshBytes);
      yield this.#benchmark(
        'save into a file',
        () => this.#ourSave(guest),
        () => this.#qemuSave(guest),
      );
      await keepMemory(this.#tool, 0);
      await guest.qemu.quit();
    }
    await this.#tool.ask(`open ${this.#file}`);
    const lab = this.#lab;
    yield this.#benchmark('receive into memory', () => this.#ourReceive(), lab && (() => this.#qemuReceive(lab)));
  }

  #benchmark(what: string, ours: Measure, theirs: Measure | undefined): Benchmark {
    const version = this.#content.guest?.qemu.qmp.version;
    return {
      name: `${what}, ${this.#megabytes / 1024} GiB guest`,
      unit: 'GB/s',
      better: 'higher',
      ours,
      peer:
        theirs === undefined || version === undefined
          ? { missing: this.#missing }
          : { name: `QEMU ${version.major}.${version.minor}.${version.micro}`, measure: theirs },
      ...RUNS,
    };
  }

  async #ourSend(source: NodeChild<unknown>): Promise<number> {
    await this.#tool.ask(`listen ${this.#socket}`);
    const [[nanoseconds], normalBytes] = await Promise.all([
      this.#tool.ask('drain'),
      source.ask(`unix:${this.#socket}`),
    ]);
    return this.#rate(normalBytes as number, nanoseconds!);
  }

  async #qemuSend(guest: LabGuest): Promise<number> {
    await wake(guest);
    await this.#tool.ask(`listen ${this.#socket}`);
    const migrate = async (): Promise<number> => {
      await guest.migrate(`unix:${this.#socket}`);
      return (await guest.waitMigration()).ram!['normal-bytes'];
    };
    const [[nanoseconds], normalBytes] = await Promise.all([this.#tool.ask('drain'), migrate()]);
    return this.#rate(normalBytes, nanoseconds!);
  }

  /** A live migration out of QEMU into `ramferry receive`, which is a process more than QEMU alone needs. */
  async #ourSave(guest: LabGuest): Promise<number> {
    await wake(guest);
    const destination = new NodeChild<unknown>('stream-destination', [`unix:${this.#socket}`, this.#saved]);
    try {
      await destination.next();
      const started = performance.now();
      await guest.migrate(`unix:${this.#socket}`);
      const normalBytes = await destination.next();
      return this.#rate(normalBytes as number, (performance.now() - started) * 1e6);
    } finally {
      await destination.close();
      rmSync(this.#saved, { force: true });
    }
  }

  async #qemuSave(guest: LabGuest): Promise<number> {
    await wake(guest);
    const started = performance.now();
    try {
      const { ram } = await guest.saveStream(this.#saved);
      return this.#rate(ram!['normal-bytes'], (performance.now() - started) * 1e6);
    } finally {
      rmSync(this.#saved, { force: true });
    }
  }

  get #freshBytes(): number {
    return this.#megabytes * 1.1 * 2 ** 20;
  }

  async #ourReceive(): Promise<number> {
    const destination = new NodeChild<unknown>('stream-destination', [`unix:${this.#socket}`]);
    try {
      await destination.next();
      await warmMemory(this.#tool, this.#freshBytes);
      const [[nanoseconds], normalBytes] = await Promise.all([
        this.#tool.ask(`send ${this.#socket}`),
        destination.next(),
      ]);
      return this.#rate(normalBytes as number, nanoseconds!);
    } finally {
      await destination.close();
    }
  }

  async #qemuReceive(lab: Lab): Promise<number> {
    const guest = await lab.startGuest({ memory: this.#megabytes, incoming: 'defer' });
    try {
      await guest.migrateIncoming(`unix:${this.#socket}`);
      await warmMemory(this.#tool, this.#freshBytes);
      const [[nanoseconds]] = await Promise.all([this.#tool.ask(`send ${this.#socket}`), guest.waitMigration()]);
      return this.#rate(this.#content.normalBytes, nanoseconds!);
    } finally {
      guest.qemu.kill();
      await guest.qemu.exited;
    }
  }

  /** GB/s; a side that moved noticeably less than the file holds has not done the work. */
  #rate(normalBytes: number, nanoseconds: number): number {
    if (Math.abs(normalBytes - this.#content.normalBytes) > 0.01 * normalBytes) {
      throw new Error(`${normalBytes} bytes of nonzero pages moved, the file has ${this.#content.normalBytes}`);
    }
    return normalBytes / nanoseconds;
  }
}

async function* run(): AsyncGenerator<Benchmark> {
  const tool = requireStreamTwin('stream', 'at the other end of the socket');
  const toolbox = openToolbox();
  const lab = 'missing' in toolbox ? toolbox.missing : new Lab(toolbox);
  try {
    for (const megabytes of SIZES_MB) {
      if (freemem() < memoryNeeded(megabytes)) {
        process.stderr.write(
          `stream: a guest of ${megabytes} MiB is left out, ${Math.ceil(memoryNeeded(megabytes) / 2 ** 30)} GiB of memory must be free\n`,
        );
        continue;
      }
      const folder = scratchFolder(megabytes * 2 ** 20 * 2.2);
      yield* new StreamBenchmarks(tool, lab, megabytes, folder).run();
      rmSync(folder, { recursive: true, force: true });
    }
  } finally {
    tool.close();
    if (typeof lab !== 'string') {
      await lab.close();
    }
  }
}

export const group: BenchmarkGroup = { name: 'stream', run };
