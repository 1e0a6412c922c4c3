// Opens a saved guest for reading by page, whatever its format. One pass over the stream notes where pages are:
//
//   SnapshotIndexer ─(StreamReader)─▶ stream:     RecordIndex per block,  from every page record  ─▶ StreamSnapshot
//                                  └▶ mapped-ram: bitmap per block,       the pass jumps over all ─▶ MappedRamSnapshot
//
// No I/O here: the caller lends a `ReadAt`.

import type { RamferryError } from '../memory/errors.js';
import type { PageIndex } from '../memory/units.js';
import { elsewhereBlocks, elsewhereText } from './elsewhere.js';
import { invalid, withFile } from './invalid.js';
import { MappedRamBlockIndex, MappedRamSnapshot } from './mapped-ram/snapshot.js';
import type { PageCounts, ReadAt, Snapshot } from './snapshot.js';
import type { StreamConfiguration } from './stream/configuration.js';
import { Capability, ElementType } from './stream/constants.js';
import { DeltaList, IndexBudget, RecordIndex } from './stream/record-index.js';
import { HEAD_BYTES, RecordRun } from './stream/record-run.js';
import { StreamSnapshot } from './stream/snapshot.js';
import { StreamFileReader } from './stream/stream-file-reader.js';
import type { RamSetup, ReadRamBlock, StreamHandler, StreamSummary } from './stream/stream-handler.js';
import { decodeXbzrle } from './stream/xbzrle.js';

export interface SnapshotOptions {
  /** File name, for errors. */
  readonly file?: string;
  /** File position of the stream's first byte, in a container or with `offset=`; default 0. */
  readonly startOffset?: number;
  /** Page size of streams that do not carry it; by default it is found. */
  readonly targetPageSize?: number;
  /** It is on a device, where something else may stand behind the stream; anywhere else that is a warning. */
  readonly isPadded?: boolean;
  /** Most bytes the index may take; default 512 MiB, enough for 240 GiB of guest memory that is all in a stream. */
  readonly indexLimitBytes?: number;
}

const INDEX_LIMIT_BYTES = 512 * 1024 * 1024;

/** Bytes of one read where the next thing is mostly a block head of some 60 bytes; larger than LONGEST_UNIT_BYTES. */
const MAPPED_READ_BYTES = 128 * 1024;

