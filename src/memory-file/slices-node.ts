// Long work on a guest's memory, done in slices with room for others between them: for Ctrl-C, and for the guests that run.

import { setImmediate as nextTurn } from 'node:timers/promises';

/** Longest time in which nobody else gets a turn. */
export const SLICE_MS = 30;

/** Calls `step`, which returns how many bytes it did, until `totalBytes` are done or it returns 0. */
export type Slices = (phase: string, totalBytes: number, step: () => number) => Promise<void>;

/**
 * Slices with a turn for everybody else between them. Reject with the reason of the signal.
 * @param onTurn is told how many bytes are done, at the end of each slice
 */
export const inTurns =
  (signal: AbortSignal | undefined, onTurn?: (phase: string, totalBytes: number, doneBytes: number) => void): Slices =>
  async (phase, totalBytes, step) => {
    let sliceEnd = performance.now() + SLICE_MS;
    for (let done = 0; done < totalBytes; ) {
      const bytes = step();
      if (bytes === 0) {
        return;
      }
      done += bytes;
      if (performance.now() >= sliceEnd) {
        onTurn?.(phase, totalBytes, done);
        await nextTurn();
        signal?.throwIfAborted();
        sliceEnd = performance.now() + SLICE_MS;
      }
    }
  };
