// QEMU's mapped-ram files (package subpath `ramferry/format/mapped-ram`).

export * from './layout.js';
export { MappedRamSnapshot, type PageRun } from './snapshot.js';
