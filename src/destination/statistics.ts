// The figures of an incoming migration: QMP's query-migrate names where the destination knows the value
// (spec/algorithms.md 7.19), and ours beside them under `ramferry`.

import type { IncomingPostcopyReport } from './postcopy-incoming.js';

/**
 *   none ──▶ setup ──▶ active ──┬──▶ device ───────────▶ completed
 *                               └──▶ postcopy-active ──▶ completed
 *                                      │        ▲
 *                          link breaks ▼        └─────────────────┐
 *                            postcopy-paused ──▶ postcopy-recover ┘
 *
 *   each of them ──▶ failed, cancelled; from the postcopy states only if the guest is given up
 *
 * QMP's names. `active` from the list of RAM blocks on, `device` from the end of RAM on, `postcopy-active` from the arrival
 * of the devices on, before all of RAM: the guest runs.
 */
export type IncomingStatus =
  | 'none'
  | 'setup'
  | 'active'
  | 'device'
  | 'postcopy-active'
  | 'postcopy-paused'
  | 'postcopy-recover'
  | 'completed'
  | 'cancelled'
  | 'failed';

export interface IncomingReport {
  readonly status: IncomingStatus;
  /** Milliseconds, as all times. */
  readonly 'total-time': number;
  readonly 'setup-time': number;
  readonly ram: {
    /** Bytes of the stream so far. */
    readonly transferred: number;
    /** Bytes of all blocks. */
    readonly total: number;
    /** Records of zero pages, and of normal pages. A page that was sent twice counts twice. */
    readonly duplicate: number;
    readonly normal: number;
    readonly 'normal-bytes': number;
    readonly 'page-size': number;
    /** Over the last tenth of a second; over everything once it has ended. */
    readonly mbps: number;
    readonly 'pages-per-second': number;
  };
  readonly 'error-desc'?: string;
  readonly ramferry: {
    /**
     * Where the time went:
     *
     *   │ setup │ ram: list of blocks to the end of RAM │ device: to the end of the stream │ commit: written or built, SHUT │
     */
    readonly phases: {
      readonly setupMs: number;
      readonly ramMs: number;
      readonly deviceMs: number;
      readonly commitMs: number;
    };
    readonly xbzrlePages: number;
    readonly sections: { readonly ram: number; readonly devices: number };
    /** Whether the source opened one: only then does its guest run on if this side fails. */
    readonly returnPath: boolean;
    /** PINGs answered. */
    readonly pings: number;
    readonly warnings: readonly string[];
    /** Once the guest runs here before all of its memory has come. */
    readonly postcopy?: IncomingPostcopyReport;
  };
}

/** Times at which the phases began. `ended` is the end of everything. */
export interface PhaseMarks {
  start: number;
  ram?: number;
  device?: number;
  commit?: number;
  ended?: number;
}

const rounded = (milliseconds: number): number => Math.round(milliseconds * 100) / 100;

export const phaseTimes = (marks: PhaseMarks, now: number): IncomingReport['ramferry']['phases'] => {
  const end = marks.ended ?? now;
  const { start, ram = end, device = end, commit = end } = marks;
  return {
    setupMs: rounded(ram - start),
    ramMs: rounded(device - ram),
    deviceMs: rounded(commit - device),
    commitMs: rounded(end - commit),
  };
};

/** A rate over the time between two looks at a pair of counters. */
export class RateWindow {
  mbps = 0;
  pagesPerSecond = 0;
  #at = 0;
  #bytes = 0;
  #pages = 0;

  start(now: number): void {
    this.#at = now;
  }

  /** Milliseconds since the window opened. */
  age(now: number): number {
    return now - this.#at;
  }

  /** Closes the window with the counters as they are now, and opens the next. */
  close(now: number, bytes: number, pages: number): void {
    const elapsed = Math.max(now - this.#at, 0.001);
    this.mbps = rounded(((bytes - this.#bytes) * 8) / elapsed / 1000);
    this.pagesPerSecond = Math.round(((pages - this.#pages) * 1000) / elapsed);
    this.#at = now;
    this.#bytes = bytes;
    this.#pages = pages;
  }
}
