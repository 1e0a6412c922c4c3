// A lock between threads of a guest, one word of shared memory. It is only ever held for a moment and never across a
// safepoint, so that a stopped guest holds none, and it needs no place in the guest's state.

const FREE = 0;
const HELD = 1;
/** Held, and somebody may sleep on it. */
const AWAITED = 2;

export class Mutex {
  readonly #words: Int32Array;
  readonly #index: number;

  /** The lock that is word `index`, 0 in the beginning. */
  constructor(words: Int32Array, index: number) {
    this.#words = words;
    this.#index = index;
  }

  lock(): void {
    if (Atomics.compareExchange(this.#words, this.#index, FREE, HELD) === FREE) {
      return;
    }
    while (Atomics.exchange(this.#words, this.#index, AWAITED) !== FREE) {
      Atomics.wait(this.#words, this.#index, AWAITED);
    }
  }

  unlock(): void {
    if (Atomics.exchange(this.#words, this.#index, FREE) === AWAITED) {
      Atomics.notify(this.#words, this.#index, 1);
    }
  }
}
