// A workload guest that comes in over a listener: its memory, its threads, and the engine that receives it, put together.
//
//   precopy    pages ─▶ devices ─▶ runs
//   postcopy   some pages ─▶ devices ─▶ runs, and waits for the pages that it lacks; a broken link: the next connection
//                                              to the same listener that says what only the source says is the source's

import type { ChannelListener } from '../channel/channel.js';
import { IncomingConnections } from '../channel/incoming-connections.js';
import { beginsStream } from '../destination/first-words.js';
import { MemoryTarget } from '../destination/memory-target.js';
import { MigrationDestination } from '../destination/migration-destination.js';
import { PostcopyTarget } from '../destination/postcopy-target.js';
import type { IncomingReport, IncomingStatus } from '../destination/statistics.js';
import { deviceStates } from '../format/stream/device-tail.js';
import type { BarrierChoice } from '../guest/workload/control.js';
import { type MissingPagesKind, WorkloadGuest } from '../guest/workload/workload-guest-node.js';
import { adviseHugePages } from '../memory/huge-pages-node.js';
import { BackgroundPopulator } from '../memory/populator-node.js';
import { RamBlockList } from '../memory/ram-block-list.js';

export interface IncomingWorkloadOptions {
  /** Closed when the migration has ended. */
  readonly listener: ChannelListener;
  /** Threads, as many as the guest has at its source. */
  readonly writers: number;
  readonly barrier: BarrierChoice;
  /** Most bytes of memory. */
  readonly memoryLimit: number;
  /** Accept a switch to postcopy, and wait for its source when the link breaks. Default: do not. */
  readonly postcopy?: MissingPagesKind;
  /** How long a recovery may take; see `IncomingPostcopyOptions`. */
  readonly recoveryMs?: number;
  /** The guest is complete but for pages that may follow, and runs after this. */
  readonly beforeRun?: (guest: WorkloadGuest) => void;
  readonly signal?: AbortSignal;
  readonly onStatus?: (status: IncomingStatus) => void;
}

export interface IncomingWorkload {
  readonly guest: WorkloadGuest;
  /** Resolves when all memory is there; rejects with why it will never be. */
  readonly ended: Promise<IncomingReport>;
}

/** Resolves when the guest runs; rejects if it never will. */
export async function receiveWorkload(options: IncomingWorkloadOptions): Promise<IncomingWorkload> {
  const { listener, writers, barrier, memoryLimit, postcopy, recoveryMs, signal } = options;
  const connections = new IncomingConnections(() => listener.accept());
  const channel = await connections.find(beginsStream, signal);
  const blocks = RamBlockList.create({ onSegment: adviseHugePages });
  const populator = new BackgroundPopulator();
  let guest: WorkloadGuest | undefined;
  let threads: Promise<void> | undefined;
  let runs!: (guest: WorkloadGuest) => void;
  const running = new Promise<WorkloadGuest>((resolve) => {
    runs = resolve;
  });
  const run = async (): Promise<void> => {
    await guest!.resume();
    runs(guest!);
  };
  const destination = new MigrationDestination({
    channel,
    target:
      postcopy !== undefined
        ? new PostcopyTarget({ blocks, memoryLimit, populator, missingPages: () => guest!.missingPages(postcopy) })
        : new MemoryTarget({ blocks, memoryLimit, populator }),
    ...(postcopy !== undefined && { postcopy: { run, connections, ...(recoveryMs !== undefined && { recoveryMs }) } }),
    ...(signal !== undefined && { signal }),
    // The blocks are known: the threads can start, parked, while the pages come in.
    onStatus: (status) => {
      if (status === 'active') {
        guest = WorkloadGuest.incoming(blocks, { writers, barrier });
        threads = guest.boot();
      }
      options.onStatus?.(status);
    },
    commit: async ({ summary }) => {
      await threads;
      guest!.load(deviceStates(summary.tail, summary.devices));
      options.beforeRun?.(guest!);
    },
  });
  const ended = destination.run().then(async (report) => {
    connections.close();
    await Promise.all([populator.close(), listener.close()]);
    if (report.status !== 'completed') {
      await guest?.shutdown();
      throw destination.error;
    }
    if (report.ramferry.postcopy === undefined) {
      await run();
    }
    return report;
  });
  return { guest: await Promise.race([running, ended.then(() => running)]), ended };
}
