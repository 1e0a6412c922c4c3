// ramferry as a library for Node: what most programs need, from one place. The rooms have entry points of their own
// (`ramferry/source`, `ramferry/destination`, `ramferry/format/stream`, …); of those, the ones that are pure run in a
// browser too.

export { IncomingConnections, listen, openChannel } from './channel/index.js';
export { FileTarget, MemoryTarget, MigrationDestination, PostcopyTarget } from './destination/index.js';
export { userfaultfdProblem } from './dirty-log/userfaultfd-node.js';
export { type PhysicalMap, type PhysicalRange, physicalMap } from './format/physical-map.js';
export { PhysicalMemory } from './format/physical-memory.js';
export { DescribedDevices, deviceFields, deviceStates } from './format/stream/index.js';
export { PageTables, type X86Registers, x86Registers } from './format/x86/index.js';
export { WorkloadGuest } from './guest/index.js';
export { adviseHugePages } from './memory/huge-pages-node.js';
export { pageIndex, RamBlockList, RamferryError } from './memory/index.js';
export { BackgroundPopulator } from './memory/populator-node.js';
export { loadMappedRam, openSnapshotFile, SnapshotGuest } from './memory-file/index.js';
export { Clones } from './migration/clones.js';
export { type IncomingWorkload, type IncomingWorkloadOptions, receiveWorkload } from './migration/incoming-workload.js';
export { MapRestore } from './migration/map-restore.js';
export { Migration, type MigrationEnd, type MigrationOptions } from './migration/migration.js';
export { ServeRestore } from './migration/serve-restore.js';
export type { MigrationParameters, MigrationReport } from './source/index.js';
