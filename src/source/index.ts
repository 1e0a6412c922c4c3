// The source engine: migrates a guest into a sink.

export type { Clock } from './clock.js';
export type { HintedRange, HintSource, HintStatus, SourceGuest } from './guest.js';
export { MappedRamSink, type MappedRamSinkOptions } from './mapped-ram-sink.js';
export { MigrationSource, type MigrationSourceOptions } from './migration-source.js';
export { PageBatch, type PageSink } from './page-sink.js';
export { changeParameters, defaultParameters, type MigrationParameters } from './parameters.js';
export type { GuestPage, PostcopyOptions } from './postcopy.js';
export { PostcopySink, type PostcopySinkOptions } from './postcopy-sink.js';
export type { DowntimeBreakdown, Iteration, MigrationReport, PostcopyReport, RamStatistics } from './statistics.js';
export type { MigrationStatus } from './status.js';
export { StreamSink, type StreamSinkOptions } from './stream-sink.js';
export { createTrace, type Trace, type TraceEvents, type TraceName, traceArguments } from './trace.js';
