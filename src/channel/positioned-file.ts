// A file that is written at positions instead of in order: what mapped-ram needs, where every page has its place.

import type { FileOffset } from '../memory/units.js';

/**
 *   write ──┐
 *           ├─▶ unfinished file ──▶ commit: on disk, under its name
 *   pages ──┘                  └──▶ abort: as if nothing had been
 *
 * Everything but `commit` is synchronous: a page has been read, or is queued for a writer thread of its own, when the
 * call returns. Whatever fails throws the cause, at the call itself or at a later one.
 */
export interface PositionedFile {
  /** How messages name it. */
  readonly name: string;

  /** The first byte that is ours; those before it stay what they are. */
  readonly start: FileOffset;

  /** Bytes given to `writePages` that the system has not taken yet. */
  readonly pendingBytes: number;

  /** Bytes that are not pages, of any length at any position. */
  write(bytes: Uint8Array, position: number): void;

  /** Writes bytes where nothing was written before: what is zero of them need not take space. */
  writeOnce(bytes: Uint8Array, position: number): void;

  /**
   * Writes [at, at + length) of `bytes`, whole pages. The memory may be read until the next `barrier`; what is written in
   * between two barriers must not overlap, since nothing says in which order it arrives.
   */
  writePages(bytes: Uint8Array, at: number, length: number, position: number): void;

  /** Returns when all pages given so far are in the file (MR-11, MR-13). */
  barrier(): void;

  /** Fills `target` with what was written at `position` before the last barrier. */
  read(target: Uint8Array, position: number): void;

  /** Gives the space of pages back, where the system can: otherwise what they held stays. */
  punchHole(position: number, length: number): void;

  /**
   * Makes the file durable and gives it its name. Rejects if it was aborted meanwhile.
   * @param renamed called when it has its name: what fails after that does not take it back
   */
  commit(renamed?: () => void): Promise<void>;

  /** Leaves everything as it was before the file was opened. Does nothing after `commit`, or the second time. */
  abort(): void;
}
