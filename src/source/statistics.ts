// The figures of a migration, with the names and meanings of QMP's query-migrate (spec/algorithms.md 7.19), and ours
// beside them under `ramferry`.

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { EffectiveParameters } from './parameters.js';
import type { LogClears } from './send-bitmap.js';
import type { ServiceTimeReport } from './service-times.js';
import type { MigrationStatus } from './status.js';

/** One pass over memory: from one log sync to the next; the last one is the stop-and-copy. */
export interface Iteration {
  readonly iteration: number;
  /** Whether the guest ran meanwhile. */
  readonly guestRunning: boolean;
  /** Milliseconds since the migration started. */
  readonly startMs: number;
  readonly durationMs: number;
  readonly normalPages: number;
  readonly zeroPages: number;
  readonly bytes: number;
  /** Pages that the sync at the end of the pass found newly dirty; 0 in the last, which no sync follows. */
  readonly dirtiedPages: number;
  readonly logClears: LogClears;
}

/**
 * Where the downtime went. The parts add up to `downtime`.
 *
 *   guest runs │ stop │ last log sync │ rest of RAM │ device state │ destination's answer │ guest runs there
 *
 * It does not include what the guest's network needs to find the new host.
 */
export interface DowntimeBreakdown {
  readonly stopMs: number;
  readonly syncMs: number;
  readonly ramMs: number;
  readonly deviceMs: number;
  readonly ackMs: number;
}

/** What came of the guest's free page hints. */
export interface HintStatistics {
  /** Pages hinted under an id that was current. */
  readonly pages: number;
  /** Of these, pages that were still to be sent and thus need not be. */
  readonly honoured: number;
  /** Hints dropped because their id was not current any more. */
  readonly stale: number;
}

/** What `query-migrate` says of RAM. */
export interface RamStatistics {
  readonly transferred: number;
  readonly remaining: number;
  readonly total: number;
  readonly duplicate: number;
  readonly normal: number;
  readonly 'normal-bytes': number;
  readonly 'dirty-pages-rate': number;
  readonly mbps: number;
  readonly 'dirty-sync-count': number;
  readonly 'page-size': number;
  readonly 'postcopy-requests': number;
  readonly 'pages-per-second': number;
  readonly 'precopy-bytes': number;
  readonly 'downtime-bytes': number;
  readonly 'postcopy-bytes': number;
}

export interface PostcopyReport {
  /** Requests for pages that had not been sent; `postcopy-requests` counts all. */
  readonly demands: number;
  readonly demandedPages: number;
  readonly prefetchedPages: number;
  /** Milliseconds from reading a request to the system having taken its page. */
  readonly serviceMs?: ServiceTimeReport;
  readonly recoveries: number;
}

export interface MigrationReport {
  readonly status: MigrationStatus;
  readonly 'total-time': number;
  readonly 'setup-time': number;
  /** Once completed. */
  readonly downtime?: number;
  /** Until then. */
  readonly 'expected-downtime'?: number;
  readonly ram: RamStatistics;
  readonly 'cpu-throttle-percentage'?: number;
  readonly 'error-desc'?: string;
  readonly ramferry: {
    readonly parameters: EffectiveParameters;
    readonly iterations: readonly Iteration[];
    readonly downtimeBreakdown?: DowntimeBreakdown;
    readonly logClears: LogClears;
    readonly hints: HintStatistics;
    readonly discardedPages: number;
    /** Once the migration has switched to it. */
    readonly postcopy?: PostcopyReport;
    readonly warnings: readonly string[];
  };
}

/** Counters the engine keeps while it runs. */
export class Counters {
  normalPages = 0;
  zeroPages = 0;
  /** Log syncs, the initial and the final one included (ST-1). */
  syncCount = 0;
  dirtyPagesRate = 0;
  /** Pages newly dirty since the period began, and bytes dirty at the last sync (ST-3). */
  periodDirtyPages = 0;
  bytesDirtyAtLastSync = 0;
  precopyBytes = 0;
  downtimeBytes = 0;
  postcopyBytes = 0;

  get pages(): number {
    return this.normalPages + this.zeroPages;
  }

  ram(
    transferred: number,
    remainingPages: number,
    totalPages: number,
    mbps: number,
    pagesPerSecond: number,
    postcopyRequests: number,
  ): RamStatistics {
    return {
      transferred,
      remaining: remainingPages * GUEST_PAGE_SIZE,
      total: totalPages * GUEST_PAGE_SIZE,
      duplicate: this.zeroPages,
      normal: this.normalPages,
      'normal-bytes': this.normalPages * GUEST_PAGE_SIZE,
      'dirty-pages-rate': this.dirtyPagesRate,
      mbps: Math.round(mbps * 100) / 100,
      'dirty-sync-count': this.syncCount,
      'page-size': GUEST_PAGE_SIZE,
      'postcopy-requests': postcopyRequests,
      'pages-per-second': pagesPerSecond,
      'precopy-bytes': this.precopyBytes,
      'downtime-bytes': this.downtimeBytes,
      'postcopy-bytes': this.postcopyBytes,
    };
  }
}
