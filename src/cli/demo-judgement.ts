// Whether a guest is intact, judged by itself and by a digest. The demo judges twice: the guest that was migrated, and
// the original, which goes on as its twin; a workload guest does the same in the same step wherever it runs.

import { digestBlocks } from '../guest/digest-node.js';
import type { WorkloadGuest } from '../guest/workload/workload-guest-node.js';

/** What became of a guest. */
export interface Judgement {
  /** sha256 of each block, by name. */
  readonly digests: Readonly<Record<string, string>>;
  readonly pagesWritten: number;
  readonly pagesChecked: number;
  /** Pages found wrong by the guest's own checks, while it ran and in the end. */
  readonly bad: number;
}

/** The guest has halted: checks and digests all of it. */
export async function judge(guest: WorkloadGuest): Promise<Judgement> {
  await guest.finished();
  await guest.stop();
  const { bad } = guest.verify();
  const counters = guest.counters();
  return {
    digests: digestBlocks(guest.blocks),
    pagesWritten: counters.pagesWritten,
    pagesChecked: counters.pagesChecked,
    bad: counters.bad + bad,
  };
}
