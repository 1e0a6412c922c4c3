// `ramferry demo`: a busy guest in this process is live-migrated to a second process, runs on there, and is compared. Before
// that it is migrated plainly, so that one sees what free page hints and the lazy clear save. In the end it is saved, and restored
// before its memory is loaded (restore.ts).
//
// How the two are compared: after the switchover the original does not run any more, but it is still there. Both are
// allowed the same number of further steps, and then both memories must be the same to the byte. A page that was lost,
// stale or torn, or device state that was, makes them differ; so would a guest that did not really run on.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Command, Option } from 'commander';
import { GUEST_PAGE_SIZE } from '../../../kernels/kernels.js';
import type { BarrierChoice } from '../../guest/workload/control.js';
import type { WorkloadKind } from '../../guest/workload/registers.js';
import { WorkloadGuest, type WorkloadOptions } from '../../guest/workload/workload-guest-node.js';
import { RamferryError } from '../../memory/errors.js';
import type { MigrationReport } from '../../source/statistics.js';
import { parseInteger } from '../arguments.js';
import { formatBytes, formatCount, formatRate } from '../format.js';
import {
  addLiveOptions,
  type MigrationVerbOptions,
  parametersOf,
  rateOption,
  sizeOption,
  traceOf,
} from '../migration-options.js';
import { downtimeTable, iterationTable, parameterTable, totalsTable } from '../migration-report.js';
import type { Invocation, Verb } from '../verb.js';
import { differences, type Judgement, judge, runOn } from './judgement.js';
import { comparisonTable, migratePlainly, savingOf } from './plain.js';
import { DemoDestination, migrateTo } from './process.js';
import { demoQemu } from './qemu.js';
import { type DemoResult, saveAndRestore, withRestore } from './restore.js';

interface DemoOptions extends MigrationVerbOptions {
  readonly memory: number;
  readonly guest: 'workload' | 'qemu';
  readonly workload: WorkloadKind;
  readonly writers: number;
  readonly rate: number;
  readonly workingSet: number;
  readonly barrier: BarrierChoice;
  readonly plain: boolean;
  readonly restore: boolean;
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
      .addOption(new Option('--guest <kind>', 'what runs inside').choices(['workload', 'qemu']).default('workload'))
      .addOption(
        new Option('--workload <kind>', 'what the guest does')
          .choices(['idle', 'churn', 'fillfree', 'build'])
          .default('churn'),
      )
      .option('--writers <n>', 'threads of the guest', parseInteger(1, 64), 2)
      .addOption(
        rateOption('--rate <bytes>', 'bytes the guest writes per second; 0 for as fast as it can', 96 * 2 ** 20),
      )
      .addOption(sizeOption('--working-set <bytes>', 'memory the guest works on', 384 * 2 ** 20))
      .addOption(
        new Option('--barrier <variant>', 'how stores are marked')
          .choices(['unconditional', 'filtered'])
          .default('unconditional'),
      )
      .option('--no-plain', 'leave out the plain migration, which is there to compare with')
      .option('--no-restore', 'leave out the last act: saved, and restored before its memory is loaded');
  },
  examples: [
    ['', 'migrate a busy guest of 1 GiB to a second process and compare'],
    ['--rate 160M --downtime-limit 30', 'a busier guest and a tighter limit: more passes'],
    ['--clear-bitmap-shift 6 --trace "migration_bitmap_*"', 'watch the dirty log being synced and cleared'],
    ['--max-bandwidth 0 --json', 'as fast as the machine can, as JSON'],
    ['--guest qemu --memory 512M --working-set 128M', 'a Linux in a stock QEMU, saved and cloned four times'],
  ],

  async run(invocation) {
    const { memory, workload, writers, rate, workingSet, barrier } = invocation.options;
    if (memory < MEMORY_MIN || memory % GUEST_PAGE_SIZE !== 0) {
      throw new RamferryError('usage', 'INVALID_VALUE', `A guest cannot have ${memory} bytes of memory.`, {
        value: memory,
        hint: `--memory takes whole pages of ${GUEST_PAGE_SIZE} bytes, at least ${formatBytes(MEMORY_MIN)}`,
      });
    }
    if (invocation.options.guest === 'qemu') {
      const folder = mkdtempSync(join(tmpdir(), 'ramferry-demo-'));
      try {
        return await demoQemu(invocation, folder);
      } finally {
        rmSync(folder, { recursive: true, force: true });
      }
    }
    const machine: WorkloadOptions = {
      memoryBytes: memory,
      workload,
      writers,
      rate,
      workingSetBytes: Math.max(workingSet, GUEST_PAGE_SIZE),
      barrier,
      freePageHints: true,
      garbage: true,
    };
    const guest = WorkloadGuest.create(machine);
    const folder = mkdtempSync(join(tmpdir(), 'ramferry-demo-'));
    const destination = new DemoDestination();
    try {
      const migrated = await migrateAndCompare(
        invocation,
        guest,
        destination,
        `unix:${join(folder, 'migration.sock')}`,
      );
      destination.end();
      if (!invocation.options.restore || migrated.failure !== undefined) {
        return migrated;
      }
      const restore = await saveAndRestore(guest, invocation, { folder, machine, steps: STEPS_AFTER });
      invocation.progress.finish();
      return withRestore(migrated, restore);
    } finally {
      destination.end();
      await guest.shutdown();
      rmSync(folder, { recursive: true, force: true });
    }
  },
};

