// A stream file as random access. One pass over the file notes where the last record of every page is; after that any
// page can be read. RAM itself is never held: a 1 GiB guest costs 2 MiB of index.
//
//   openStream ─▶ StreamIndexer ─(StreamReader)─▶ RecordIndex per block ─▶ StreamSnapshot.readPages
//
// No I/O here: the caller lends a `ReadAt`.

import { RamferryError } from '../../memory/errors.js';
import type { PageIndex } from '../../memory/units.js';
import type { StreamConfiguration } from './configuration.js';
import { StreamReader } from './read.js';
import { DeltaList, IndexBudget, kindOfEntry, type PageCounts, PageKind, RecordIndex } from './record-index.js';
import type { RamSetup, ReadRamBlock, StreamHandler, StreamSummary } from './stream-handler.js';
import { decodeXbzrle } from './xbzrle.js';

/** Fills `target` with the bytes of the file from `position` on, synchronously; throws if it cannot fill all of it. */
export type ReadAt = (position: number, target: Uint8Array) => void;

export interface SnapshotOptions {
  /** File name, for errors. */
  readonly file?: string;
  /** Page size of streams that do not carry it; default 4096. */
  readonly targetPageSize?: number;
  /** Most bytes the index may take; default 512 MiB, enough for 240 GiB of guest memory that is all in the stream. */
  readonly indexLimitBytes?: number;
}

const INDEX_LIMIT_BYTES = 512 * 1024 * 1024;

/** Bytes of one read while indexing and while gathering pages: large enough that the system call does not matter. */
const READ_BYTES = 1024 * 1024;

/** Records and bytes between two wanted pages that are read along rather than skipped with another read. */
const GAP_BYTES = 16 * 1024;

/** Indexes a file of `sizeBytes` bytes. Bytes after the stream's end are a warning. */
export const openStream = (readAt: ReadAt, sizeBytes: number, options: SnapshotOptions = {}): StreamSnapshot => {
  const indexer = new StreamIndexer(options);
  const buffer = new Uint8Array(READ_BYTES);
  // What a push leaves over is read again with the next piece: with 4 KiB pages, less than half a percent.
  for (let end = 0; !indexer.done && end < sizeBytes; ) {
    const piece = buffer.subarray(0, Math.min(READ_BYTES, sizeBytes - indexer.position));
    end = indexer.position + piece.length;
    readAt(indexer.position, piece);
    indexer.push(piece);
  }
  return indexer.finish(readAt, sizeBytes - indexer.position);
};

/** What an unfinished indexer knows: of a damaged file, everything up to the damage. */
export interface IndexedSoFar {
  readonly configuration: StreamConfiguration | undefined;
  readonly setup: RamSetup | undefined;
  /** By block, in the order of `setup.blocks`. What was not reached counts as absent. */
  readonly counts: readonly PageCounts[];
  /** RAM sections that ended, and page records in all of them. */
  readonly ramSections: number;
  readonly pageRecords: number;
}

/** Builds the index from bytes that are pushed, for callers that read the file in their own way. */
export class StreamIndexer {
  readonly #handler: IndexHandler;
  readonly #reader: StreamReader;

  constructor(options: SnapshotOptions = {}) {
    this.#handler = new IndexHandler(options.indexLimitBytes ?? INDEX_LIMIT_BYTES);
    this.#reader = new StreamReader(this.#handler, options);
  }

  /** Offset in the file of the next byte to push. */
  get position(): number {
    return this.#reader.position;
  }

  /** Whether the stream's end was reached. */
  get done(): boolean {
    return this.#reader.done;
  }

  /** Also after a `push` or `finish` that threw. */
  get soFar(): IndexedSoFar {
    return this.#handler.soFar;
  }

  /** Takes the bytes [start, end) at `position`; returns how many it consumed, the rest must be pushed again. */
  push(bytes: Uint8Array, start = 0, end = bytes.length): number {
    return this.#reader.push(bytes, start, end);
  }

  /** The file has no more bytes, and `trailingBytes` of them follow the stream. Throws if the stream is incomplete. */
  finish(readAt: ReadAt, trailingBytes = 0): StreamSnapshot {
    this.#reader.end();
    return this.#handler.snapshot(readAt, trailingBytes);
  }
}

class IndexHandler implements StreamHandler {
  readonly #budget: IndexBudget;
  readonly #deltas: DeltaList;
  readonly #indexes: RecordIndex[] = [];
  #scratch = new Uint8Array(0);
  #configuration: StreamConfiguration | undefined;
  #setup: RamSetup | undefined;
  #summary: StreamSummary | undefined;
  #ramSections = 0;
  #pageRecords = 0;

