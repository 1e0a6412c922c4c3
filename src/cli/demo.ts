// `ramferry demo`: a busy guest in this process is live-migrated to a second process, runs on there, and is compared.
//
// How the two are compared: after the switchover the original does not run any more, but it is still there. Both are
// allowed the same number of further steps, and then both memories must be the same to the byte. A page that was lost,
// stale or torn, or device state that was, makes them differ; so would a guest that did not really run on.

import { type ChildProcess, fork } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Command, Option } from 'commander';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { BarrierChoice } from '../guest/workload/control.js';
import type { WorkloadKind } from '../guest/workload/programs.js';
import { WorkloadGuest } from '../guest/workload/workload-guest-node.js';
import { RamferryError } from '../memory/errors.js';
import { Migration } from '../monitor/migration.js';
import { ramferryError } from '../monitor/source-messages.js';
import type { MigrationReport } from '../source/statistics.js';
import { parseInteger } from './arguments.js';
import type { FromDemoDestination, ToDemoDestination } from './demo-destination.js';
import { type Judgement, judge } from './demo-judgement.js';
import { formatBytes, formatCount, formatRate } from './format.js';
import { addLiveOptions, type MigrationVerbOptions, parametersOf, sizeOption, traceOf } from './migration-options.js';
import {
  divergence,
  downtimeTable,
  iterationTable,
  parameterTable,
  progressOf,
  totalsTable,
} from './migration-report.js';
import type { Invocation, Verb } from './verb.js';

interface DemoOptions extends MigrationVerbOptions {
  readonly memory: number;
  readonly guest: 'workload';
  readonly workload: WorkloadKind;
  readonly writers: number;
  readonly rate: number;
  readonly workingSet: number;
  readonly barrier: BarrierChoice;
}

/**
 * What the migration is shown with, unless told otherwise: on a local socket 1 GiB would be over before one can look, so
 * the bandwidth is limited; and a limit of 100 ms leaves several passes to be seen.
 */
const DEFAULTS = { maxBandwidth: 256 * 2 ** 20, downtimeLimit: 100 } as const;

/** Below this the writers have no pages to share. */
const MEMORY_MIN = 2 ** 20;

/** How much each writer does after the switchover before the memories are compared. */
const STEPS_AFTER = 10_000;

export const demo: Verb<DemoOptions> = {
  configure: (command: Command) => {
    addLiveOptions(command, DEFAULTS)
      .addOption(sizeOption('--memory <bytes>', 'guest memory', 2 ** 30))
      .addOption(new Option('--guest <kind>', 'what runs inside').choices(['workload']).default('workload'))
      .addOption(
        new Option('--workload <kind>', 'what the guest does')
          .choices(['idle', 'churn', 'fillfree', 'build'])
          .default('churn'),
      )
      .option('--writers <n>', 'threads of the guest', parseInteger(1, 64), 2)
      .addOption(
        sizeOption('--rate <bytes>', 'bytes the guest writes per second; 0 for as fast as it can', 96 * 2 ** 20),
      )
      .addOption(sizeOption('--working-set <bytes>', 'memory the guest works on', 384 * 2 ** 20))
      .addOption(
        new Option('--barrier <variant>', 'how stores are marked')
          .choices(['unconditional', 'filtered'])
          .default('unconditional'),
      );
  },
  examples: [
    ['', 'migrate a busy guest of 1 GiB to a second process and compare'],
    ['--rate 400M --downtime-limit 30', 'a busier guest and a tighter limit: more passes'],
    ['--clear-bitmap-shift 6 --trace "migration_bitmap_*"', 'watch the dirty log being synced and cleared'],
    ['--max-bandwidth 0 --json', 'as fast as the machine can, as JSON'],
  ],

  async run(invocation) {
    const { memory, workload, writers, rate, workingSet, barrier } = invocation.options;
    if (memory < MEMORY_MIN || memory % GUEST_PAGE_SIZE !== 0) {
      throw new RamferryError('usage', 'INVALID_VALUE', `A guest cannot have ${memory} bytes of memory.`, {
        value: memory,
        hint: `--memory takes whole pages of ${GUEST_PAGE_SIZE} bytes, at least ${formatBytes(MEMORY_MIN)}`,
      });
    }
    const guest = WorkloadGuest.create({
      memoryBytes: memory,
      workload,
      writers,
      rate,
      workingSetBytes: Math.max(workingSet, GUEST_PAGE_SIZE),
      barrier,
    });
    const folder = mkdtempSync(join(tmpdir(), 'ramferry-demo-'));
    const destination = new DemoDestination();
    try {
      return await migrateAndCompare(invocation, guest, destination, `unix:${join(folder, 'migration.sock')}`);
    } finally {
      destination.end();
      await guest.shutdown();
      rmSync(folder, { recursive: true, force: true });
    }
  },
};

/** The second process. */
class DemoDestination {
  readonly #child: ChildProcess;

