// How the engine's thread makes sure that no guest thread (writer) still works on old assumptions. A writer may keep
// agent-local knowledge, "this page is already marked", "nobody records", only because of this (TS-2): the engine
// announces a new epoch and goes on once every running writer has acknowledged it at a safepoint. What a writer stored
// before its acknowledgement is visible to the engine afterwards.
//
//   engine   range = …   epoch = 8 ─────────────▶ wait until each word is 8 or parked ──▶ read pages
//   writer           store, mark   safepoint: epoch is 8? forget range, word = 8, store, mark …
//   parked           word = 0 (may sleep for ever) … unpark: word = leaving, read epoch, word = epoch
//
// A writer that leaves the parked state publishes that first and reads the epoch second, the engine publishes the epoch
// first and reads the words second: sequential consistency leaves no order in which both miss (spec/algorithms.md 14.5).

import { RamferryError } from '../memory/errors.js';

/** What a writer's word says when it is not the epoch it has acknowledged; epochs are positive. */
const PARKED = 0;
const LEAVING = -1;

/** Epochs run from 1 to this and start over; a writer only compares for equality and for the direct successor. */
const EPOCHS = 2 ** 31 - 1;

// One cache line for what the engine writes and one for each writer, so that writers do not slow each other down.
const LINE_WORDS = 16;
const EPOCH = 0;
const RANGE = 1; // in 8-byte units: first page, page count

/** The control block; structured-cloneable. */
export interface HandshakeShared {
  readonly buffer: SharedArrayBuffer;
  readonly writerCount: number;
}

/** A control block in which every writer is parked. */
export function allocateHandshake(writerCount: number): HandshakeShared {
  const buffer = new SharedArrayBuffer((1 + writerCount) * LINE_WORDS * 4);
  new Int32Array(buffer)[EPOCH] = 1;
  return { buffer, writerCount };
}

/** Parks a writer whose thread is gone, so that nobody waits for it (TS-34). Its stores so far are all there will be. */
export function releaseWriter(shared: HandshakeShared, writer: number): void {
  publish(new Int32Array(shared.buffer), wordOf(writer), PARKED);
}

function publish(words: Int32Array, index: number, word: number): void {
  Atomics.store(words, index, word);
  Atomics.notify(words, index);
}

const wordOf = (writer: number): number => (1 + writer) * LINE_WORDS;

const epochAfter = (epoch: number, steps: number): number => ((epoch - 1 + steps) % EPOCHS) + 1;

/** Waits while a word has a value, at most so many milliseconds: `Atomics.wait`, or a scheduler in tests. */
export type WaitWhile = (words: Int32Array, index: number, value: number, timeoutMs: number) => void;

const waitWhile: WaitWhile = (words, index, value, timeoutMs) => {
  // An answer is often under way: a short spin (some microseconds) saves the sleep and the wake-up.
  for (let spin = 0; spin < 500; spin += 1) {
    if (Atomics.load(words, index) !== value) {
      return;
    }
  }
  Atomics.wait(words, index, value, timeoutMs);
};

/** The engine's end. Used by one thread at a time; that thread blocks in it (TS-12). */
export class Handshake {
  readonly #words: Int32Array;
  readonly #range: Float64Array;
  readonly #writerCount: number;
  readonly #timeoutMs: number;
  readonly #wait: WaitWhile;
  #confirmed = false;

  /** `timeoutMs`: how long a running writer may take to reach a safepoint before that is an error (TS-15). */
  constructor(shared: HandshakeShared, timeoutMs: number, wait: WaitWhile = waitWhile) {
    this.#words = new Int32Array(shared.buffer);
    this.#range = new Float64Array(shared.buffer);
    this.#writerCount = shared.writerCount;
    this.#timeoutMs = timeoutMs;
    this.#wait = wait;
  }

  /** False while a writer may exist that has neither acknowledged the current epoch nor been seen parked. */
  get confirmed(): boolean {
    return this.#confirmed;
  }

