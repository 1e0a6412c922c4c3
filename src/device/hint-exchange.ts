// How free page hints get from the balloon device's thread to the engine's (spec/algorithms.md section 3): shared words, of
// which each is stored by one thread only, and a bounded ring of ranges. There is no lock (FH-25).
//
//   guest driver          device's thread (HintReceiver)            engine's thread (BalloonHints)
//      │◀─ configuration: command id ◀───────────────────────────────── request: REQUESTED = id, show id
//      ├─ element: id ───────────▶ is it REQUESTED, and shown? STARTED = id
//      ├─ elements: ranges ──────▶ if STARTED is REQUESTED: ring entry with id, TAIL ─▶ next: TAKEN, id current? ─▶ send bitmap
//      │◀─ element (acknowledge mode: when APPLIED has passed it) ◀──── acknowledge: APPLIED
//      ├─ element: other id ─────▶ show 0 instead of id
//      │◀─ configuration: 0 ◀────────────────────────────────────────── stop: REQUESTED = 0, show 0
//
// Status is derived: REQUESTED is 0: stop; 1: done; else an id, for which the guest was asked ("requested") if it is shown and not
// STARTED, which it answers ("start") if it is shown and STARTED, and has ended ("stop") if it is no longer shown.
//
// Why this needs no lock. All words are accessed with `Atomics`, so all threads agree on one order of these accesses:
// - Whether a range is applied is decided in the engine's thread alone, which stores REQUESTED itself: once `stop` has
//   returned, no range of the old id passes `next`, whatever the device still puts into the ring (FH-7, FH-8).
// - The device returns an element early (acknowledge mode) if REQUESTED is not its id: the engine has then stored a new
//   REQUESTED, after all it applied of the old id and before anything else, so nothing of the element will be applied.
// - A reset gives the guest its pages back while ranges are in the ring. The device stores CANCELLED and then looks at TAKEN and
//   APPLIED; the engine stores TAKEN and then looks at CANCELLED. So either the engine sees that the range is void, or the device
//   sees that it is being applied, and finishes the reset after that (FH-24).
// - Ring entries are plain words: stored before TAIL and loaded after it by one side, loaded before APPLIED and stored over
//   after it by the other.
// - The device says WAITING and then looks at APPLIED and REQUESTED once more before it sleeps; the engine stores those and then
//   looks at WAITING: one of them sees the other.

/** Ranges that fit the ring: 16 GiB of hints in blocks of 4 MiB, that the engine can be behind. */
export const HINT_RING_ENTRIES = 4096;
const ENTRY_WORDS = 4;

/** Word indexes. Positions in the ring run on and wrap at 2^32. The three groups are on cache lines of their own. */
export const HintWord = {
  // Stored by the engine's thread.
  requested: 0,
  /** The last id that was asked for; ids go on from it, also in the next migration. */
  lastId: 1,
  /** Position up to which ranges were taken out of the ring. */
  taken: 2,
  /** Position up to which they were applied or dropped. */
  applied: 3,
  // Stored by the device's thread.
  started: 16,
  cancelled: 17,
  /** Position up to which there are ranges. */
  tail: 18,
  waiting: 19,
  // Counted by whoever it happens to.
  stale: 32,
  outside: 33,
  dropped: 34,
  ring: 48,
} as const;

/** What REQUESTED and the guest see instead of an id. */
export const HINT_STOP = 0;
export const HINT_DONE = 1;

/** Ids run from this to 2^32 - 1 and start over: they never are 0 or 1 (FH-10). The first one asked for is the next one. */
export const HINT_ID_MIN = 0x8000_0000;

export const isHintId = (value: number): boolean => value >>> 0 >= HINT_ID_MIN;

/** Ids are compared as signed words, as `Atomics` on an Int32Array gives them. */
export const nextHintId = (id: number): number => (id + 1) | HINT_ID_MIN | 0;

export const allocateHintExchange = (): SharedArrayBuffer => {
  const buffer = new SharedArrayBuffer((HintWord.ring + HINT_RING_ENTRIES * ENTRY_WORDS) * 4);
  new Int32Array(buffer)[HintWord.lastId] = HINT_ID_MIN | 0;
  return buffer;
};

/** Word index of the entry at a position: id, block id, first page, page count. */
export const hintEntry = (position: number): number =>
  HintWord.ring + (position & (HINT_RING_ENTRIES - 1)) * ENTRY_WORDS;
