// The source of the hint benchmarks: runs the guest that argument 1 describes (WorkloadOptions), and migrates it once, as it
// is told to.

import { setTimeout as sleep } from 'node:timers/promises';
import { GUEST_PAGE_SIZE } from '../kernels/kernels.js';
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
  /** Bytes a second that the guest wrote before the migration, and from its start until the guest was stopped. */
  readonly rateBefore: number;
  readonly rate: number;
}

/** The guest's rate before the migration is that of so long. */
const BEFORE_MS = 500;

const guest = WorkloadGuest.create(JSON.parse(process.argv[2]!) as WorkloadOptions);
await guest.start();
const bytesWritten = (): number => guest.counters().pagesWritten * GUEST_PAGE_SIZE;

serveParent(async (order) => {
  const { uri, maxBandwidth, downtimeLimit, hinted } = order as HintMigration;
  const [start, writtenAtStart] = [performance.now(), bytesWritten()];
  await sleep(BEFORE_MS);
  const rateBefore = ((bytesWritten() - writtenAtStart) * 1000) / (performance.now() - start);
  let writtenBefore = 0;
  const { report, error } = await new Migration({
    guest: { kind: 'workload', shared: guest.share(), wantsHints: hinted },
    uri,
    parameters: { maxBandwidth, downtimeLimit },
    retryMs: 5000,
    // Not earlier: what the guest writes while the engine's thread starts would favour short migrations.
    onStatus: (status) => {
      writtenBefore = status === 'setup' ? bytesWritten() : writtenBefore;
    },
  }).ended;
  if (error !== undefined) {
    throw error;
  }
  const { 'total-time': milliseconds, downtime = 0, ram } = report;
  const result: HintMigrationResult = {
    milliseconds,
    bytes: ram.transferred,
    downtimeMs: downtime,
    rateBefore,
    rate: ((bytesWritten() - writtenBefore) * 1000) / (milliseconds - downtime),
  };
  return result;
});
tellParent('ready');
