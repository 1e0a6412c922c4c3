// The QMP commands that ramferry itself sends, with the shapes it relies on. QEMU adds and drops fields from release to
// release, so a type names only what some code reads and everything that a version may lack is optional: parse
// leniently, emit strictly (spec/field.md 4.1).

/**
 * `query-migrate`'s status, up to QEMU 11.1; a newer QEMU may say something else. `postcopy-device` (10.2) is a destination that loads
 * its devices, or a source that waits for that; `failing` (11.0) stands between an error and `failed`.
 */
export type MigrationStatus =
  | 'none'
  | 'setup'
  | 'cancelling'
  | 'cancelled'
  | 'active'
  | 'postcopy-device'
  | 'postcopy-active'
  | 'postcopy-paused'
  | 'postcopy-recover-setup'
  | 'postcopy-recover'
  | 'completed'
  | 'failing'
  | 'failed'
  | 'colo'
  | 'pre-switchover'
  | 'device'
  | 'wait-unplug';

/** RAM statistics of `query-migrate`, source side. Bytes unless the name says pages. */
export interface MigrationRam {
  readonly total: number;
  readonly remaining: number;
  readonly transferred: number;
  /** Zero pages sent. */
  readonly duplicate: number;
  /** Normal pages sent. */
  readonly normal: number;
  readonly 'normal-bytes': number;
  readonly 'page-size': number;
  readonly 'dirty-sync-count': number;
  /** Pages per second. */
  readonly 'dirty-pages-rate': number;
  /** Megabits per second. */
  readonly mbps: number;
  readonly 'postcopy-requests': number;
}

export interface XbzrleCache {
  /** Size of the cache in bytes. */
  readonly 'cache-size': number;
  /** Bytes of deltas sent. */
  readonly bytes: number;
  /** Pages found in the cache: sent as deltas, skipped as unchanged, or sent whole (`overflow`). */
  readonly pages: number;
  readonly 'cache-miss': number;
  readonly overflow: number;
}

/** `query-migrate`: empty before the first migration; a destination says little more than its status. */
export interface MigrationInfo {
  readonly status?: MigrationStatus;
  readonly ram?: MigrationRam;
  readonly 'xbzrle-cache'?: XbzrleCache;
  /** Milliseconds. */
  readonly 'total-time'?: number;
  readonly downtime?: number;
  readonly 'expected-downtime'?: number;
  readonly 'setup-time'?: number;
  readonly 'error-desc'?: string;
  /** Where a destination listens. */
  readonly 'socket-address'?: readonly { readonly type: string; readonly host?: string; readonly port?: string }[];
}

export interface MigrationCapability {
  readonly capability: string;
  readonly state: boolean;
}

interface Command<Arguments, Result> {
  readonly arguments: Arguments;
  readonly result: Result;
}

// QMP answers `{}` where there is nothing to say.
type Nothing = Record<string, never>;

/** Commands whose arguments and results are typed; `QmpClient.execute` takes any other by name. */
export interface QmpCommands {
  'query-status': Command<undefined, { readonly status: string; readonly running: boolean }>;
  'query-migrate': Command<undefined, MigrationInfo>;
  'query-migrate-capabilities': Command<undefined, readonly MigrationCapability[]>;
  'query-migrate-parameters': Command<undefined, Readonly<Record<string, unknown>>>;
  'migrate-set-capabilities': Command<{ readonly capabilities: readonly MigrationCapability[] }, Nothing>;
  'migrate-set-parameters': Command<Readonly<Record<string, unknown>>, Nothing>;
  // `channels` instead of `uri` exists since 8.2 only; `uri` works everywhere.
  migrate: Command<{ readonly uri: string }, Nothing>;
  'migrate-incoming': Command<{ readonly uri: string }, Nothing>;
  migrate_cancel: Command<undefined, Nothing>;
  'migrate-continue': Command<{ readonly state: MigrationStatus }, Nothing>;
  stop: Command<undefined, Nothing>;
  cont: Command<undefined, Nothing>;
  quit: Command<undefined, Nothing>;
}
