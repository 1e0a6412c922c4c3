// The source of the hint benchmarks: runs the guest that argument 1 describes (WorkloadOptions), and migrates it once, as it
// is told to.

import { setTimeout as sleep } from 'node:timers/promises';
import { GUEST_PAGE_SIZE } from '../kernels/kernels.js';
import { WorkloadGuest, type WorkloadOptions } from '../src/guest/index.js';
import { Migration } from '../src/migration/migration.js';
import type { HintedRange, HintSource } from '../src/source/guest.js';
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

/** So often has the guest's driver reported everything before: a kernel's is compiled, this one is then. */
const SWEEPS_BEFORE = 8;

const options = JSON.parse(process.argv[2]!) as WorkloadOptions;
const guest = WorkloadGuest.create(options);
await guest.start();
// One that zeroes what it takes would have no garbage left; and it zeroes for ten times as long as it interprets.
if (options.initOnAlloc !== true) {
  for (let sweep = 0; sweep < SWEEPS_BEFORE; sweep += 1) {
    await letSweep(guest.source.hints!);
  }
}
const bytesWritten = (): number => guest.counters().pagesWritten * GUEST_PAGE_SIZE;

/** Takes all hints and forgets them. */
async function letSweep(hints: HintSource): Promise<void> {
  const range: HintedRange = { blockId: 0, firstPage: 0, pageCount: 0 };
  hints.request();
  for (let swept = false; !swept; await sleep(1)) {
    swept = hints.status === 'stop';
    while (hints.next(range)) {}
    hints.acknowledge();
  }
  hints.done();
  await guest.balloonIdle();
}

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
