// The virtio balloon (virtio 1.2, section 5.5): what its device, its driver and the migration engine know of each other.

import { allocateHintExchange } from './hint-exchange.js';
import { allocateVirtio, type VirtioShared } from './registers.js';
import { VirtioFeature } from './virtqueue.js';

export const BALLOON_DEVICE_ID = 5;

export const BalloonFeature = {
  /** The driver tells before it uses a page that it had given away. */
  mustTellHost: 1n << 0n,
  statistics: 1n << 1n,
  /** The driver may take pages back when memory is short. */
  deflateOnOutOfMemory: 1n << 2n,
  freePageHint: 1n << 3n,
  pagePoison: 1n << 4n,
  /**
   * Not in virtio 1.2: the elements of a hint return once it was applied, and the driver leaves the pages alone until then
   * (spec/algorithms.md 3(c), residual hazard). The bit is the one of the patches that propose it.
   */
  acknowledgeHints: 1n << 6n,
} as const;

/** Queue numbers. */
export const BalloonQueue = { inflate: 0, deflate: 1, statistics: 2, freePageHint: 3 } as const;

/** Descriptors of each, as QEMU 10 has them. */
const QUEUE_SIZES = [1024, 1024, 1024, 1024];

/** Words of the configuration space. */
export const BalloonConfig = {
  /** Pages that the driver shall give away. */
  targetPages: 0,
  /** Pages that it has given away; stored by the driver. */
  actualPages: 1,
  /** With freePageHint: 0 stop, 1 done, or the id under which hints are wanted. */
  commandId: 2,
  /** With pagePoison: what free pages are filled with; stored by the driver. */
  poisonValue: 3,
} as const;

/** Tags of guest statistics (virtio 1.2, 5.5.6.3); values are bytes or counts since the guest started. */
export const BalloonStatistic = {
  swapIn: 0,
  swapOut: 1,
  majorFaults: 2,
  minorFaults: 3,
  freeMemory: 4,
  totalMemory: 5,
  availableMemory: 6,
  diskCaches: 7,
  hugePageAllocations: 8,
  hugePageFailures: 9,
} as const;

/** Structured-cloneable: what the ends are attached to. */
export interface BalloonShared {
  readonly virtio: VirtioShared;
  /** See hint-exchange.ts. */
  readonly hints: SharedArrayBuffer;
  /** What the guest last said about itself. */
  readonly statistics: SharedArrayBuffer;
}

/** Words in front of the statistics' values. */
export const StatisticsWord = { wanted: 0, reports: 1 } as const;

/** More than any driver knows. */
const STATISTIC_TAGS = 32;

/** By tag; NaN for what the guest does not say. */
export const statisticsValues = (shared: BalloonShared): Float64Array => new Float64Array(shared.statistics, 8);

export interface BalloonOptions {
  /** Default true. */
  readonly freePageHint?: boolean;
  /** Default true, as in QEMU. */
  readonly pagePoison?: boolean;
  /** Default false: no released driver knows it. */
  readonly acknowledgeHints?: boolean;
  /** Default false. */
  readonly deflateOnOutOfMemory?: boolean;
}

/** A new balloon device: not inflated, no driver yet. */
export const allocateBalloon = (options: BalloonOptions = {}): BalloonShared => {
  const { freePageHint = true, pagePoison = true, acknowledgeHints = false, deflateOnOutOfMemory = false } = options;
  const features =
    VirtioFeature.version1 |
    VirtioFeature.eventIndex |
    VirtioFeature.indirectDescriptors |
    BalloonFeature.statistics |
    (deflateOnOutOfMemory ? BalloonFeature.deflateOnOutOfMemory : 0n) |
    (freePageHint ? BalloonFeature.freePageHint : 0n) |
    (pagePoison ? BalloonFeature.pagePoison : 0n) |
    (freePageHint && acknowledgeHints ? BalloonFeature.acknowledgeHints : 0n);
  return {
    virtio: allocateVirtio({
      deviceId: BALLOON_DEVICE_ID,
      features,
      queueSizes: freePageHint ? QUEUE_SIZES : QUEUE_SIZES.slice(0, BalloonQueue.freePageHint),
      configBytes: configBytes(freePageHint, pagePoison),
    }),
    hints: allocateHintExchange(),
    statistics: new SharedArrayBuffer(8 + 8 * STATISTIC_TAGS),
  };
};

/** The length is part of the saved state, so it is QEMU's: up to the last field that a feature brings. */
const configBytes = (freePageHint: boolean, pagePoison: boolean): number => (pagePoison ? 16 : freePageHint ? 12 : 8);
