// The first act of the demo: the guest is migrated with nothing that saves anything, so that there is something to compare
// with. Neither side takes a step then: both must hold the same, byte for byte, and the guest goes on here.

import type { WorkloadGuest } from '../../guest/workload/workload-guest-node.js';
import { RamferryError } from '../../memory/errors.js';
import type { MigrationReport } from '../../source/statistics.js';
import { formatBytes, formatCount, formatDuration, formatPercent, formatTable } from '../format.js';
import type { Invocation } from '../verb.js';
import { differences, judge, runOn } from './judgement.js';
import { DemoDestination, type DemoMigrationOptions, migrateTo } from './process.js';

/** Throws what the migration failed with, and VERIFICATION_FAILED. */
export async function migratePlainly(
  guest: WorkloadGuest,
  invocation: Pick<Invocation<unknown>, 'progress' | 'signal'>,
  options: Pick<DemoMigrationOptions, 'uri' | 'parameters'> & {
    readonly prepare: Omit<DemoMigrationOptions['prepare'], 'steps'>;
  },
): Promise<MigrationReport> {
  const destination = new DemoDestination();
  try {
    const { report, error } = await migrateTo(destination, guest, invocation, {
      ...options,
      name: 'plain precopy',
      wantsHints: false,
      parameters: { ...options.parameters, eagerClear: true },
      prepare: { ...options.prepare, steps: 0 },
    });
    if (error !== undefined) {
      throw error;
    }
    const judged = destination.next('judged');
    destination.post({ type: 'judge' });
    await runOn(guest, 0);
    const [here, { judgement: there }] = await Promise.all([judge(guest), judged]);
    const different = differences(here, there);
    if (different.length > 0) {
      throw new RamferryError(
        'failed',
        'VERIFICATION_FAILED',
        `The plainly migrated guest is not what it was: ${different.join(', ')}.`,
      );
    }
    guest.limitSteps(Number.POSITIVE_INFINITY);
    await guest.resume();
    return report;
  } finally {
    destination.end();
  }
}

/** What part of time and bytes was saved; negative if it was none. */
export interface Saving {
  readonly time: number;
  readonly bytes: number;
}

export const savingOf = (plain: MigrationReport, report: MigrationReport): Saving => {
  const part = (before: number, after: number): number => Math.round((1 - after / before) * 1000) / 1000;
  return {
    time: part(plain['total-time'], report['total-time']),
    bytes: part(plain.ram.transferred, report.ram.transferred),
  };
};

/** Both migrations side by side. */
export const comparisonTable = (plain: MigrationReport, report: MigrationReport): string => {
  const saving = savingOf(plain, report);
  const row = (name: string, of: (report: MigrationReport) => string, saved = ''): string[] => [
    name,
    of(plain),
    of(report),
    saved,
  ];
  return formatTable(
    [
      ['', 'plain precopy', 'free page hints', 'saved'],
      row('total time', (of) => formatDuration(of['total-time']), formatPercent(saving.time)),
      row('transferred', ({ ram }) => formatBytes(ram.transferred), formatPercent(saving.bytes)),
      row('pages', ({ ram }) => formatCount(ram.normal + ram.duplicate)),
      row('hinted', ({ ramferry }) => formatCount(ramferry.hints.honoured)),
      row('log cleared', ({ ramferry }) => formatCount(ramferry.logClears.pages)),
      row('downtime', ({ downtime = 0 }) => formatDuration(downtime)),
    ],
    ['left', 'right', 'right', 'right'],
  );
};
