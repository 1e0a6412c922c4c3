// A saved guest as random access, whatever the file's format: what the verbs and the engine read pages through.
// No I/O here: whoever opens a file lends a `ReadAt`.

import { RamferryError } from '../memory/errors.js';
import type { PageIndex } from '../memory/units.js';
import type { StreamConfiguration } from './stream/configuration.js';
import type { RamSetup, StreamSummary } from './stream/stream-handler.js';

/** Fills `target` with the bytes of the file from `position` on, synchronously; throws if it cannot fill all of it. */
export type ReadAt = (position: number, target: Uint8Array) => void;

/** What a file holds of a page. */
export const PageKind = {
  /** Nothing is stored: the page reads as zero. */
  absent: 0,
  /** Stored as a zero mark. */
  zero: 1,
  /** Content is stored. */
  present: 2,
} as const;
export type PageKind = (typeof PageKind)[keyof typeof PageKind];

/** Page counts of a block; they add up to its number of pages. */
export interface PageCounts {
  readonly presentPages: number;
  readonly zeroPages: number;
  readonly absentPages: number;
}

/** An opened file. Blocks are addressed by their position in `setup.blocks`. */
export interface Snapshot {
  readonly configuration: StreamConfiguration;
  readonly setup: RamSetup;
  /** Device state, warnings, and what else is known at the end of the stream. */
  readonly summary: StreamSummary;
  /** Memory that the index of pages takes. */
  readonly indexBytes: number;
  /** Positions of the blocks whose content the file leaves out (elsewhere.ts): their pages count as absent, but are not zero. */
  readonly elsewhere: ReadonlySet<number>;

  /** Page counts of a block. */
  counts(block: number): PageCounts;

  /** Page counts of a block, one for every `pagesPerCell` pages of it. */
  cells(block: number, pagesPerCell: number): PageCounts[];

  kindOf(block: number, page: PageIndex): PageKind;

  /**
   * First present page of a block in [from, end); `end` if there is none. It is the block's page count by default, and looking
   * through all of an empty block takes time: whoever asks for each piece of a block gives the end of the piece.
   */
  nextPresent(block: number, from: PageIndex, end?: PageIndex): PageIndex;

  /** Sets the bits of a block's present pages in `target`, which is zero: bit n % 8 of byte n / 8 is page n. */
  presentBitmap(block: number, target: Uint8Array): void;

  /**
   * Visits the ranges of a block that were no memory, or hold nothing, as far as the file tells, ascending: all pages in them
   * are absent. What sends the guest on leaves them alone, so that they stay unallocated (spec/algorithms.md section 6). An
   * absent page elsewhere is zero, and has to be made so at the destination.
   */
  forEachDiscarded(block: number, visit: (firstPage: PageIndex, pageCount: number) => void): void;

  /**
   * Reads `pageCount` consecutive pages of a block into `target`, all of it; absent and zero pages become zero bytes.
   * @throws RamferryError `usage`, if the pages do not fit the block or the target; MEMORY_ELSEWHERE, if the block is left out
   */
  readPages(block: number, firstPage: PageIndex, pageCount: number, target: Uint8Array): void;

  /**
   * How many of the absent pages in a range are stale: bytes that are not zero lie at their place in the file, left by
   * an earlier state of the page. Reads the file. Only formats in which an absent page has a place have them.
   */
  stalePages?(block: number, firstPage: PageIndex, pageCount: number): number;
}

/** @throws RamferryError `usage`, if the pages do not fit the block or the target */
export const checkPageRange = (
  { blocks, targetPageSize }: RamSetup,
  block: number,
  firstPage: number,
  pageCount: number,
  targetBytes: number,
): void => {
  if (
    (firstPage + pageCount) * targetPageSize > blocks[block].usedLength ||
    targetBytes !== pageCount * targetPageSize
  ) {
    throw new RamferryError(
      'usage',
      'USAGE_PAGE_RANGE',
      `${pageCount} pages from page ${firstPage} of "${blocks[block].name}" do not fit the block or the target.`,
    );
  }
};
