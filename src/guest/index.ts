// Guests that run inside.

export { digestBlock, digestBlocks } from './digest-node.js';
export type { BarrierChoice, WorkloadShared } from './workload/control.js';
export { WORKLOAD_MACHINE } from './workload/machine.js';
export { WorkloadKind } from './workload/registers.js';
export type { BadPage, Verification } from './workload/verify.js';
export {
  type MissingPagesKind,
  type RestoreOptions,
  type WorkloadCounters,
  WorkloadGuest,
  type WorkloadOptions,
} from './workload/workload-guest-node.js';
export { attachWorkloadGuest } from './workload/workload-source.js';
