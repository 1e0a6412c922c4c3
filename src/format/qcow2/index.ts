export { type DiskSnapshot, isQcow2, type Qcow2Disk, readQcow2Disk } from './disk.js';
export { VmState } from './vm-state.js';
