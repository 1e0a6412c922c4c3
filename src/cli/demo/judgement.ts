// Whether a guest is intact, judged by itself and by a digest. The demo judges twice: the guest that was migrated, and
// the original, which goes on as its twin; a workload guest does the same in the same step wherever it runs.

import { KERNEL_BLOCK } from '../../guest/workload/machine.js';
import type { WorkloadGuest } from '../../guest/workload/workload-guest-node.js';

/** What became of a guest. */
export interface Judgement {
  /** sha256 of each block, by name; free pages count as zero. */
  readonly digests: Readonly<Record<string, string>>;
  readonly pagesWritten: number;
  readonly pagesChecked: number;
  /** Pages found wrong by the guest's own checks, while it ran and in the end. */
  readonly bad: number;
}

/**
 * Lets a stopped guest take so many steps more. Before that its balloon gives back what it holds: whether a writer finds that
 * free already would be up to the scheduler, and twins are to do the same.
 */
export async function runOn(guest: WorkloadGuest, steps: number): Promise<void> {
  guest.limitSteps(0);
  // The original, which has moved away, runs on as the twin of the other.
  guest.takeBack();
  await guest.resume();
  await guest.balloonIdle();
  await guest.stop();
  guest.limitSteps(steps);
  await guest.resume();
}

/** Waits until the guest has taken its steps, then checks and digests all of it. */
export async function judge(guest: WorkloadGuest): Promise<Judgement> {
  await guest.finished();
  await guest.stop();
  const { bad } = guest.verify();
  const counters = guest.counters();
  // In it are the rings of the balloon's queues: which of device and driver looked at them last is up to the scheduler.
  const { [KERNEL_BLOCK]: _, ...digests } = guest.digests();
  return {
    digests,
    pagesWritten: counters.pagesWritten,
    pagesChecked: counters.pagesChecked,
    bad: counters.bad + bad,
  };
}

/** In what two guests differ that should not: blocks, or pages that are bad by their own account. */
export const differences = (here: Judgement, there: Judgement): string[] => [
  ...Object.keys(here.digests).filter((name) => here.digests[name] !== there.digests[name]),
  ...(here.bad + there.bad > 0 ? [`${here.bad + there.bad} bad pages`] : []),
];
