// Group `mapped-ram`: a stopped guest saved into a new mapped-ram file, ours against QEMU's own, the same guest. Figures
// are bytes of nonzero guest memory by the time from the command until the file is complete; ours is on the disk then,
// and has its name, while QEMU's may still be in the page cache.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { PositionedFileOptions } from '../src/channel/positioned-file-node.js';
import { Lab, type LabGuest, wake } from '../test/interop/lab.js';
import { openToolbox } from '../test/toolbox/toolbox.js';
import type { Benchmark, BenchmarkGroup } from './harness.js';
import { NodeChild } from './node-child.js';
import { patternContent, qemuContent } from './stream-content.js';

const MEGABYTES = 1024;

/** Runs of a second and more: their spread is that of the machine. */
const RUNS = { runs: 5, warmUpRuns: 1 };

/** Ours beside QEMU's multifd channels and direct-io. */
const modes: readonly { readonly name: string; readonly ours: PositionedFileOptions; readonly multifd: number }[] = [
  { name: 'one writer', ours: {}, multifd: 0 },
  { name: '2 channels', ours: { channels: 2 }, multifd: 2 },
  { name: '2 channels, direct I/O', ours: { channels: 2, directIo: true }, multifd: 2 },
];

const scratchFolder = (parent: string): string => {
  const folder = mkdtempSync(join(parent, 'ramferry-bench-'));
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
  return folder;
};

async function* benchmarks(lab: Lab | undefined, missing: string): AsyncGenerator<Benchmark> {
  const folders = { tmpfs: scratchFolder('/dev/shm'), disk: scratchFolder(tmpdir()) };
  const stream = join(folders.tmpfs, 'stream');
  const { guest } = await (lab === undefined ? patternContent(MEGABYTES, stream) : qemuContent(lab, MEGABYTES, stream));
  const source = new NodeChild<unknown>('mapped-ram-source', [stream]);
  try {
    await source.next();
    for (const [place, folder] of Object.entries(folders)) {
      const path = join(folder, 'saved');
      const timed = async (save: () => Promise<number>): Promise<number> => {
        const started = performance.now();
        const normalBytes = await save();
        const rate = normalBytes / (performance.now() - started) / 1e6;
        rmSync(path);
        return rate;
      };
      for (const { name, ours: options, multifd } of modes) {
        const qemuSave = async (qemu: LabGuest): Promise<number> => {
          const { ram } = await qemu.saveStream(path, {
            capabilities: { 'mapped-ram': true, multifd: multifd > 0 },
            parameters: {
              'direct-io': options.directIo ?? false,
              ...(multifd > 0 && { 'multifd-channels': multifd }),
            },
          });
          return ram!['normal-bytes'];
        };
        yield {
          name: `save, ${place}, ${name}, ${MEGABYTES / 1024} GiB guest`,
          unit: 'GB/s',
          better: 'higher',
          ours: () => timed(async () => (await source.ask({ path, options })) as number),
          peer:
            guest === undefined
              ? { missing }
              : {
                  name: multifd > 0 ? 'QEMU, multifd' : 'QEMU',
                  measure: async () => {
                    await wake(guest);
                    return timed(() => qemuSave(guest));
                  },
                },
          ...RUNS,
        };
      }
    }
  } finally {
    await source.close();
    await guest?.qemu.quit();
  }
}

export const group: BenchmarkGroup = {
  name: 'mapped-ram',
  async *run() {
    const toolbox = openToolbox();
    const lab = 'missing' in toolbox ? undefined : new Lab(toolbox);
    try {
      yield* benchmarks(lab, 'missing' in toolbox ? toolbox.missing : '');
    } finally {
      await lab?.close();
    }
  },
};
