// The Linux kernel in a saved guest (package subpath `ramferry/format/linux`): what it says about itself, its log, and its memory at
// its own virtual addresses.

export { type KernelAnswer, kernelAnswer } from './kernel-answer.js';
export { KernelMemory, openKernel, type UtsName } from './kernel-memory.js';
export type { KernelLog, OpenedKernel } from './linux-kernel.js';
export type { LogRecord } from './log-record.js';
export { type FoundText, type FoundVmcoreinfo, LinuxScan } from './memory-scan.js';
export { parseVmcoreinfo, type Vmcoreinfo } from './vmcoreinfo.js';
export { deviceVmcoreinfo } from './vmcoreinfo-device.js';
