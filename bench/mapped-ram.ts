// Group `mapped-ram`: a stopped guest saved into a new mapped-ram file and loaded from one, ours against QEMU's own, the same
// guest. Figures are bytes of nonzero guest memory by time.
//
//   save   from the command until the file is complete, and on the disk: ours syncs it; QEMU's is synced by us when QEMU
//          has completed, as who wants to keep it must do
//   load   from the command until everything is in the memory of a fresh process; the file is in the page cache
//
// What QEMU has nothing like stands without a peer, or against ourselves without it (the digest).

import { spawn } from 'node:child_process';
import { closeSync, fsyncSync, mkdtempSync, openSync, rmSync, statfsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { PositionedFileOptions } from '../src/channel/positioned-file-node.js';
import { RunningCommand } from '../test/command.js';
import { Lab, type LabGuest, type MigrateOptions, wake } from '../test/interop/lab.js';
import { openToolbox } from '../test/toolbox/toolbox.js';
import { type CTwin, keepMemory, requireStreamTwin, warmMemory } from './c-twin.js';
import type { Benchmark, BenchmarkGroup, Measure } from './harness.js';
import type { SaveQuestion } from './mapped-ram-source.js';
import { NodeChild } from './node-child.js';
import { patternContent, qemuContent, type StreamContent } from './stream-content.js';

const SIZES_MB = [1024, 4096];

/** The stream, the guest on both sides, a saved file, a loaded guest; and something for everybody else. */
const memoryNeeded = (megabytes: number): number => (4.2 * megabytes + 1024) * 2 ** 20;

/** Runs of a second and more: their spread is that of the machine, and more of them cost minutes. */
const runsOf = (megabytes: number): { readonly runs: number; readonly warmUpRuns: number } => ({
  runs: megabytes > 1024 ? 3 : 5,
  warmUpRuns: 1,
});

/** Ours beside QEMU's multifd channels and direct-io. */
const modes: readonly { readonly name: string; readonly ours: PositionedFileOptions; readonly multifd: number }[] = [
  { name: 'one writer', ours: {}, multifd: 0 },
  { name: '2 channels', ours: { channels: 2 }, multifd: 2 },
  { name: '2 channels, direct I/O', ours: { channels: 2, directIo: true }, multifd: 2 },
];

const qemuOptions = (multifd: number, directIo = false): MigrateOptions => ({
  capabilities: { 'mapped-ram': true, multifd: multifd > 0 },
  parameters: { 'direct-io': directIo, ...(multifd > 0 && { 'multifd-channels': multifd }) },
});

const scratchFolder = (parent: string): string => {
  const folder = mkdtempSync(join(parent, 'ramferry-bench-'));
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
  return folder;
};

/** Resolves when QEMU says that the migration is complete: sooner than asking it now and then would. */
const completed = async ({ qmp }: LabGuest, start: () => Promise<void>): Promise<void> => {
  const event = qmp.waitEvent('MIGRATION', { where: ({ data }) => data['status'] === 'completed', timeoutMs: 60_000 });
  await start();
  await event;
};

/** One size of guest. */
class MappedRamBenchmarks {
  readonly #tool: CTwin;
  readonly #lab: Lab | undefined;
  readonly #missing: string;
  readonly #megabytes: number;
  readonly #folders = { tmpfs: scratchFolder('/dev/shm'), disk: scratchFolder(tmpdir()) };
  readonly #stream: string;
  #content!: StreamContent;
  #isKept = false;

  constructor(tool: CTwin, lab: Lab | string, megabytes: number) {
    this.#tool = tool;
    [this.#lab, this.#missing] = typeof lab === 'string' ? [undefined, lab] : [lab, ''];
    this.#megabytes = megabytes;
    this.#stream = join(this.#folders.tmpfs, 'stream');
  }

  async *run(): AsyncGenerator<Benchmark> {
    this.#content = await (this.#lab === undefined
      ? patternContent(this.#megabytes, this.#stream)
      : qemuContent(this.#lab, this.#megabytes, this.#stream));
    const { guest } = this.#content;
    const source = new NodeChild<unknown>('mapped-ram-source', [this.#stream]);
    try {
      await source.next();
      await this.#keepMemory(true);
      yield* this.#saves(source, guest, 'tmpfs');
      yield this.#digest(source);
      await this.#keepMemory(false);
      yield* this.#saves(source, guest, 'disk');
      // Needed below.
      for (const folder of Object.values(this.#folders)) {
        await source.ask({ path: join(folder, 'file'), options: {}, digests: false } satisfies SaveQuestion);
      }
    } finally {
      await source.close();
      await guest?.qemu.quit();
    }
    yield* this.#loads();
    await this.#keepMemory(true);
    yield* this.#verbs();
    await this.#keepMemory(false);
    for (const folder of Object.values(this.#folders)) {
      rmSync(folder, { recursive: true });
    }
  }

  async *#saves(
    source: NodeChild<unknown>,
    guest: LabGuest | undefined,
    place: 'tmpfs' | 'disk',
  ): AsyncGenerator<Benchmark> {
    const path = join(this.#folders[place], 'saved');
    // Memory has no page cache to bypass.
    for (const { name, ours: options, multifd } of place === 'disk' ? modes : modes.slice(0, 2)) {
      const qemuSave =
        guest &&
        (async () => {
          await wake(guest);
          return this.#timed(path, async () => {
            await completed(guest, () => guest.migrate(`file:${path}`, qemuOptions(multifd, options.directIo)));
            const descriptor = openSync(path, 'r');
            fsyncSync(descriptor);
            closeSync(descriptor);
          });
        });
      yield this.#benchmark(
        `save, ${place}, ${name}`,
        () => this.#timed(path, () => this.#ask(source, { path, options, digests: false })),
        qemuSave && { name: multifd > 0 ? 'QEMU, multifd' : 'QEMU', measure: qemuSave },
      );
    }
  }

  #digest(source: NodeChild<unknown>): Benchmark {
    const path = join(this.#folders.tmpfs, 'saved');
    const save = (digests: boolean): Promise<number> =>
      this.#timed(path, () => this.#ask(source, { path, options: {}, digests }));
    return this.#benchmark('save, tmpfs, with a digest', () => save(true), {
      name: 'ours without it',
      measure: () => save(false),
    });
  }

  async *#loads(): AsyncGenerator<Benchmark> {
    const lab = this.#lab;
    for (const [place, folder] of Object.entries(this.#folders)) {
      const path = join(folder, 'file');
      const qemuLoad = async (): Promise<number> => {
        const guest = await lab!.startGuest({ memory: this.#megabytes, incoming: 'defer' });
        try {
          return await this.#timed(undefined, () =>
            completed(guest, () => guest.migrateIncoming(`file:${path}`, qemuOptions(2))),
          );
        } finally {
          guest.qemu.kill();
          await guest.qemu.exited;
        }
      };
      const load = async (): Promise<number> => {
        const child = new NodeChild<unknown>('mapped-ram-load', [path]);
        try {
          await child.next();
          return await this.#timed(undefined, () => child.ask('load'));
        } finally {
          await child.close();
        }
      };
      const peer = lab && { name: 'QEMU, multifd', measure: qemuLoad };
      // Quick, and both sides are as fast as the memory: one run in four takes twice as long, here or there.
      yield { ...this.#benchmark(`load into memory, ${place}`, load, peer), runs: 9 };
    }
  }

  /** From the command line, the start of Node included. */
  async *#verbs(): AsyncGenerator<Benchmark> {
    const file = join(this.#folders.tmpfs, 'file');
    const out = join(this.#folders.tmpfs, 'out');
    const nothing = { missing: 'no peer was measured' };
    for (const [to, from] of [
      ['mapped-ram', this.#stream],
      ['stream', file],
    ] as const) {
      yield {
        ...this.#benchmark(`convert --to ${to}, tmpfs`, () =>
          this.#timed(out, () => succeeded(['convert', from, out, '--to', to, '--no-digest', '--quiet'])),
        ),
        peer: nothing,
      };
    }
    const name = `${this.#megabytes / 1024} GiB guest`;
    const inspect = async (): Promise<{ seconds: number; megabytes: number }> => {
      const started = performance.now();
      const command = new RunningCommand(['inspect', file, '--json']);
      let peak = 0;
      const watch = setInterval(() => {
        peak = Math.max(peak, command.peakResidentBytes());
      }, 5);
      await command.ended;
      clearInterval(watch);
      return { seconds: (performance.now() - started) / 1000, megabytes: peak / 1e6 };
    };
    for (const [what, unit, figure] of [
      ['inspect', 's', 'seconds'],
      ['inspect, resident memory', 'MB', 'megabytes'],
    ] as const) {
      const ours = async (): Promise<number> => (await inspect())[figure];
      yield { name: `${what}, ${name}`, unit, better: 'lower', ours, peer: nothing, ...runsOf(this.#megabytes) };
    }
  }

  #benchmark(what: string, ours: Measure, peer?: { readonly name: string; readonly measure: Measure }): Benchmark {
    return {
      name: `${what}, ${this.#megabytes / 1024} GiB guest`,
      unit: 'GB/s',
      better: 'higher',
      ours,
      peer: peer ?? { missing: this.#missing },
      ...runsOf(this.#megabytes),
    };
  }

  /** A side that saved noticeably less than the guest has has not done the work. */
  async #ask(source: NodeChild<unknown>, question: SaveQuestion): Promise<void> {
    const normalBytes = (await source.ask(question)) as number;
    if (Math.abs(normalBytes - this.#content.normalBytes) > 0.01 * normalBytes) {
      throw new Error(`${normalBytes} bytes of nonzero pages saved, the guest has ${this.#content.normalBytes}`);
    }
  }

  /** Memory for the files on tmpfs: 1.5 times what they take. */
  async #keepMemory(isKept: boolean): Promise<void> {
    this.#isKept = isKept;
    await keepMemory(this.#tool, isKept ? this.#megabytes * 1.5 * 2 ** 20 : 0);
  }

  /** GB/s of some work; removes the file that it wrote. */
  async #timed(written: string | undefined, work: () => Promise<unknown>): Promise<number> {
    if (!this.#isKept) {
      await warmMemory(this.#tool, this.#megabytes * 1.1 * 2 ** 20);
    }
    const started = performance.now();
    await work();
    const rate = this.#content.normalBytes / (performance.now() - started) / 1e6;
    if (written !== undefined) {
      rmSync(written);
      rmSync(`${written}.digest`, { force: true });
    }
    return rate;
  }
}

/** Runs our command line; throws if it fails. */
const succeeded = (args: readonly string[]): Promise<void> =>
  new Promise((resolve, reject) => {
    const bin = fileURLToPath(new URL('../../bin/ramferry.js', import.meta.url));
    const child = spawn(process.execPath, [bin, ...args], { stdio: ['ignore', 'ignore', 'inherit'] });
    child.once('exit', (status) => (status === 0 ? resolve() : reject(new Error(`${args[0]}: status ${status}`))));
  });

/** Whether there is room for a guest of so many MiB, wherever it goes. */
const hasRoom = (megabytes: number): boolean =>
  process.availableMemory() > memoryNeeded(megabytes) &&
  ['/dev/shm', tmpdir()].every((folder) => {
    const { bavail, bsize } = statfsSync(folder);
    return bavail * bsize > 3.2 * megabytes * 2 ** 20;
  });

export const group: BenchmarkGroup = {
  name: 'mapped-ram',
  async *run() {
    const tool = requireStreamTwin('mapped-ram', 'to prepare memory');
    const toolbox = openToolbox();
    const lab = 'missing' in toolbox ? toolbox.missing : new Lab(toolbox);
    try {
      for (const megabytes of SIZES_MB) {
        if (hasRoom(megabytes)) {
          yield* new MappedRamBenchmarks(tool, lab, megabytes).run();
        } else {
          process.stderr.write(`mapped-ram: a guest of ${megabytes} MiB is left out for lack of memory or disk\n`);
        }
      }
    } finally {
      tool.close();
      if (typeof lab !== 'string') {
        await lab.close();
      }
    }
  },
};
