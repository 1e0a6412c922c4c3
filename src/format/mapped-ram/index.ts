// QEMU's mapped-ram files (package subpath `ramferry/format/mapped-ram`).

export * from './layout.js';
export { MappedRamSnapshot, type PresentRun } from './snapshot.js';
