// The second process of the demo: receives the workload guest, runs it, and says what became of it.
//
//   parent                              this process
//   ── prepare(writers) ──────────────▶ listens
//   ◀── listening(uri) ───────────────
//   ══ QEMU's stream over the socket ═▶ loads RAM while its writer threads start, parked
//   ◀══ SHUT ════════════════════════   the guest is complete; it runs on at once
//   ── judge ─────────────────────────▶ waits until the guest has done its steps, verifies, digests
//   ◀── judged(…) ────────────────────

import { listen } from '../../channel/listen-node.js';
import type { IncomingReport } from '../../destination/statistics.js';
import type { BarrierChoice } from '../../guest/workload/control.js';
import type { MissingPagesKind } from '../../guest/workload/workload-guest-node.js';
import { type IncomingWorkload, receiveWorkload } from '../../migration/incoming-workload.js';
import { type PlainError, plainError } from '../../migration/source-messages.js';
import { type Judgement, judge, runOn } from './judgement.js';

export type ToDemoDestination =
  | {
      readonly type: 'prepare';
      readonly uri: string;
      readonly writers: number;
      readonly barrier: BarrierChoice;
      readonly memoryLimit: number;
      readonly steps: number;
      readonly postcopy?: MissingPagesKind;
    }
  | { readonly type: 'judge' };

export type FromDemoDestination =
  | { readonly type: 'listening'; readonly uri: string }
  | { readonly type: 'running' }
  | { readonly type: 'complete'; readonly report: IncomingReport }
  | { readonly type: 'judged'; readonly judgement: Judgement }
  | { readonly type: 'failed'; readonly error: PlainError };

const post = (message: FromDemoDestination): void => {
  process.send?.(message);
};

async function receive(request: Extract<ToDemoDestination, { type: 'prepare' }>): Promise<IncomingWorkload> {
  const listener = await listen(request.uri);
  post({ type: 'listening', uri: listener.uri });
  const { steps, postcopy } = request;
  const incoming = await receiveWorkload({
    ...request,
    listener,
    beforeRun: (guest) => guest.limitSteps(postcopy === undefined ? 0 : steps),
  });
  if (postcopy === undefined) {
    await runOn(incoming.guest, steps);
  }
  return incoming;
}

let incoming: IncomingWorkload | undefined;

process.on('message', async (message: ToDemoDestination) => {
  try {
    if (message.type === 'prepare') {
      incoming = await receive(message);
      post({ type: 'running' });
      post({ type: 'complete', report: await incoming.ended });
    } else if (incoming !== undefined) {
      const { guest, ended } = incoming;
      await ended;
      const judgement = await judge(guest);
      await guest.shutdown();
      post({ type: 'judged', judgement });
    }
  } catch (error) {
    post({ type: 'failed', error: plainError(error) });
  }
});
process.on('disconnect', () => process.exit());
