// A stream file as random access: open-snapshot.ts noted where the last record of every page is. RAM itself is never
// held: a 1 GiB guest costs 2 MiB of index.

import type { PageIndex } from '../../memory/units.js';
import { refuseElsewhere } from '../elsewhere.js';
import { checkPageRange, type PageCounts, PageKind, type ReadAt, type Snapshot } from '../snapshot.js';
import type { StreamConfiguration } from './configuration.js';
import { type DeltaList, kindOfEntry, type RecordIndex } from './record-index.js';
import type { RamSetup, StreamSummary } from './stream-handler.js';
import { decodeXbzrle } from './xbzrle.js';

/** Bytes of one read while gathering pages: large enough that the system call does not matter. */
const READ_BYTES = 1024 * 1024;

/** Bytes read ahead where a page is put together from deltas. */
const DELTA_READ_BYTES = 64 * 1024;

/** Records and bytes between two wanted pages that are read along rather than skipped with another read. */
const GAP_BYTES = 16 * 1024;

/** An opened stream file. Blocks are addressed by their position in `setup.blocks`. */
export class StreamSnapshot implements Snapshot {
  readonly configuration: StreamConfiguration;
  readonly setup: RamSetup;
  /** Device state, warnings, and what else is known at the end of the stream. */
  readonly summary: StreamSummary;
  /** Memory the index takes. */
  readonly indexBytes: number;
  readonly elsewhere: ReadonlySet<number>;
  readonly #readAt: ReadAt;
  readonly #indexes: readonly RecordIndex[];
  readonly #deltas: DeltaList;
  #scratch: Uint8Array = new Uint8Array(0);

  constructor(
    readAt: ReadAt,
    configuration: StreamConfiguration,
    setup: RamSetup,
    summary: StreamSummary,
    indexes: readonly RecordIndex[],
    deltas: DeltaList,
    indexBytes: number,
    elsewhere: ReadonlySet<number>,
  ) {
    this.#readAt = readAt;
    this.configuration = configuration;
    this.setup = setup;
    this.summary = summary;
    this.#indexes = indexes;
    this.#deltas = deltas;
    this.indexBytes = indexBytes;
    this.elsewhere = elsewhere;
  }

  /** Page counts of a block. */
  counts(block: number): PageCounts {
    return this.#indexes[block].counts;
  }

  /** Page counts of a block, one for every `pagesPerCell` pages of it. */
  cells(block: number, pagesPerCell: number): PageCounts[] {
    return this.#indexes[block].cells(pagesPerCell);
  }

  kindOf(block: number, page: PageIndex): PageKind {
    return kindOfEntry(this.#indexes[block].entry(page));
  }

  /** First present page of a block in [from, end); `end`, by default the block's page count, if there is none. */
  nextPresent(block: number, from: PageIndex, end?: PageIndex): PageIndex {
    return this.#indexes[block].nextPresent(from, end) as PageIndex;
  }

  presentBitmap(block: number, target: Uint8Array): void {
    const index = this.#indexes[block];
    const pageCount = this.setup.blocks[block].usedLength / this.setup.targetPageSize;
    for (let page = index.nextPresent(0); page < pageCount; page = index.nextPresent(page + 1)) {
      target[Math.floor(page / 8)] |= 1 << (page % 8);
    }
  }

  /** What a source never sent: discarded, or hinted to be free. */
  forEachDiscarded(block: number, visit: (firstPage: PageIndex, pageCount: number) => void): void {
    this.#indexes[block].forEachAbsent((first, count) => visit(first as PageIndex, count));
  }

  /**
   * Reads `pageCount` consecutive pages of a block into `target`, all of it; absent and zero pages become zero bytes.
   * Pages whose records lie near each other in the file, in the order of the pages, come with one read.
   */
  readPages(block: number, firstPage: PageIndex, pageCount: number, target: Uint8Array): void {
    checkPageRange(this.setup, block, firstPage, pageCount, target.length);
    refuseElsewhere(this, [block]);
    const { targetPageSize: pageSize } = this.setup;
    const index = this.#indexes[block];
    const end = firstPage + pageCount;
    let page: number = firstPage;
    while (page < end) {
      const entry = index.entry(page);
      const at = (page - firstPage) * pageSize;
      if (kindOfEntry(entry) !== PageKind.present) {
        target.fill(0, at, at + pageSize);
        page += 1;
      } else if (entry < 0) {
        this.#readDeltas(entry, target.subarray(at, at + pageSize));
        page += 1;
      } else {
        page = this.#readStretch(index, page, end, target, at);
      }
    }
  }

  /**
   * Reads the present page `first` to `target[at]`, and what can come with it before `end`; returns the page after those.
   *
   *     file     │ A   ▪ B   ▪▫ D   ▪│        page C is zero: its record is shorter than it
   *     read         │ A   ▪ B   ▪▫ D   │     so far behind `at` that no page has to move to the right
   *     then     │ A   │ B   │ C   │ D   │    each moves to its place, from the left on
   */
  #readStretch(index: RecordIndex, first: number, end: number, target: Uint8Array, at: number): number {
    const { targetPageSize: pageSize } = this.setup;
    const start = index.entry(first);
    const mostBytes = Math.min(READ_BYTES, (end - first) * pageSize);
    let last = first;
    let bytes = pageSize;
    let shift = 0;
    for (let page = first + 1; page < end; page += 1) {
      const entry = index.entry(page);
      if (kindOfEntry(entry) !== PageKind.present) {
        continue;
      }
      const skipped = entry - start;
      const needed = Math.max(shift, (page - first) * pageSize - skipped);
      if (skipped < bytes || skipped > bytes + GAP_BYTES || needed + skipped + pageSize > mostBytes) {
        break;
      }
      last = page;
      bytes = skipped + pageSize;
      shift = needed;
    }
    this.#readAt(start, target.subarray(at + shift, at + shift + bytes));
    for (let page = first, to = at; page <= last; page += 1, to += pageSize) {
      const entry = index.entry(page);
      if (kindOfEntry(entry) !== PageKind.present) {
        target.fill(0, to, to + pageSize);
      } else if (entry - start !== to - at - shift) {
        const from = at + shift + entry - start;
        target.copyWithin(to, from, from + pageSize);
      }
    }
    return last + 1;
  }

  /** Builds a page from the last whole content before its deltas, and the deltas in the order of the stream. */
  #readDeltas(entry: number, target: Uint8Array): void {
    let count = 0;
    let base = entry;
    for (; base < 0; base = this.#deltas.before(-1 - base)) {
      count += 1;
    }
    const deltas = new Float64Array(count);
    for (let at = entry; at < 0; at = this.#deltas.before(-1 - at)) {
      deltas[--count] = -1 - at;
    }
    if (kindOfEntry(base) === PageKind.present) {
      this.#readAt(base, target);
    } else {
      target.fill(0);
    }
    const end = (delta: number): number => this.#deltas.offset(delta) + this.#deltas.length(delta);
    const last = end(deltas.at(-1)!);
    if (this.#scratch.length === 0) {
      this.#scratch = new Uint8Array(READ_BYTES);
    }
    // A page that changed in every pass has thousands, mostly not far from each other: they come with one read.
    let [from, to] = [0, 0];
    for (const delta of deltas) {
      const offset = this.#deltas.offset(delta);
      if (end(delta) > to) {
        from = offset;
        to = Math.max(end(delta), Math.min(offset + DELTA_READ_BYTES, last));
        this.#readAt(from, this.#scratch.subarray(0, to - from));
      }
      decodeXbzrle(this.#scratch, offset - from, this.#deltas.length(delta), target, offset);
    }
  }
}
