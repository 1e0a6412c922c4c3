// A migration as people read it: while it runs, and in the end.

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { PassTarget } from '../destination/pass-target.js';
import type { IncomingReport } from '../destination/statistics.js';
import type { MigrationReport, RamStatistics } from '../source/statistics.js';
import { formatBytes, formatCount, formatDuration, formatRate, formatTable } from './format.js';
import type { ProgressState } from './progress.js';

/** In these pages move; in all others somebody is waited for. */
const MOVING: ReadonlySet<string> = new Set(['active', 'postcopy-active']);

export const progressOf = (report: MigrationReport): ProgressState => ({
  phase: report.status,
  totalBytes: report.ram.total,
  remainingBytes: report.ram.remaining,
  // Not what travels: of a zero page that is nine bytes.
  bytesPerSecond: report.ram['pages-per-second'] * report.ram['page-size'],
  isWaiting: !MOVING.has(report.status),
  iteration: report.ramferry.iterations.length + 1,
  ...(report.ram['dirty-pages-rate'] > 0 && { dirtyBytesPerSecond: report.ram['dirty-pages-rate'] * GUEST_PAGE_SIZE }),
});

/** The same of a migration that comes in. */
export const incomingProgress = ({ status, ram }: IncomingReport, target: PassTarget): ProgressState =>
  status === 'active'
    ? {
        phase: status,
        totalBytes: ram.total,
        remainingBytes: ram.total - target.position,
        bytesPerSecond: ram['pages-per-second'] * ram['page-size'],
        iteration: target.passes,
      }
    : { phase: status };

/**
 * A sentence if the migration will not end by itself: what the guest dirties in a second is as much as travels in one.
 * Undefined while it may, and while neither rate is known.
 */
export const divergence = ({ ram, ramferry }: MigrationReport): string | undefined => {
  const dirtied = ram['dirty-pages-rate'] * GUEST_PAGE_SIZE;
  const sent = (ram.mbps * 1e6) / 8;
  if (sent === 0 || dirtied < sent * 0.95 || ramferry.parameters['auto-converge'] === true) {
    return undefined;
  }
  return `The guest dirties ${formatRate(dirtied)} and ${formatRate(sent)} travel: this will not end by itself. More bandwidth, a longer --downtime-limit or --auto-converge help.`;
};

/** One line for each pass over memory. */
export const iterationTable = ({ ramferry }: MigrationReport): string =>
  formatTable(
    [
      ['pass', 'time', 'normal', 'zero', 'sent', 'rate', 'dirtied', 'log clears'],
      ...ramferry.iterations.map((pass) => [
        pass.guestRunning ? String(pass.iteration) : 'stopped',
        formatDuration(pass.durationMs),
        formatCount(pass.normalPages),
        formatCount(pass.zeroPages),
        formatBytes(pass.bytes),
        formatRate((pass.bytes * 1000) / Math.max(1, pass.durationMs)),
        formatCount(pass.dirtiedPages),
        `${formatCount(pass.logClears.calls)} (${formatCount(pass.logClears.pages)} pages)`,
      ]),
    ],
    ['right', 'right', 'right', 'right', 'right', 'right', 'right', 'right'],
  );

/** What travelled, and how fast; of either end. */
export const totalsTable = (report: {
  readonly 'total-time': number;
  readonly ram: Pick<RamStatistics, 'transferred' | 'total' | 'normal' | 'duplicate' | 'mbps'>;
}): string => {
  const { ram } = report;
  return formatTable(
    [
      ['total time', formatDuration(report['total-time'])],
      ['transferred', `${formatBytes(ram.transferred)} for ${formatBytes(ram.total)} of guest memory`],
      ['pages', `${formatCount(ram.normal)} normal, ${formatCount(ram.duplicate)} zero`],
      ['throughput', formatRate((ram.mbps * 1e6) / 8)],
    ],
    ['left', 'left'],
  );
};

/** How long the guest stood still, and why; empty if it did not come to that. */
export const downtimeTable = ({ downtime, ram, ramferry }: MigrationReport): string => {
  const breakdown = ramferry.downtimeBreakdown;
  if (downtime === undefined || breakdown === undefined) {
    return '';
  }
  return formatTable(
    [
      ['downtime', formatDuration(downtime), `limit ${formatDuration(Number(ramferry.parameters['downtime-limit']))}`],
      ['  stop the guest', formatDuration(breakdown.stopMs), ''],
      ['  last log sync', formatDuration(breakdown.syncMs), ''],
      ['  rest of RAM', formatDuration(breakdown.ramMs), formatBytes(ram['downtime-bytes'])],
      ['  device state', formatDuration(breakdown.deviceMs), ''],
      ['  destination answers', formatDuration(breakdown.ackMs), ''],
    ],
    ['left', 'right', 'left'],
  );
};

/** The parameters in effect, by their QMP names. */
export const parameterTable = ({ ramferry }: MigrationReport): string =>
  formatTable(
    Object.entries(ramferry.parameters).map(([name, value]) => [name, String(value)]),
    ['left', 'left'],
  );
