// Saved guests opened: their memory by block and page, the files beside them, and a file as a guest that stands still.

export { checkSidecar, type DigestCheck, digestOf } from './check-digest-sidecar-node.js';
export { demandPath, readDemandFile, writeDemandFile } from './demand-file-node.js';
export { type SidecarOwner, sidecarPath } from './digest-sidecar-node.js';
export { loadMappedRam } from './load-mapped-ram-node.js';
export { openSnapshotFile } from './open-snapshot-file-node.js';
export { inTurns, type Slices } from './slices-node.js';
export { SnapshotGuest } from './snapshot-guest.js';
export { type DigestedFile, writeSidecar } from './write-digest-sidecar-node.js';
