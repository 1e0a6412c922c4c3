// Auto-converge: slows the guest down when it dirties memory faster than it travels (spec/algorithms.md 7.15).

import type { MigrationParameters } from './parameters.js';

export class Throttle {
  /** Percentage of its time the guest is kept from running; 0 when not throttled (TH-2). */
  percentage = 0;
  #strikes = 0;

  /**
   * Judges one period (of at least a second). Returns whether the guest has to be throttled anew.
   * Two strikes make a step, and a good period takes one back: QEMU counts periods that lie far apart.
   */
  judge(dirtiedBytes: number, transferredBytes: number, parameters: MigrationParameters): boolean {
    if (dirtiedBytes <= (transferredBytes * parameters.throttleTriggerThreshold) / 100) {
      this.#strikes = Math.max(0, this.#strikes - 1);
      return false;
    }
    this.#strikes += 1;
    if (this.#strikes < 2) {
      return false;
    }
    this.#strikes = 0;
    const next =
      this.percentage === 0 ? parameters.cpuThrottleInitial : this.percentage + parameters.cpuThrottleIncrement;
    this.percentage = Math.min(next, parameters.maxCpuThrottle);
    return true;
  }
}
