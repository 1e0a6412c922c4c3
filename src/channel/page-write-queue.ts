// Jobs for one writer thread, in shared memory: the engine puts in, the thread takes out, neither needs an event loop.
//
//   words    given │ written │ closed │ errno        given - written jobs are under way, at most CAPACITY
//   jobs     memory, at, length, position  x CAPACITY
//
// One producer and one consumer, so two counters are all the synchronisation there is; they wrap around.

/** Enough that the thread never waits for the engine; few, since a barrier waits for all of them. */
const CAPACITY = 8;

// A cache line for each side.
const GIVEN = 0;
const CLOSED = 1;
const WRITTEN = 16;
const ERRNO = 17;
const HEAD_BYTES = 128;

const JOB_NUMBERS = 4;

const jobsOf = (shared: SharedArrayBuffer): Float64Array =>
  new Float64Array(shared, HEAD_BYTES, CAPACITY * JOB_NUMBERS);

const slotOf = (count: number): number => ((count >>> 0) % CAPACITY) * JOB_NUMBERS;

export const allocatePageWriteQueue = (): SharedArrayBuffer =>
  new SharedArrayBuffer(HEAD_BYTES + CAPACITY * JOB_NUMBERS * 8);

/** The engine's end. Blocks the calling thread while the queue is full: the disk is what it waits for then. */
export class PageWriteQueue {
  readonly #words: Int32Array;
  readonly #jobs: Float64Array;
  #given = 0;
  /** Jobs whose bytes are no longer counted as pending. */
  #counted = 0;
  #pendingBytes = 0;

  constructor(shared: SharedArrayBuffer) {
    this.#words = new Int32Array(shared, 0, HEAD_BYTES / 4);
    this.#jobs = jobsOf(shared);
  }

  /** Jobs under way. */
  get length(): number {
    return (this.#given - Atomics.load(this.#words, WRITTEN)) | 0;
  }

  get pendingBytes(): number {
    const written = Atomics.load(this.#words, WRITTEN);
    for (; this.#counted !== written; this.#counted = (this.#counted + 1) | 0) {
      this.#pendingBytes -= this.#jobs[slotOf(this.#counted) + 2]!;
    }
    return this.#pendingBytes;
  }

  /** What stopped the thread from writing, as a negative errno; 0 while nothing has. */
  get errno(): number {
    return Atomics.load(this.#words, ERRNO);
  }

  /** `memory`: the number under which the thread knows the memory. */
  push(memory: number, at: number, length: number, position: number): void {
    this.#awaitLength(CAPACITY - 1);
    // Takes the bytes of the slot's last job out of the sum before they are overwritten.
    this.#pendingBytes = this.pendingBytes + length;
    this.#jobs.set([memory, at, length, position], slotOf(this.#given));
    this.#given = (this.#given + 1) | 0;
    Atomics.store(this.#words, GIVEN, this.#given);
    Atomics.notify(this.#words, GIVEN);
  }

  /** Returns when every job is done. */
  drain(): void {
    this.#awaitLength(0);
  }

  /** The thread ends after the job it is at. */
  close(): void {
    Atomics.store(this.#words, CLOSED, 1);
    // Wakes it if it sleeps; the counter itself means nothing any more.
    Atomics.add(this.#words, GIVEN, 1);
    Atomics.notify(this.#words, GIVEN);
  }

  #awaitLength(most: number): void {
    for (let written: number; ((this.#given - (written = Atomics.load(this.#words, WRITTEN))) | 0) > most; ) {
      Atomics.wait(this.#words, WRITTEN, written);
    }
  }
}

/** Writes one job; returns a negative errno, or 0. */
export type WriteJob = (memory: number, at: number, length: number, position: number) => number;

/**
 * The thread's end: returns when the queue is closed. After an error the jobs are still taken, but not written: the
 * engine must not wait for ever, and hears of the error at its next call.
 */
export const servePageWrites = (shared: SharedArrayBuffer, write: WriteJob): void => {
  const words = new Int32Array(shared, 0, HEAD_BYTES / 4);
  const jobs = jobsOf(shared);
  for (let written = 0; ; written = (written + 1) | 0) {
    while (Atomics.load(words, GIVEN) === written) {
      Atomics.wait(words, GIVEN, written);
    }
    if (Atomics.load(words, CLOSED) === 1) {
      return;
    }
    if (Atomics.load(words, ERRNO) === 0) {
      const slot = slotOf(written);
      Atomics.store(words, ERRNO, write(jobs[slot]!, jobs[slot + 1]!, jobs[slot + 2]!, jobs[slot + 3]!));
    }
    Atomics.store(words, WRITTEN, (written + 1) | 0);
    Atomics.notify(words, WRITTEN);
  }
};