  constructor(indexLimitBytes: number) {
    this.#budget = new IndexBudget(indexLimitBytes);
    this.#deltas = new DeltaList(this.#budget);
  }

  get soFar(): IndexedSoFar {
    return {
      configuration: this.#configuration,
      setup: this.#setup,
      counts: this.#indexes.map(({ counts }) => counts),
      ramSections: this.#ramSections,
      pageRecords: this.#pageRecords,
    };
  }

  configuration(configuration: StreamConfiguration): void {
    this.#configuration = configuration;
  }

  ramSetup(setup: RamSetup): void {
    this.#setup = setup;
    this.#scratch = new Uint8Array(setup.targetPageSize);
    for (const { usedLength } of setup.blocks) {
      this.#indexes.push(new RecordIndex(usedLength / setup.targetPageSize, this.#budget, this.#deltas));
    }
  }

  zeroPage(block: ReadRamBlock, page: PageIndex): void {
    this.#indexes[block.index].setZero(page);
    this.#pageRecords += 1;
  }

  page(block: ReadRamBlock, page: PageIndex, _bytes: Uint8Array, _at: number, offset: number): void {
    this.#indexes[block.index].setContent(page, offset);
    this.#pageRecords += 1;
  }

  xbzrlePage(
    block: ReadRamBlock,
    page: PageIndex,
    bytes: Uint8Array,
    at: number,
    length: number,
    offset: number,
  ): void {
    // Whether data is well formed does not depend on the old content, so a broken record is found now, on any page.
    decodeXbzrle(bytes, at, length, this.#scratch, offset);
    this.#indexes[block.index].addDelta(page, offset, length);
    this.#pageRecords += 1;
  }

  ramSectionEnd(): void {
    this.#ramSections += 1;
  }

  end(summary: StreamSummary): void {
    this.#summary = summary;
  }

  snapshot(readAt: ReadAt, trailingBytes: number): StreamSnapshot {
    const summary = this.#summary!;
    const warnings =
      trailingBytes === 0
        ? summary.warnings
        : [...summary.warnings, `${trailingBytes} bytes follow the stream, from byte ${summary.bytes} on.`];
    return new StreamSnapshot(
      readAt,
      this.#configuration!,
      this.#setup!,
      { ...summary, warnings },
      this.#indexes,
      this.#deltas,
      this.#budget.usedBytes,
    );
  }
}

/** An opened stream file. Blocks are addressed by their position in `setup.blocks`. */
export class StreamSnapshot {
  readonly configuration: StreamConfiguration;
  readonly setup: RamSetup;
  /** Device state, warnings, and what else is known at the end of the stream. */
  readonly summary: StreamSummary;
  /** Memory the index takes. */
  readonly indexBytes: number;
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
  ) {
    this.#readAt = readAt;
    this.configuration = configuration;
    this.setup = setup;
    this.summary = summary;
    this.#indexes = indexes;
    this.#deltas = deltas;
    this.indexBytes = indexBytes;
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

  /** First present page of a block at or after `from`; the block's page count if there is none. */
  nextPresent(block: number, from: PageIndex): PageIndex {
    return this.#indexes[block].nextPresent(from) as PageIndex;
  }

  /**
   * Reads `pageCount` consecutive pages of a block into `target`, all of it; absent and zero pages become zero bytes.
   * Pages whose records lie near each other in the file, in the order of the pages, come with one read.
   */
  readPages(block: number, firstPage: PageIndex, pageCount: number, target: Uint8Array): void {
    const { targetPageSize: pageSize, blocks } = this.setup;
    if ((firstPage + pageCount) * pageSize > blocks[block].usedLength || target.length !== pageCount * pageSize) {
      throw new RamferryError(
        'usage',
        'USAGE_PAGE_RANGE',
        `${pageCount} pages from page ${firstPage} of "${blocks[block].name}" do not fit the block or the target.`,
      );
    }
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
    const deltas: number[] = [];
    let base = entry;
    while (base < 0) {
      deltas.push(-1 - base);
      base = this.#deltas.before(-1 - base);
    }
    if (kindOfEntry(base) === PageKind.present) {
      this.#readAt(base, target);
    } else {
      target.fill(0);
    }
    for (const delta of deltas.reverse()) {
      const offset = this.#deltas.offset(delta);
      const encoded = new Uint8Array(this.#deltas.length(delta));
      this.#readAt(offset, encoded);
      decodeXbzrle(encoded, 0, encoded.length, target, offset);
    }
  }
}
