// Group `dump`: what a debugger opens, out of a saved Linux guest, against QEMU's own dump of the same guest, stopped. Milliseconds:
// of ours the whole command, which syncs its file, of QEMU's the command on its monitor, which does not. And `pages`, which has no
// peer: nobody else counts by page what is in a guest.

import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { bin } from '../test/command.js';
import { Lab } from '../test/interop/lab.js';
import { openToolbox } from '../test/toolbox/toolbox.js';
import type { Benchmark, BenchmarkGroup, Measure } from './harness.js';

/** A dump takes seconds, also on a machine that has other things to do. */
const DUMP_LIMIT_MS = 300_000;

const RUNS = { runs: 5, warmUpRuns: 1 };

/** Formats by our name and by QEMU's. */
const FORMATS = [
  ['elf', 'elf'],
  ['kdump', 'kdump-zlib'],
] as const;

/** The time of a command that has to succeed. */
const timed = (...args: readonly string[]): number => {
  const start = performance.now();
  const { status, stderr } = spawnSync(process.execPath, [bin, ...args, '--quiet'], { encoding: 'utf8' });
  const ms = performance.now() - start;
  if (status !== 0) {
    throw new Error(`${args[0]} failed: ${stderr}`);
  }
  return ms;
};

async function* benchmarks(lab: Lab, folder: string): AsyncGenerator<Benchmark> {
  const memory = 1024;
  const file = join(folder, 'guest');
  // More than half of it holds something.
  const guest = await lab.startGuest({ memory, workload: 'fillfree:600' });
  await guest.waitReady();
  await guest.stop();
  await guest.saveStream(file);
  for (const [format, qemuFormat] of FORMATS) {
    const out = join(folder, format);
    const theirs: Measure = async () => {
      rmSync(out, { force: true });
      const start = performance.now();
      const what = { paging: false, protocol: `file:${out}`, format: qemuFormat };
      await guest.qmp.execute('dump-guest-memory', what, { timeoutMs: DUMP_LIMIT_MS });
      const ms = performance.now() - start;
      if (statSync(out).size < (memory * 2 ** 20) / 16) {
        throw new Error('QEMU has left out most of the guest');
      }
      return ms;
    };
    const ours: Measure = () => {
      rmSync(out, { force: true });
      return timed('convert', file, out, '--to', format);
    };
    const peer = { name: "QEMU's dump-guest-memory", measure: theirs };
    yield { name: `${format}, 1 GiB guest`, unit: 'ms', better: 'lower', ours, peer, ...RUNS };
    rmSync(out, { force: true });
  }
  await guest.qemu.quit();
  yield {
    name: 'pages, 1 GiB guest',
    unit: 'ms',
    better: 'lower',
    ours: () => timed('pages', file),
    peer: { missing: 'nobody else counts that' },
    ...RUNS,
  };
}

export const group: BenchmarkGroup = {
  name: 'dump',
  async *run() {
    const toolbox = openToolbox();
    if ('missing' in toolbox) {
      process.stderr.write(`dump: left out, as its guest is QEMU's; ${toolbox.missing}\n`);
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
