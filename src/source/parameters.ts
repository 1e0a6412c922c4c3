// What can be set on a migration, under QMP's names and ranges (spec/algorithms.md 12.1).

import { RamferryError } from '../memory/errors.js';
import type { HintWaitLimit } from './hint-wait.js';

export interface MigrationParameters {
  /** Bytes per second; 0 is unlimited. QEMU's default is 128 MiB/s, which surprises everybody once; ours is 0. */
  readonly maxBandwidth: number;
  /** The same after the switch to postcopy, for pages that nobody asked for; pages asked for are never held back. */
  readonly maxPostcopyBandwidth: number;
  /** Bytes per second to expect at the switchover; 0 means: as measured. */
  readonly availSwitchoverBandwidth: number;
  /** The longest time the guest may stand still, in milliseconds. */
  readonly downtimeLimit: number;
  /** log2 of the guest pages per chunk of the clear bitmap; clamped to 6..31 when a migration starts. */
  readonly clearBitmapShift: number;
  /** Clear the log of a whole block right at every sync, as before the clear bitmap existed. To compare with. */
  readonly eagerClear: boolean;
  /**
   * How long the first pass holds back what the guest may be about to hint as free: not at all, while it pays, or at most
   * so many milliseconds. Without effect on a guest that gives no hints.
   */
  readonly hintWaitMs: HintWaitLimit;
  /** Slow the guest down when it dirties memory faster than it can be sent (auto-converge). */
  readonly autoConverge: boolean;
  /** Percentage of the transferred bytes that, dirtied in the same period, counts as not converging. */
  readonly throttleTriggerThreshold: number;
  /** First throttle percentage, and what each further step adds, and the end of it. */
  readonly cpuThrottleInitial: number;
  readonly cpuThrottleIncrement: number;
  readonly maxCpuThrottle: number;
}

export const defaultParameters: MigrationParameters = {
  maxBandwidth: 0,
  maxPostcopyBandwidth: 0,
  availSwitchoverBandwidth: 0,
  downtimeLimit: 300,
  clearBitmapShift: 18,
  eagerClear: false,
  hintWaitMs: 'auto',
  autoConverge: false,
  throttleTriggerThreshold: 50,
  cpuThrottleInitial: 20,
  cpuThrottleIncrement: 10,
  maxCpuThrottle: 99,
};

/** QMP name and accepted range of every numeric parameter. */
const numeric = {
  maxBandwidth: ['max-bandwidth', 0, Number.MAX_SAFE_INTEGER],
  maxPostcopyBandwidth: ['max-postcopy-bandwidth', 0, Number.MAX_SAFE_INTEGER],
  availSwitchoverBandwidth: ['avail-switchover-bandwidth', 0, Number.MAX_SAFE_INTEGER],
  downtimeLimit: ['downtime-limit', 0, 2_000_000],
  clearBitmapShift: ['clear-bitmap-shift', 0, 255],
  throttleTriggerThreshold: ['throttle-trigger-threshold', 1, 100],
  cpuThrottleInitial: ['cpu-throttle-initial', 1, 99],
  cpuThrottleIncrement: ['cpu-throttle-increment', 1, 99],
  maxCpuThrottle: ['max-cpu-throttle', 1, 99],
} as const satisfies Partial<Record<keyof MigrationParameters, readonly [string, number, number]>>;

/** QMP name, or what it would be, of every switch. */
const switches = { eagerClear: 'eager-clear', autoConverge: 'auto-converge' } as const;

/**
 * `changes` applied to `current`, checked as a whole before anything takes effect.
 * @throws RamferryError `PARAMETER_RANGE` naming the parameter and what it expects, `PARAMETER_UNKNOWN`
 */
export function changeParameters(
  current: MigrationParameters,
  changes: Partial<MigrationParameters>,
): MigrationParameters {
  const unknown = Object.keys(changes).find((key) => !(key in defaultParameters));
  if (unknown !== undefined) {
    throw new RamferryError('usage', 'PARAMETER_UNKNOWN', `There is no migration parameter "${unknown}".`, {
      value: unknown,
    });
  }
  const next = { ...current, ...changes };
  for (const [key, [name, low, high]] of Object.entries(numeric)) {
    const value = next[key as keyof typeof numeric];
    if (!Number.isInteger(value) || value < low || value > high) {
      throw new RamferryError(
        'usage',
        'PARAMETER_RANGE',
        `Parameter ${name} expects an integer from ${low} to ${high}, got ${value}.`,
        {
          value,
        },
      );
    }
  }
  for (const [key, name] of Object.entries(switches)) {
    const value: unknown = next[key as keyof typeof switches];
    if (typeof value !== 'boolean') {
      throw new RamferryError('usage', 'PARAMETER_RANGE', `Parameter ${name} expects true or false, got ${value}.`, {
        value: String(value),
      });
    }
  }
  const { hintWaitMs } = next;
  if (hintWaitMs !== 'off' && hintWaitMs !== 'auto' && !(Number.isInteger(hintWaitMs) && hintWaitMs >= 0)) {
    throw new RamferryError(
      'usage',
      'PARAMETER_RANGE',
      `Parameter hint-wait expects off, auto or a number of milliseconds, got ${hintWaitMs}.`,
      { value: hintWaitMs },
    );
  }
  if (next.maxCpuThrottle < next.cpuThrottleInitial) {
    throw new RamferryError(
      'usage',
      'PARAMETER_RANGE',
      `Parameter max-cpu-throttle expects at least cpu-throttle-initial (${next.cpuThrottleInitial}), got ${next.maxCpuThrottle}.`,
      { value: next.maxCpuThrottle },
    );
  }
  return next;
}

/** The parameters in effect, by their QMP names; `clear-bitmap-shift` is the clamped value (QEMU prints the other one). */
export type EffectiveParameters = Readonly<Record<string, number | boolean | string>>;

export function effectiveParameters(parameters: MigrationParameters, clearBitmapShift: number): EffectiveParameters {
  const values: Record<string, number | boolean | string> = {};
  for (const [key, [name]] of Object.entries(numeric)) {
    values[name] = key === 'clearBitmapShift' ? clearBitmapShift : parameters[key as keyof typeof numeric];
  }
  values['clear-bitmap'] = !parameters.eagerClear;
  values['hint-wait'] = parameters.hintWaitMs;
  values['auto-converge'] = parameters.autoConverge;
  return values;
}