  /**
   * Returns when no writer runs on what it knew about the pages [firstPage, firstPage + pageCount) before the call
   * (TS-14). Throws GUEST_NOT_RESPONDING if a writer does not come to a safepoint in time.
   */
  advance(firstPage: number, pageCount: number): void {
    this.announce(firstPage, pageCount);
    const epoch = Atomics.load(this.#words, EPOCH);
    this.#awaitWriters('acknowledge a new epoch of the dirty log', (word) => word === PARKED || word === epoch);
    this.#confirmed = true;
  }

  /** The same without waiting: writers forget the range some time from now. */
  announce(firstPage: number, pageCount: number): void {
    // A writer reads the range only if the epoch is the direct successor of its own. One that may still be reading the
    // last range therefore gets an epoch that is not, and forgets everything.
    const steps = this.#confirmed ? 1 : 2;
    this.#confirmed = false;
    this.#range[RANGE] = firstPage;
    this.#range[RANGE + 1] = pageCount;
    Atomics.store(this.#words, EPOCH, epochAfter(Atomics.load(this.#words, EPOCH), steps));
  }

  /**
   * Returns when every writer is parked. Whoever calls this first tells the writers to stay parked, in words of its
   * own that a writer reads after `unpark`.
   */
  awaitParked(): void {
    this.#awaitWriters('park', (word) => word === PARKED);
  }

  #awaitWriters(what: string, done: (word: number) => boolean): void {
    const deadline = performance.now() + this.#timeoutMs;
    for (let writer = 0; writer < this.#writerCount; writer += 1) {
      for (;;) {
        const word = Atomics.load(this.#words, wordOf(writer));
        if (done(word)) {
          break;
        }
        const leftMs = deadline - performance.now();
        if (leftMs <= 0) {
          throw new RamferryError(
            'failed',
            'GUEST_NOT_RESPONDING',
            `guest thread ${writer} did not ${what} within ${this.#timeoutMs} ms`,
            { value: writer, hint: 'a guest thread must park before it blocks' },
          );
        }
        this.#wait(this.#words, wordOf(writer), word, leftMs);
      }
    }
  }
}

/** One writer's end. Starts parked. */
export class HandshakeWriter {
  readonly #words: Int32Array;
  readonly #range: Float64Array;
  readonly #word: number;
  #epoch = PARKED;

  /** After `poll` or `unpark` returned true: the pages to forget. */
  firstPage = 0;
  pageCount = 0;

  constructor(shared: HandshakeShared, writer: number) {
    this.#words = new Int32Array(shared.buffer);
    this.#range = new Float64Array(shared.buffer);
    this.#word = wordOf(writer);
  }

  /** A safepoint: acknowledges. True if the pages [firstPage, firstPage + pageCount) are to be forgotten. */
  poll(): boolean {
    const epoch = Atomics.load(this.#words, EPOCH);
    if (epoch === this.#epoch) {
      return false;
    }
    this.#follow(epoch, epoch === epochAfter(this.#epoch, 1));
    return true;
  }

  /** From here to `unpark` this thread touches no guest memory and counts as having acknowledged everything. */
  park(): void {
    publish(this.#words, this.#word, PARKED);
  }

  /** Back to running. True if pages are to be forgotten, as `poll`. */
  unpark(): boolean {
    publish(this.#words, this.#word, LEAVING);
    const epoch = Atomics.load(this.#words, EPOCH);
    const changed = epoch !== this.#epoch;
    // A parked writer was not waited for, so the range may be one of several, or be changing right now.
    this.#follow(epoch, false);
    return changed;
  }

  #follow(epoch: number, rangeIsStable: boolean): void {
    this.firstPage = rangeIsStable ? this.#range[RANGE]! : 0;
    this.pageCount = rangeIsStable ? this.#range[RANGE + 1]! : Number.POSITIVE_INFINITY;
    this.#epoch = epoch;
    publish(this.#words, this.#word, epoch);
  }
}
