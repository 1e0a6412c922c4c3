// Who keeps a workload guest from running (`RunHold`). One word, so that its owner and a migration decide at once without a lock.

import { Control } from './control.js';

/** Values of the run word that are not a sum of holds. */
export const RunState = {
  running: 0,
  /** For good: nobody holds or releases it any more. */
  quit: 8,
} as const;

/** Whether a value of the run word means that the guest stands still and may yet run. */
export const isHeld = (word: number): boolean => word !== RunState.running && word !== RunState.quit;

/** The run word in the calling thread. */
export class RunWord {
  readonly #control: Int32Array;

  constructor(control: Int32Array) {
    this.#control = control;
  }

  get value(): number {
    return Atomics.load(this.#control, Control.run);
  }

  get isRunning(): boolean {
    return this.value === RunState.running;
  }

  /** Adds the holds in `add` and takes away those in `remove`, at once; a guest that nobody holds any more runs. */
  change(add: number, remove: number): void {
    for (let seen = this.value; seen !== RunState.quit; seen = this.value) {
      const next = (seen & ~remove) | add;
      if (Atomics.compareExchange(this.#control, Control.run, seen, next) === seen) {
        if (next === RunState.running) {
          Atomics.notify(this.#control, Control.run);
        }
        return;
      }
    }
  }

  /** Ends the guest's threads. */
  quit(): void {
    Atomics.store(this.#control, Control.run, RunState.quit);
    Atomics.notify(this.#control, Control.run);
  }

  /** Sleeps while the word has this value, or until it is notified. */
  sleep(value: number, milliseconds = Number.POSITIVE_INFINITY): void {
    Atomics.wait(this.#control, Control.run, value, milliseconds);
  }
}
