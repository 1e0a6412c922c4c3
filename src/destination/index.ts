// `ramferry/destination`: receives a migration into guest memory or into a file.

export { type ByteSink, FileTarget } from './file-target.js';
export { MappedRamTarget } from './mapped-ram-target.js';
export { MemoryTarget, type MemoryTargetOptions } from './memory-target.js';
export {
  type IncomingPostcopyOptions,
  type IncomingState,
  MigrationDestination,
  type MigrationDestinationOptions,
} from './migration-destination.js';
export type { Populator } from './populate-ahead.js';
export type { IncomingPostcopyReport } from './postcopy-incoming.js';
export { PostcopyTarget, type PostcopyTargetOptions } from './postcopy-target.js';
export type { IncomingReport, IncomingStatus } from './statistics.js';
export type { MigrationTarget, PageCounts, ReceiveArea } from './target.js';
