// The source of the hint benchmarks: runs the guest that argument 1 describes (WorkloadOptions) and migrates it to every
// destination it is told of. The guest goes on here after each migration, as if that had failed.

import { WorkloadGuest, type WorkloadOptions } from '../src/guest/index.js';
import { Migration } from '../src/monitor/migration.js';
import { serveParent, tellParent } from './node-child.js';

export interface HintMigration {
  readonly uri: string;
  /** Bytes per second, 0 for unlimited. */
  readonly maxBandwidth: number;
  readonly downtimeLimit: number;
  /** Whether the guest's hints are listened to. */
  readonly hinted: boolean;
}

export interface HintMigrationResult {
  readonly milliseconds: number;
  readonly bytes: number;
  readonly downtimeMs: number;
  /** Bytes that the guest wrote, by the seconds in which it ran. */
  readonly guestRate: number;
  readonly hintedPages: number;
}

const options = JSON.parse(process.argv[2]!) as WorkloadOptions;
const guest = WorkloadGuest.create(options);
await guest.start();
serveParent(async (question) => {
  const { uri, maxBandwidth, downtimeLimit, hinted } = question as HintMigration;
  const before = guest.counters().pagesWritten;
  const { report, error } = await new Migration({
    guest: { kind: 'workload', shared: guest.share(), wantsHints: hinted },
    uri,
    parameters: { maxBandwidth, downtimeLimit },
    retryMs: 5000,
  }).ended;
  if (error !== undefined) {
    throw error;
  }
  const written = (guest.counters().pagesWritten - before) * 4096;
  await guest.resume();
  await guest.balloonIdle();
  const { 'total-time': milliseconds, downtime = 0 } = report;
  const result: HintMigrationResult = {
    milliseconds,
    bytes: report.ram.transferred,
    downtimeMs: downtime,
    guestRate: (written * 1000) / (milliseconds - downtime),
    hintedPages: report.ramferry.hints.honoured,
  };
  return result;
});
tellParent('ready');
