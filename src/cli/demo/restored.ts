// A process of the demo's last act: a machine that is built and has no content yet. It gets one from a file, once whole
// before it runs, once page by page while it runs.
//
//   parent                          this process
//   ── build ─────────────────────▶ guest memory, threads that wait
//   ── load(file) ────────────────▶ all of the memory, devices, run
//   ── receive(uri) ──────────────▶ devices, run; memory follows: loaded(…)
//   ── judge ─────────────────────▶ waits until the guest has done its steps, verifies, digests

import { listen } from '../../channel/listen-node.js';
import { MigrationDestination } from '../../destination/migration-destination.js';
import type { IncomingPostcopyReport } from '../../destination/postcopy-incoming.js';
import { PostcopyTarget } from '../../destination/postcopy-target.js';
import { deviceStates } from '../../format/stream/device-tail.js';
import type { StreamSummary } from '../../format/stream/stream-handler.js';
import { WorkloadGuest, type WorkloadOptions } from '../../guest/workload/workload-guest-node.js';
import { loadMappedRam } from '../../memory-file/load-mapped-ram-node.js';
import { type PlainError, plainError } from '../../migration/source-messages.js';
import { type Judgement, judge, runOn } from './judgement.js';

export type ToDemoRestored =
  | { readonly type: 'build'; readonly machine: WorkloadOptions }
  | { readonly type: 'load'; readonly file: string }
  | { readonly type: 'receive'; readonly uri: string; readonly steps: number }
  | { readonly type: 'judge' };

export type FromDemoRestored =
  | { readonly type: 'built' }
  /** `milliseconds`: since the order to load, or since the server of the pages connected. */
  | { readonly type: 'running'; readonly milliseconds: number }
  | { readonly type: 'loaded'; readonly milliseconds: number; readonly postcopy: IncomingPostcopyReport }
  | { readonly type: 'judged'; readonly judgement: Judgement }
  | { readonly type: 'failed'; readonly error: PlainError };

const post = (message: FromDemoRestored): void => {
  process.send?.(message);
};

const load = (guest: WorkloadGuest, { tail, devices }: StreamSummary): void => guest.load(deviceStates(tail, devices));

async function build(machine: WorkloadOptions): Promise<WorkloadGuest> {
  const guest = WorkloadGuest.create(machine);
  await guest.boot();
  return guest;
}

async function loadAndRun(guest: WorkloadGuest, file: string): Promise<void> {
  const start = performance.now();
  const { summary } = await loadMappedRam(file, { blocks: guest.blocks });
  load(guest, summary);
  await guest.resume();
  post({ type: 'running', milliseconds: performance.now() - start });
}

async function runAndReceive(guest: WorkloadGuest, uri: string, steps: number): Promise<void> {
  const listener = await listen(uri);
  const channel = await listener.accept();
  await listener.close();
  const start = performance.now();
  let runs = (): void => {};
  const running = new Promise<void>((resolve) => {
    runs = resolve;
  });
  const destination = new MigrationDestination({
    channel,
    target: new PostcopyTarget({ blocks: guest.blocks, missingPages: () => guest.missingPages() }),
    commit: async ({ summary }) => {
      load(guest, summary);
      guest.limitSteps(0);
    },
    postcopy: {
      run: async () => {
        await guest.resume();
        runs();
        post({ type: 'running', milliseconds: performance.now() - start });
      },
    },
  });
  const ended = destination.run();
  await Promise.race([running, ended]);
  await runOn(guest, steps);
  const { status, ramferry } = await ended;
  if (status !== 'completed') {
    throw destination.error;
  }
  post({ type: 'loaded', milliseconds: performance.now() - start, postcopy: ramferry.postcopy! });
}

let guest: WorkloadGuest | undefined;

process.on('message', async (message: ToDemoRestored) => {
  try {
    switch (message.type) {
      case 'build':
        guest = await build(message.machine);
        post({ type: 'built' });
        break;
      case 'load':
        await loadAndRun(guest!, message.file);
        break;
      case 'receive':
        await runAndReceive(guest!, message.uri, message.steps);
        break;
      case 'judge':
        post({ type: 'judged', judgement: await judge(guest!) });
        break;
    }
  } catch (error) {
    post({ type: 'failed', error: plainError(error) });
  }
});
process.on('disconnect', () => process.exit());
