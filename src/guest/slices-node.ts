// Long work on a guest's memory, done in slices with room for others between them: for Ctrl-C, and for the guests that run.

import { setImmediate as nextTurn } from 'node:timers/promises';

/** Longest time in which nobody else gets a turn. */
export const SLICE_MS = 30;

/** Calls `step`, which returns how many bytes it did, until `totalBytes` are done or it returns 0. */
export type Slices = (phase: string, totalBytes: number, step: () => number) => Promise<void>;

/** Slices without a progress line. Reject with the reason of the signal. */
export const inTurns =
  (signal: AbortSignal | undefined): Slices =>
  async (_phase, totalBytes, step) => {
    let sliceEnd = performance.now() + SLICE_MS;
    for (let done = 0; done < totalBytes; ) {
      const bytes = step();
      if (bytes === 0) {
        return;
      }
      done += bytes;
      if (performance.now() >= sliceEnd) {
        await nextTurn();
        signal?.throwIfAborted();
        sliceEnd = performance.now() + SLICE_MS;
      }
    }
  };
