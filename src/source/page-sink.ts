// Where the engine's pages go: the stream, later multifd channels, a mapped-ram file, a postcopy destination.

import type { DeviceTail } from '../format/stream/device-tail.js';
import type { Extent, RamBlock } from '../memory/ram-block.js';
import type { SourceGuest } from './guest.js';

/** Pages of one extent of one block, ascending. The engine reuses the object and the array. */
export class PageBatch {
  block!: RamBlock;
  extent!: Extent;
  count = 0;
  /** Block page indexes; the first `count` are valid. */
  readonly pages: Int32Array;

  constructor(pages: Int32Array) {
    this.pages = pages;
  }
}

/**
 *   start ──▶ ( beginIteration ──▶ writePages* ──▶ endIteration )* ──▶ writeDevices ──▶ finish
 *
 * Calls are synchronous and read the pages before they return; only waiting is asynchronous, so that the engine
 * never holds half-updated state across an await (TS-33).
 */
export interface PageSink {
  /** Bytes that the system accepted; what is merely queued does not count, or the bandwidth would flatter. */
  readonly transferred: number;

  /** Bytes accepted from the engine; the rate limit goes by these, so that a deep queue cannot overshoot it. */
  readonly queued: number;

  /** Whether a batch can be written without waiting. */
  readonly ready: boolean;

  /** Resolves when `ready`; rejects when the sink is broken, with the reason. */
  whenReady(): Promise<void>;

  /** Announces machine and blocks. */
  start(guest: SourceGuest): void;

  /** The most pages of this extent that the next batch may hold, at least 1. */
  batchLimit(extent: Extent): number;

  beginIteration(last: boolean): void;

  /** Reads and queues the pages; returns how many of them were zero. */
  writePages(batch: PageBatch): number;

  /**
   * The guest gave these pages back (a hint). What was written of them may be dropped, where that gains something: they
   * read as zero then. Content that the guest stores there later comes with a later `writePages`.
   */
  forget?(block: RamBlock, firstPage: number, pageCount: number): void;

  /** Every page written so far leaves without waiting for a further call (PL-15). */
  endIteration(): void;

  /** Resolves when everything queued was accepted by the system. */
  flush(): Promise<void>;

  writeDevices(devices: DeviceTail): void;

  /**
   * Whether the other side has everything and has not answered yet: it may run the guest from now on. Default: never.
   */
  readonly isUndecided?: boolean;

  /** Whether it has everything, and will never answer: it may run the guest, whatever becomes of the migration. Default: never. */
  readonly staysUndecided?: boolean;

  /** Whether the guest runs at the other side once it has confirmed. Default: it is saved. */
  readonly movesGuest?: boolean;

  /**
   * Called at the moment of the other side's confirmation, even if it comes while an earlier call is waited for. What fails after it
   * makes no difference to the guest. A sink that does not call it has confirmed when `finish` resolves.
   */
  onConfirmed?: () => void;

  /** Resolves when the other side has confirmed, where it can. */
  finish(): Promise<void>;

  /** Drops everything; pending and later waits reject with `reason`. */
  abort(reason: Error): void;

  /** Resolves when nothing is open any more, after `finish` or `abort`. Undefined where both leave nothing open. */
  readonly closed?: Promise<void>;
}
