// The last act of the demo: the guest is saved while it runs, and restored twice into fresh machines in processes of their own.
// One loads all of the file and runs then; the other one runs at once, and gets the pages from the file as it touches them.
//
//   guest ── mapped-ram ──▶ file ──▶ all of it ─▶ runs
//                            └─────▶ devices ─▶ runs ◀── pages, those that it waits for first (postcopy)

import { statSync } from 'node:fs';
import { join } from 'node:path';
import type { WorkloadGuest, WorkloadOptions } from '../../guest/workload/workload-guest-node.js';
import { RamferryError } from '../../memory/errors.js';
import { Migration } from '../../migration/migration.js';
import { formatBytes, formatCount, formatDuration, formatTable } from '../format.js';
import type { Invocation, VerbResult } from '../verb.js';
import { differences, judge, runOn } from './judgement.js';
import { DemoProcess } from './process.js';
import type { FromDemoRestored, ToDemoRestored } from './restored.js';

/** Pages served behind each one that the guest asks for: as `serve` does. */
const PREFETCH_PAGES = 32;

/** For the machine to be ready for the server. */
const RETRY_MS = 10_000;

/** As JSON under `ramferry.restore`; milliseconds. */
export interface RestoreReport {
  /** Saving the running guest, and what the file has then. */
  readonly saveMs: number;
  readonly fileBytes: number;
  /** From the connection of the server to a guest that runs, and to the last page of its memory. */
  readonly runMs: number;
  readonly completeMs: number;
  /** Pages that the guest waited for. */
  readonly requests: number;
  /** From the order to load to a guest that runs, where all of its memory is loaded first. */
  readonly fullLoadMs: number;
  readonly verified: boolean;
  readonly verifier: { readonly checked: number; readonly bad: number };
}

export interface RestoreOptions {
  /** For the file and the socket. */
  readonly folder: string;
  /** What the guest was made with. */
  readonly machine: WorkloadOptions;
  /** How much each thread of the guest does before the memories are compared. */
  readonly steps: number;
}

/** `guest` is stopped before and afterwards. Throws what kept it from being saved or restored, and VERIFICATION_FAILED. */
export async function saveAndRestore(
  guest: WorkloadGuest,
  { progress, signal }: Pick<Invocation<unknown>, 'progress' | 'signal'>,
  { folder, machine, steps }: RestoreOptions,
): Promise<RestoreReport> {
  const file = join(folder, 'guest.mapped');
  const processes = [0, 1].map(
    () => new DemoProcess<ToDemoRestored, FromDemoRestored>(new URL('./restored.js', import.meta.url)),
  );
  try {
    const built = processes.map((process) => process.next('built'));
    for (const process of processes) {
      process.post({ type: 'build', machine });
    }
    progress.update({ phase: 'the guest is saved while it runs' });
    const saveMs = await save(guest, file, signal);
    await Promise.all(built);
    progress.update({ phase: 'the guest is restored: all of its memory first, then devices first' });
    const [loading, arriving] = processes as [(typeof processes)[0], (typeof processes)[0]];
    const running = loading.next('running');
    loading.post({ type: 'load', file });
    const fullLoadMs = (await running).milliseconds;
    loading.end();
    const arrived = await serve(arriving, file, `unix:${join(folder, 'pages.sock')}`, steps, signal);
    progress.update({ phase: 'the restored guest runs on; its twin here takes the same steps' });
    await runOn(guest, steps);
    const judged = arriving.next('judged');
    arriving.post({ type: 'judge' });
    const [here, there] = await Promise.all([judge(guest), judged.then(({ judgement }) => judgement)]);
    const different = differences(here, there);
    if (different.length > 0) {
      const message = `The restored guest is not what it was: ${different.join(', ')}.`;
      throw new RamferryError('failed', 'VERIFICATION_FAILED', message);
    }
    return {
      saveMs: rounded(saveMs),
      fileBytes: statSync(file).blocks * 512,
      runMs: rounded(arrived.runMs),
      completeMs: rounded(arrived.completeMs),
      requests: arrived.requests,
      fullLoadMs: rounded(fullLoadMs),
      verified: true,
      verifier: { checked: there.pagesChecked, bad: there.bad },
    };
  } finally {
    for (const process of processes) {
      process.end();
    }
  }
}

/** Resolves with how long it took, in milliseconds. */
async function save(guest: WorkloadGuest, file: string, signal: AbortSignal): Promise<number> {
  guest.limitSteps(Number.POSITIVE_INFINITY);
  await guest.resume();
  const start = performance.now();
  await migrate(
    new Migration({
      guest: { kind: 'workload', shared: guest.share() },
      blocks: guest.blocks,
      uri: `file:${file}`,
      mappedRam: { channels: 2 },
    }),
    signal,
  );
  return performance.now() - start;
}

async function serve(
  machine: DemoProcess<ToDemoRestored, FromDemoRestored>,
  file: string,
  uri: string,
  steps: number,
  signal: AbortSignal,
): Promise<{ runMs: number; completeMs: number; requests: number }> {
  const messages = Promise.all([machine.next('running'), machine.next('loaded')]);
  machine.post({ type: 'receive', uri, steps });
  const [[running, loaded]] = await Promise.all([
    messages,
    migrate(
      new Migration({
        guest: { kind: 'snapshot-file', file },
        uri,
        postcopy: { atOnce: true, prefetchPages: PREFETCH_PAGES },
        retryMs: RETRY_MS,
      }),
      signal,
    ),
  ]);
  return { runMs: running.milliseconds, completeMs: loaded.milliseconds, requests: loaded.postcopy.requests };
}

async function migrate(migration: Migration, signal: AbortSignal): Promise<void> {
  const cancel = (): void => {
    migration.cancel();
    migration.abandonPostcopy();
  };
  signal.addEventListener('abort', cancel);
  const { error } = await migration.ended.finally(() => signal.removeEventListener('abort', cancel));
  if (error !== undefined) {
    throw error;
  }
}

const rounded = (milliseconds: number): number => Math.round(milliseconds * 100) / 100;

/** What the demo shows. */
export interface DemoResult extends VerbResult {
  readonly document: { readonly ramferry: object };
}

/** The demo's result with that of its last act. */
export const withRestore = ({ document, text }: DemoResult, restore: RestoreReport): DemoResult => ({
  document: { ...document, ramferry: { ...document.ramferry, restore } },
  text: `${text}\n${restoreTable(restore)}`,
});

const restoreTable = (report: RestoreReport): string =>
  formatTable(
    [
      ['saved while it ran', `${formatBytes(report.fileBytes)} in ${formatDuration(report.saveMs)}`],
      [
        'restored at once',
        `runs after ${formatDuration(report.runMs)}, waits for ${formatCount(report.requests)} pages`,
      ],
      ['  all of its memory', `after ${formatDuration(report.completeMs)}`],
      ['restored after a full load', `runs after ${formatDuration(report.fullLoadMs)}`],
      [
        'verifier of the guest',
        `good: ${formatCount(report.verifier.checked)} pages checked, ${report.verifier.bad} bad; digest equal`,
      ],
    ],
    ['left', 'left'],
  );
