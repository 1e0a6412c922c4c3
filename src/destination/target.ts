// What the destination engine needs of the place that a migration goes to: guest memory (memory-target.ts) or a file
// (file-target.ts).

import type { RamDigest } from '../format/ram-digest.js';
import type { DeviceTail } from '../format/stream/device-tail.js';
import type { StreamHandler } from '../format/stream/stream-handler.js';

/** Page records taken so far. */
export interface PageCounts {
  normal: number;
  zero: number;
  xbzrle: number;
}

/** Room for received bytes: [start, end) of `bytes`. */
export interface ReceiveArea {
  readonly bytes: Uint8Array;
  readonly start: number;
  readonly end: number;
}

/**
 * Takes a stream apart as a `StreamHandler`, and says where its bytes shall be received:
 *
 *           area()        received from the channel        read by the stream reader
 *     |░░░░░░░░░░░░░░░| ─▶ |▓▓▓▓▓▓▓▓▓▓▓▓▓░░| ─▶ consumed(end) ─▶ |         ▓▓|  the rest of a record
 *                                                                       └────▶ front of the next area
 */
export interface MigrationTarget extends Omit<StreamHandler, 'end' | 'ramSectionEnd' | 'earlySection' | 'postcopy'> {
  readonly pages: Readonly<PageCounts>;
  /** The size of the pages of the memory that the stream goes to; undefined where pages of any size are taken. */
  readonly pageSize?: number;
  /**
   * Refuse devices whose state iterates as RAM does: a guest that is loaded here would be without that state, and one that goes on
   * from here by postcopy may have a device that holds on to its old memory. Default: their bytes are kept.
   */
  readonly refusesIterable?: boolean;
  /** Sentences about what was accepted although it is odd. */
  readonly warnings: readonly string[];

  /**
   * Where the next bytes go: at least LONGEST_UNIT_BYTES. The engine puts the bytes that the reader has not consumed to its
   * start, unless that is where they are. Called only while `ready`. Throws what broke the target.
   */
  area(): ReceiveArea;

  /** The reader is done with the last area up to index `end`. */
  consumed(end: number): void;

  /** Whether more bytes can be taken; the channel is paused while not. */
  readonly ready: boolean;
  /** Resolves when `ready`; rejects with what broke the target. */
  whenReady(): Promise<void>;

  /** The devices of a source that has switched to postcopy, whose stream has them before the last pages. Called once, behind those. */
  lateDevices?(tail: DeviceTail): void;

  /** Resolves when everything that was consumed is where it belongs. Called once, after the end of the stream. */
  finish(): Promise<void>;

  /** The migration has ended, one way or another: lets go of what it was claimed for. Called once. */
  release?(): void;
}

/** A target that can hash what passes through. */
export interface DigestingTarget extends MigrationTarget {
  /** Of the RAM that has arrived; undefined unless asked for, or where the content of a page was not seen whole. */
  readonly digest: RamDigest | undefined;
  /** What ties the file to that digest, where it carries something of the kind. */
  readonly fingerprint?: string | undefined;
}

export interface DigestOption {
  /** Make a digest of RAM on the way. Default false. */
  readonly digests?: boolean;
}
