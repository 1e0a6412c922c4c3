// The second process of the demo: receives the workload guest, runs it, and says what became of it.
//
//   parent                              this process
//   ── prepare(writers) ──────────────▶ listens
//   ◀── listening(uri) ───────────────
//   ══ QEMU's stream over the socket ═▶ loads RAM while its writer threads start, parked
//   ◀══ SHUT ════════════════════════   the guest is complete; it runs on at once
//   ── judge ─────────────────────────▶ waits until the guest has done its steps, verifies, digests
//   ◀── judged(…) ────────────────────

import { listen } from '../channel/listen-node.js';
import { MemoryTarget } from '../destination/memory-target.js';
import { MigrationDestination } from '../destination/migration-destination.js';
import { deviceStates } from '../format/stream/device-tail.js';
import type { BarrierChoice } from '../guest/workload/control.js';
import { WorkloadGuest } from '../guest/workload/workload-guest-node.js';
import { adviseHugePages } from '../memory/huge-pages-node.js';
import { BackgroundPopulator } from '../memory/populator-node.js';
import { RamBlockList } from '../memory/ram-block-list.js';
import { type PlainError, plainError } from '../monitor/source-messages.js';
import { type Judgement, judge } from './demo-judgement.js';

export type ToDemoDestination =
  | {
      readonly type: 'prepare';
      readonly uri: string;
      readonly writers: number;
      readonly barrier: BarrierChoice;
      readonly memoryLimit: number;
      readonly steps: number;
    }
  | { readonly type: 'judge' };

export type FromDemoDestination =
  | { readonly type: 'listening'; readonly uri: string }
  | { readonly type: 'running' }
  | { readonly type: 'judged'; readonly judgement: Judgement }
  | { readonly type: 'failed'; readonly error: PlainError };

const post = (message: FromDemoDestination): void => {
  process.send?.(message);
};

async function receive(request: Extract<ToDemoDestination, { type: 'prepare' }>): Promise<WorkloadGuest> {
  const listener = await listen(request.uri);
  post({ type: 'listening', uri: listener.uri });
  const channel = await listener.accept();
  await listener.close();
  const blocks = RamBlockList.create({ onSegment: adviseHugePages });
  const populator = new BackgroundPopulator();
  const target = new MemoryTarget({ blocks, memoryLimit: request.memoryLimit, populator });
  let guest: WorkloadGuest | undefined;
  let threads: Promise<void> | undefined;
  const destination = new MigrationDestination({
    channel,
    target,
    // The blocks are known: the threads can start, parked, while the pages come in.
    onStatus: (status) => {
      if (status === 'active') {
        guest = WorkloadGuest.incoming(blocks, { writers: request.writers, barrier: request.barrier });
        threads = guest.boot();
      }
    },
    commit: async ({ summary }) => {
      await threads;
      guest?.load(deviceStates(summary.tail, summary.devices));
      guest?.limitSteps(request.steps);
    },
  });
  const report = await destination.run();
  await populator.close();
  if (guest === undefined || report.status !== 'completed') {
    throw destination.error ?? new Error('the migration did not complete');
  }
  await guest.resume();
  return guest;
}

let guest: WorkloadGuest | undefined;

process.on('message', async (message: ToDemoDestination) => {
  try {
    if (message.type === 'prepare') {
      guest = await receive(message);
      post({ type: 'running' });
    } else if (guest !== undefined) {
      const judgement = await judge(guest);
      await guest.shutdown();
      post({ type: 'judged', judgement });
    }
  } catch (error) {
    post({ type: 'failed', error: plainError(error) });
  }
});
process.on('disconnect', () => process.exit());