async function migrateAndCompare(
  invocation: Invocation<DemoOptions>,
  guest: WorkloadGuest,
  destination: DemoDestination,
  uri: string,
): Promise<DemoResult> {
  const { options, progress } = invocation;
  progress.update({ phase: `the guest fills ${formatBytes(options.memory)}` });
  await guest.start();
  const prepare = { writers: options.writers, barrier: options.barrier, memoryLimit: 2 * options.memory + 2 ** 26 };
  const parameters = parametersOf(options);
  const plain = options.plain ? await migratePlainly(guest, invocation, { uri, parameters, prepare }) : undefined;
  const { report, error } = await migrateTo(destination, guest, invocation, {
    uri,
    name: 'free page hints',
    wantsHints: true,
    parameters,
    prepare: { ...prepare, steps: STEPS_AFTER },
    ...traceOf(options.trace, progress),
  });
  if (error !== undefined) {
    return { document: report, text: '', failure: error };
  }
  progress.update({ phase: 'the guest runs on at the destination; its twin here takes the same steps' });
  await runOn(guest, STEPS_AFTER);
  const judged = destination.next('judged');
  destination.post({ type: 'judge' });
  const [here, there] = await Promise.all([judge(guest), judged.then(({ judgement }) => judgement)]);
  progress.finish();
  return verdict(options, plain, report, here, there);
}

function verdict(
  options: DemoOptions,
  plain: MigrationReport | undefined,
  report: MigrationReport,
  here: Judgement,
  there: Judgement,
): DemoResult {
  const different = differences(here, there);
  const verified = different.length === 0;
  const text = [
    `${formatBytes(options.memory)} guest, ${options.writers} threads (${options.workload}), writing ${
      options.rate === 0 ? 'as fast as it can' : formatRate(options.rate)
    } to ${formatBytes(options.workingSet)}, ${formatBytes(Math.max(0, options.memory - options.workingSet))} free`,
    '',
    ...(options.verbose === true ? [parameterTable(report)] : []),
    iterationTable(report),
    plain === undefined ? totalsTable(report) : comparisonTable(plain, report),
    downtimeTable(report),
    `after the switchover    ${formatCount(STEPS_AFTER)} steps of each thread, here and there`,
    `verifier of the guest   ${there.bad === 0 ? 'good' : 'BAD'}: ${formatCount(there.pagesChecked)} pages checked, ${there.bad} bad`,
    `digest of used memory   ${different.length === 0 ? 'equal' : `DIFFERENT in ${different.join(', ')}`}: sha256 ${there.digests['pc.ram']?.slice(0, 16)}… of pc.ram`,
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
      ...(plain !== undefined && { plain, saved: savingOf(plain, report) }),
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
      `The migrated guest is not what it was: ${different.join(', ')}.`,
    ),
  };
}
