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
    const slot = (page: number): Uint8Array =>
      target.subarray((page - firstPage) * pageSize, (page - firstPage + 1) * pageSize);
    const end = firstPage + pageCount;
    let page: number = firstPage;
    while (page < end) {
      const entry = index.entry(page);
      if (kindOfEntry(entry) !== PageKind.present) {
        slot(page).fill(0);
        page += 1;
      } else if (entry < 0) {
        this.#readDeltas(entry, slot(page));
        page += 1;
      } else {
        page = this.#readStretch(index, page, end, slot);
      }
    }
  }

  /** Reads the present page `first` and what can come with it before `end`; returns the page after those. */
  #readStretch(index: RecordIndex, first: number, end: number, slot: (page: number) => Uint8Array): number {
    const { targetPageSize: pageSize } = this.setup;
    const start = index.entry(first);
    let last = first;
    let stretchEnd = start + pageSize;
    for (let page = first + 1; page < end; page += 1) {
      const entry = index.entry(page);
      if (kindOfEntry(entry) !== PageKind.present) {
        continue;
      }
      if (entry < stretchEnd || entry > stretchEnd + GAP_BYTES || entry + pageSize > start + READ_BYTES) {
        break;
      }
      last = page;
      stretchEnd = entry + pageSize;
    }
    if (last === first) {
      this.#readAt(start, slot(first));
      return first + 1;
    }
    if (this.#scratch.length === 0) {
      this.#scratch = new Uint8Array(READ_BYTES);
    }
    const stretch = this.#scratch.subarray(0, stretchEnd - start);
    this.#readAt(start, stretch);
    for (let page = first; page <= last; page += 1) {
      const entry = index.entry(page);
      if (kindOfEntry(entry) === PageKind.present) {
        slot(page).set(stretch.subarray(entry - start, entry - start + pageSize));
      } else {
        slot(page).fill(0);
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
