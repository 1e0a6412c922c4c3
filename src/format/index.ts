// Saved guests, whatever their format (package subpath `ramferry/format`).

export { type IndexedSoFar, openSnapshot, SnapshotIndexer, type SnapshotOptions } from './open-snapshot.js';
export {
  type BlockPlaces,
  PhysicalMap,
  type PhysicalRange,
  physicalMap,
  type UnplacedBlock,
} from './physical-map.js';
export { PhysicalMemory } from './physical-memory.js';
export { type PageCounts, PageKind, type ReadAt, type Snapshot } from './snapshot.js';