  constructor() {
    this.#child = fork(new URL('./demo-destination.js', import.meta.url), { stdio: ['ignore', 2, 2, 'ipc'] });
  }

  post(message: ToDemoDestination): void {
    this.#child.send(message);
  }

  /** Resolves with the next message of this type; rejects if the process fails or ends. */
  next<Type extends FromDemoDestination['type']>(type: Type): Promise<Extract<FromDemoDestination, { type: Type }>> {
    return new Promise((resolve, reject) => {
      const settle = (action: () => void): void => {
        this.#child.off('message', received);
        this.#child.off('exit', exited);
        action();
      };
      const received = (message: FromDemoDestination): void => {
        if (message.type === 'failed') {
          settle(() => reject(ramferryError(message.error)));
        } else if (message.type === type) {
          settle(() => resolve(message as Extract<FromDemoDestination, { type: Type }>));
        }
      };
      const exited = (): void =>
        settle(() =>
          reject(new RamferryError('failed', 'DESTINATION_DIED', 'The process of the destination ended unexpectedly.')),
        );
      this.#child.on('message', received);
      this.#child.on('exit', exited);
    });
  }

  end(): void {
    this.#child.removeAllListeners();
    this.#child.kill();
  }
}

async function migrateAndCompare(
  { options, progress, signal }: Invocation<DemoOptions>,
  guest: WorkloadGuest,
  destination: DemoDestination,
  uri: string,
): Promise<{ document: object; text: string; failure?: RamferryError }> {
  progress.update({ phase: `the guest fills ${formatBytes(Math.min(options.workingSet, options.memory))}` });
  const listening = destination.next('listening');
  destination.post({
    type: 'prepare',
    uri,
    writers: options.writers,
    barrier: options.barrier,
    memoryLimit: 2 * options.memory + 2 ** 26,
    steps: STEPS_AFTER,
  });
  await guest.start();
  await listening;

  const running = destination.next('running');
  // It is awaited below; if the migration fails first, that is the failure to report.
  running.catch(() => {});
  let warned = false;
  const migration = new Migration({
    guest: { kind: 'workload', shared: guest.share() },
    blocks: guest.blocks,
    uri,
    parameters: parametersOf(options),
    onProgress: (report) => {
      const warning = warned ? undefined : divergence(report);
      if (warning !== undefined) {
        warned = true;
        progress.note(`warning: ${warning}`);
      }
      progress.update(progressOf(report));
    },
    ...traceOf(options.trace, progress),
  });
  signal.addEventListener('abort', () => migration.cancel());
  const { report, error } = await migration.ended;
  for (const warning of report.ramferry.warnings) {
    progress.note(`warning: ${warning}`);
  }
  if (error !== undefined) {
    return { document: report, text: '', failure: error };
  }
  await running;

  progress.update({ phase: 'the guest runs on at the destination; its twin here takes the same steps' });
  guest.limitSteps(STEPS_AFTER);
  await guest.resume();
  const judged = destination.next('judged');
  destination.post({ type: 'judge' });
  const [here, there] = await Promise.all([judge(guest), judged.then(({ judgement }) => judgement)]);
  progress.finish();
  return verdict(options, report, here, there);
}

function verdict(
  options: DemoOptions,
  report: MigrationReport,
  here: Judgement,
  there: Judgement,
): { document: object; text: string; failure?: RamferryError } {
  const different = Object.keys(here.digests).filter((name) => here.digests[name] !== there.digests[name]);
  const verified = different.length === 0 && here.bad === 0 && there.bad === 0;
  const text = [
    `${formatBytes(options.memory)} guest, ${options.writers} threads (${options.workload}), writing ${
      options.rate === 0 ? 'as fast as it can' : formatRate(options.rate)
    } to ${formatBytes(options.workingSet)}`,
    '',
    ...(options.verbose === true ? [parameterTable(report)] : []),
    iterationTable(report),
    totalsTable(report),
    downtimeTable(report),
    `verifier of the guest   ${there.bad === 0 ? 'good' : 'BAD'}: ${formatCount(there.pagesChecked)} pages checked, ${there.bad} bad; it went on for ${formatCount(STEPS_AFTER)} steps a thread`,
    `whole-RAM digest        ${different.length === 0 ? 'equal' : `DIFFERENT in ${different.join(', ')}`}: sha256 ${there.digests['pc.ram']?.slice(0, 16)}… of pc.ram, here and there`,
    '',
  ].join('\n');
  const { ramferry, ...figures } = report;
  const document = {
    ...figures,
    ramferry: {
      ...ramferry,
      verified,
      verifier: { checked: there.pagesChecked, bad: there.bad },
      digests: there.digests,
    },
  };
  if (verified) {
    return { document, text };
  }
  return {
    document,
    text,
    failure: new RamferryError(
      'failed',
      'VERIFICATION_FAILED',
      `The migrated guest is not what it was: ${there.bad} bad pages, different blocks: ${different.join(', ') || 'none'}.`,
    ),
  };
}
