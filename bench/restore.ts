// Group `restore`: a saved Linux guest runs again, its RAM mapped out of the file, against QEMU's own load of the same
// file. Milliseconds from `migrate-incoming`; QEMU is started already in both cases. The file is in the page cache.

import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { MapRestore } from '../src/migration/map-restore.js';
import { runIncoming } from '../src/qemu/incoming.js';
import { QemuProcess } from '../src/qemu/qemu-process.js';
import { Lab } from '../test/interop/lab.js';
import { openToolbox } from '../test/toolbox/toolbox.js';
import type { Benchmark, BenchmarkGroup } from './harness.js';

/** The guest says something this often; what it says first is waited for. */
const HEARTBEAT_MS = 5;

const RUNS = { runs: 10, warmUpRuns: 1 };
const MULTIFD_RUNS = { runs: 5, warmUpRuns: 1 };

const CHANNELS = 2;

/** What it takes until the guest is heard of. */
interface Restored {
  readonly resumeMs: number;
  readonly outputMs: number;
}

const firstOutput = async (serial: string): Promise<number> => {
  while (statSync(serial).size === 0) {
    await delay(1);
  }
  return performance.now();
};

async function* benchmarks(lab: Lab, folder: string): AsyncGenerator<Benchmark> {
  for (const gibibytes of [1, 4]) {
    const memory = gibibytes * 1024;
    const file = join(folder, `${gibibytes}`);
    // Nearly all of it holds something.
    const workload = `fillfree:${Math.floor(memory * 0.85)}`;
    const source = await lab.startGuest({ memory, workload, heartbeatMs: HEARTBEAT_MS });
    await source.waitReady();
    await source.saveStream(file, { capabilities: { 'mapped-ram': true } });
    await source.qemu.quit();

    const serial = join(folder, 'serial');
    const command = await lab.command({ memory, workload }, serial);
    const restore = await MapRestore.prepare(file, command);
    const mapped = async (): Promise<Restored> => {
      const { qemu, resumeMs, runsAt } = await restore.start(command);
      const outputMs = (await firstOutput(serial)) - (runsAt - resumeMs);
      await qemu.quit();
      return { resumeMs, outputMs };
    };
    const loaded = async (multifd: boolean): Promise<Restored> => {
      const qemu = await QemuProcess.start([...command, '-incoming', 'defer']);
      if (multifd) {
        await qemu.qmp.execute('migrate-set-parameters', { 'multifd-channels': CHANNELS });
      }
      const capabilities = multifd ? ['mapped-ram', 'multifd'] : ['mapped-ram'];
      const started = performance.now();
      const resumeMs = await runIncoming(qemu, `file:${file}`, { capabilities });
      const outputMs = (await firstOutput(serial)) - started;
      await qemu.quit();
      return { resumeMs, outputMs };
    };
    // One run gives both figures of one side.
    const done = { ours: [] as Restored[], peer: [] as Restored[] };
    const size = `${gibibytes} GiB guest`;
    const noted = (side: keyof typeof done, run: () => Promise<Restored>) => async (): Promise<number> => {
      const restored = await run();
      done[side].push(restored);
      return restored.resumeMs;
    };
    yield {
      name: `guest runs, mapped, ${size}`,
      unit: 'ms',
      better: 'lower',
      ours: noted('ours', mapped),
      peer: { name: "QEMU's load", measure: noted('peer', () => loaded(false)) },
      ...RUNS,
    };
    const replay = (restored: readonly Restored[]) => {
      let index = 0;
      return () => restored[index++]!.outputMs;
    };
    yield {
      name: `first output, mapped, ${size}`,
      unit: 'ms',
      better: 'lower',
      ours: replay(done.ours),
      peer: { name: "QEMU's load", measure: replay(done.peer) },
      ...RUNS,
    };
    yield {
      name: `first output, mapped, ${size}`,
      unit: 'ms',
      better: 'lower',
      ours: async () => (await mapped()).outputMs,
      peer: { name: `QEMU's load, ${CHANNELS} channels`, measure: async () => (await loaded(true)).outputMs },
      ...MULTIFD_RUNS,
    };
    restore.close();
    rmSync(file);
  }
}

export const group: BenchmarkGroup = {
  name: 'restore',
  async *run() {
    const toolbox = openToolbox();
    if ('missing' in toolbox) {
      process.stderr.write(`restore: left out, as it is all about QEMU; ${toolbox.missing}\n`);
      return;
    }
    const lab = new Lab(toolbox);
    const folder = mkdtempSync('/dev/shm/ramferry-bench-');
    process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
    try {
      yield* benchmarks(lab, folder);
    } finally {
      await lab.close();
    }
  },
};