/** Indexes a file of `sizeBytes` bytes. Bytes after the stream's end are a warning. */
export const openSnapshot = (readAt: ReadAt, sizeBytes: number, options: SnapshotOptions = {}): Snapshot => {
  const indexer = new SnapshotIndexer(readAt, sizeBytes, options);
  while (indexer.advance() > 0) {}
  return indexer.finish();
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

/** Builds the index step by step, for callers that have more to do. */
export class SnapshotIndexer {
  readonly #sizeBytes: number;
  readonly #isPadded: boolean;
  readonly #handler: IndexHandler;
  readonly #reader: StreamFileReader;
  readonly #file: string | undefined;

  constructor(readAt: ReadAt, sizeBytes: number, options: SnapshotOptions = {}) {
    this.#sizeBytes = sizeBytes;
    this.#isPadded = options.isPadded ?? false;
    this.#file = options.file;
    this.#handler = new IndexHandler(readAt, options.indexLimitBytes ?? INDEX_LIMIT_BYTES);
    this.#reader = new StreamFileReader(this.#handler, readAt, sizeBytes, { ...options, fileBytes: sizeBytes });
  }

  /** File position up to which everything was looked at, or jumped over. */
  get position(): number {
    return this.#reader.position;
  }

  /** Also after an `advance` or `finish` that threw. */
  get soFar(): IndexedSoFar {
    return this.#handler.soFar;
  }

  /** Reads on; returns by how many bytes the position moved, 0 at the end of the stream or of the file. */
  advance(): number {
    return this.#reader.advance(this.#handler.isMapped ? MAPPED_READ_BYTES : undefined);
  }

  /**
   * After an `advance` or `finish` that threw: the guest's memory alone, if all of it comes before the damage; without devices, and
   * with the damage among its warnings. Undefined if pages may be missing.
   */
  memoryDespite(damage: RamferryError): Snapshot | undefined {
    return this.#handler.memoryDespite(damage, this.#reader.position);
  }

  /** Called once `advance` returns 0. Throws if the stream is incomplete. */
  finish(): Snapshot {
    this.#reader.finish();
    try {
      return this.#handler.snapshot(this.#reader.position, this.#sizeBytes, this.#isPadded);
    } catch (error) {
      throw withFile(error, this.#file);
    }
  }
}

class IndexHandler implements StreamHandler {
  isMapped = false;
  readonly #readAt: ReadAt;
  readonly #budget: IndexBudget;
  readonly #deltas: DeltaList;
  /** Of a stream; empty for a mapped-ram file. */
  readonly #records: RecordIndex[] = [];
  /** Of a mapped-ram file; empty for a stream. */
  readonly #bitmaps: MappedRamBlockIndex[] = [];
  #scratch = new Uint8Array(0);
  #run: RecordRun | undefined;
  #configuration: StreamConfiguration | undefined;
  #setup: RamSetup | undefined;
  #summary: StreamSummary | undefined;
  #ramSections = 0;
  #pageRecords = 0;
  #ramHasEnded = false;

  constructor(readAt: ReadAt, indexLimitBytes: number) {
    this.#readAt = readAt;
    this.#budget = new IndexBudget(indexLimitBytes);
    this.#deltas = new DeltaList(this.#budget);
  }

  get soFar(): IndexedSoFar {
    return {
      configuration: this.#configuration,
      setup: this.#setup,
      counts: [...this.#records, ...this.#bitmaps].map(({ counts }) => counts),
      ramSections: this.#ramSections,
      pageRecords: this.#pageRecords,
    };
  }

  configuration(configuration: StreamConfiguration): void {
    this.#configuration = configuration;
    this.isMapped = configuration.capabilities.includes(Capability.MAPPED_RAM);
  }

  ramSetup(setup: RamSetup): void {
    const { blocks, targetPageSize } = setup;
    if (this.isMapped) {
      for (const block of blocks) {
        this.#budget.take(block.mapped!.bitmapBytes);
        this.#bitmaps.push(new MappedRamBlockIndex(this.#readAt, block, targetPageSize));
      }
    } else {
      this.#scratch = new Uint8Array(targetPageSize);
      this.#run = new RecordRun(targetPageSize);
      for (const { usedLength } of blocks) {
        this.#records.push(new RecordIndex(usedLength / targetPageSize, this.#budget, this.#deltas));
      }
    }
    this.#setup = setup;
  }

  records({ index, usedLength }: ReadRamBlock, bytes: Uint8Array, start: number, end: number, offset: number): number {
    const run = this.#run!;
    const records = this.#records[index];
    for (let at = start; ; ) {
      const length = run.read(bytes, at, end, usedLength);
      if (length === 0) {
        return at - start;
      }
      if (run.isZero) {
        records.setZeros(run.firstPage, run.pageCount);
      } else {
        records.setContents(run.firstPage, run.pageCount, offset + at - start + HEAD_BYTES, run.stride);
      }
      this.#pageRecords += run.pageCount;
      at += length;
    }
  }

  zeroPage(block: ReadRamBlock, page: PageIndex): void {
    this.#records[block.index].setZeros(page, 1);
    this.#pageRecords += 1;
  }

  page(block: ReadRamBlock, page: PageIndex, _bytes: Uint8Array, _at: number, offset: number): void {
    this.#records[block.index].setContents(page, 1, offset, 0);
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
    this.#records[block.index].addDelta(page, offset, length);
    this.#pageRecords += 1;
  }

  ramSectionEnd(type: number): void {
    this.#ramSections += 1;
    this.#ramHasEnded ||= type === ElementType.SECTION_END;
  }

  end(summary: StreamSummary): void {
    this.#summary = summary;
  }

  /** Of pages that are larger than assumed only zero marks read as smaller ones: every second page would be missing. */
  #checkPageSize(): void {
    const { blocks, targetPageSize } = this.#setup!;
    const isRead = this.#records.some((index) => index.counts.zeroPages + index.counts.presentPages > 0);
    const isHalf = this.#records.every((index) => index.hasEvenPagesOnly);
    if (isRead && isHalf && blocks.some(({ usedLength }) => usedLength > targetPageSize)) {
      const statement = `No page of an odd number was written: pages do not have ${targetPageSize} bytes`;
      const hint = `Try --page-size ${2 * targetPageSize}.`;
      throw invalid('PAGE_SIZE', statement, blocks[0]!.lengthOffset, { value: targetPageSize, hint });
    }
  }

  /** @param position up to which the stream was read */
  memoryDespite(damage: RamferryError, position: number): Snapshot | undefined {
    if (!this.#ramHasEnded || this.#summary !== undefined) {
      return undefined;
    }
    return this.#opened({
      bytes: position,
      tail: { early: new Uint8Array(), sections: new Uint8Array(), description: '' },
      devices: [],
      backgroundSnapshot: false,
      complete: false,
      isPageSizeAssumed: true,
      warnings: [`${damage.message} The memory before it is whole; no device state is read.`],
    });
  }

  /** @param end file position behind the stream */
  snapshot(end: number, sizeBytes: number, isPadded: boolean): Snapshot {
    const summary = this.#summary!;
    const isFollowed = end < sizeBytes && !isPadded;
    const behind = isFollowed ? [`${sizeBytes - end} bytes follow the stream, from byte ${end} on.`] : [];
    return this.#opened({ ...summary, warnings: [...summary.warnings, ...behind] });
  }

  #opened(read: StreamSummary): Snapshot {
    const setup = this.#setup!;
    const elsewhere = elsewhereBlocks(this.#configuration!, setup, this.soFar.counts);
    const leftOut = Array.from(elsewhere, (block) => elsewhereText(setup.blocks[block].name));
    const summary = { ...read, warnings: [...read.warnings, ...leftOut] };
    if (summary.isPageSizeAssumed) {
      this.#checkPageSize();
    }
    if (this.isMapped) {
      return new MappedRamSnapshot(this.#readAt, this.#configuration!, setup, summary, this.#bitmaps, elsewhere);
    }
    return new StreamSnapshot(
      this.#readAt,
      this.#configuration!,
      setup,
      summary,
      this.#records,
      this.#deltas,
      this.#budget.usedBytes,
      elsewhere,
    );
  }
}
