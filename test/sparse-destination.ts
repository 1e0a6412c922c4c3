// The other host of sparse-guest.test.ts and of bench/discards.ts: a process that receives a workload guest, lets it run, and says
// what it has become.
//
//   parent ── options ──▶ listens ── uri ──▶ parent   … migration …   ── received ──▶ parent ── judge ──▶ verifies ── judged ──▶

import { listen } from '../src/channel/index.js';
import { MemoryTarget, MigrationDestination } from '../src/destination/index.js';
import { deviceStates } from '../src/format/stream/index.js';
import { WorkloadGuest, type WorkloadOptions } from '../src/guest/index.js';
import { BackgroundPopulator } from '../src/memory/populator-node.js';
import { residentBytes, residentDiscardedPages } from './residency.js';

export type ToSparseDestination =
  | { readonly type: 'receive'; readonly options: WorkloadOptions }
  | { readonly type: 'judge' };

export type FromSparseDestination =
  | { readonly type: 'listening'; readonly uri: string }
  | { readonly type: 'received'; readonly status: string }
  | {
      readonly type: 'judged';
      readonly residentBytes: number;
      readonly residentDiscardedPages: number | undefined;
      readonly pluggedBytes: number;
      readonly checked: number;
      readonly bad: number;
      readonly isStale: boolean;
    };

let guest: WorkloadGuest;

const post = (message: FromSparseDestination): void => {
  process.send?.(message);
};

const receive = async (options: WorkloadOptions): Promise<void> => {
  guest = WorkloadGuest.create(options);
  await guest.boot();
  const listener = await listen('tcp:127.0.0.1:0');
  post({ type: 'listening', uri: listener.uri });
  const channel = await listener.accept();
  await listener.close();
  const populator = new BackgroundPopulator();
  const destination = new MigrationDestination({
    channel,
    target: new MemoryTarget({ blocks: guest.blocks, populator }),
    earlySection: (section, body) => guest.loadEarly(section, body),
    commit: async ({ summary }) => guest.load(deviceStates(summary.tail, summary.devices)),
  });
  const { status } = await destination.run();
  await populator.close();
  if (status === 'completed') {
    await guest.resume();
  }
  post({ type: 'received', status });
};

const judge = async (): Promise<void> => {
  await guest.stop();
  // Before verifying, which reads everything that is plugged anyway.
  const bytes = residentBytes();
  const { checked, bad, staleTables } = guest.verify();
  const { block, pluggedBytes } = guest.virtioMem!;
  post({
    type: 'judged',
    residentBytes: bytes,
    residentDiscardedPages: residentDiscardedPages(block),
    pluggedBytes,
    checked,
    bad,
    isStale: staleTables.length > 0,
  });
  await guest.shutdown();
};

process.on('message', (message: ToSparseDestination) => {
  void (message.type === 'receive' ? receive(message.options) : judge());
});
process.on('disconnect', () => process.exit());
