// What the two ends of the load barrier share: the engine's LoadBarrier and a LoadBarrierReader in each guest thread. It is the
// store barrier's sibling: a guest thread asks before it touches a page whether the page has come from the source.
//
//   thread:  received bit? ── yes ──────────────────────────────────────────────────▶ load or store
//                └─ no ─▶ waiting += 1, slot = page, asked += 1 ─▶ sleep on `arrived` ─▶ received bit? …
//   engine:  copy page ─▶ set received bit ─▶ waiting > 0? ─▶ arrived += 1, wake
//
// The thread announces itself first and looks at the bit second, the engine sets the bit first and looks for waiters second:
// sequential consistency leaves no order in which both miss.

/** What becomes of missing pages. */
export const Arrival = { none: 0, expected: 1, abandoned: 2 } as const;

/** Words of the control block. What different threads write lies in cache lines of its own. */
export const LoadControl = {
  /** An `Arrival`. Threads look at it when the epoch changes, and before they wait. */
  state: 0,
  /** Counts up whenever pages came while somebody waited; guest threads sleep on it. */
  arrived: 16,
  /** Threads that wait, or are about to. */
  waiting: 32,
  /** Counts the waits; the engine sleeps on it. */
  asked: 48,
  /** From here on a line for each writer: 1 if its wait was not taken yet, id of the block, page. */
  slots: 64,
} as const;

const LINE_WORDS = 16;

export const slotWord = (writer: number): number => LoadControl.slots + writer * LINE_WORDS;

/** Structured-cloneable. */
export interface LoadBarrierShared {
  readonly control: SharedArrayBuffer;
  readonly writerCount: number;
}

export const allocateLoadBarrier = (writerCount: number): LoadBarrierShared => ({
  control: new SharedArrayBuffer(slotWord(writerCount) * 4),
  writerCount,
});

/**
 * Ends the guest threads that wait for pages, or will: for whoever ends the guest, in whatever thread. Without effect once all
 * pages are there.
 */
export function abandonMissingPages({ control }: LoadBarrierShared): void {
  const words = new Int32Array(control);
  Atomics.compareExchange(words, LoadControl.state, Arrival.expected, Arrival.abandoned);
  wakeReaders(words);
}

/** Whether pages are still to come. */
export const areMissingPages = ({ control }: LoadBarrierShared): boolean =>
  Atomics.load(new Int32Array(control), LoadControl.state) !== Arrival.none;

export function wakeReaders(control: Int32Array): void {
  Atomics.add(control, LoadControl.arrived, 1);
  Atomics.notify(control, LoadControl.arrived);
}
