// A mapped-ram file as random access: every page has its place, so opening reads the headers and the bitmaps, 32 KiB for
// each GiB of guest memory, and nothing else (MR-30).

import { type FileOffset, fileOffset, type PageIndex } from '../../memory/units.js';
import { refuseElsewhere } from '../elsewhere.js';
import { invalid } from '../invalid.js';
import { checkPageRange, type PageCounts, PageKind, type ReadAt, type Snapshot } from '../snapshot.js';
import type { StreamConfiguration } from '../stream/configuration.js';
import type { RamSetup, ReadRamBlock, StreamSummary } from '../stream/stream-handler.js';
import { forEachUnplugged, memoryDevices, type PluggedBlocks, pluggedOfBlocks } from '../virtio/unplugged.js';
import { readFingerprint } from './fingerprint.js';
import type { MappedRamLayout } from './layout.js';
import { PageBitmap } from './page-bitmap.js';

/** Bytes of one read where pages are only looked at. */
const READ_BYTES = 1024 * 1024;

/** How much of a block, and of all, is looked at for pages that no bitmap knows of. Low memory is never empty for long. */
const PROBE_BYTES = { block: 64 * 1024 * 1024, all: 256 * 1024 * 1024 } as const;

/** Consecutive pages of a kind: their places lie in a row in the file. */
export interface PageRun {
  readonly firstPage: PageIndex;
  readonly pageCount: number;
  readonly offset: FileOffset;
}

/** What the file says of the pages of one block. */
export class MappedRamBlockIndex {
  readonly pageCount: number;
  readonly layout: MappedRamLayout;
  readonly bitmap: PageBitmap;
  /** Pages from here on have no bit: 0 for a block that was left out, else the page count. */
  readonly mappedPages: number;
  readonly presentPages: number;

  /** Reads the bitmap. */
  constructor(readAt: ReadAt, { name, usedLength, mapped }: ReadRamBlock, pageSize: number) {
    this.layout = mapped!;
    this.pageCount = usedLength / pageSize;
    const { bitmapBytes, bitmapOffset } = this.layout;
    this.mappedPages = bitmapBytes === 0 ? 0 : this.pageCount;
    const bytes = new Uint8Array(bitmapBytes);
    if (bitmapBytes > 0) {
      readAt(bitmapOffset, bytes);
    }
    this.bitmap = new PageBitmap(bytes, this.mappedPages);
    const stray = this.bitmap.strayBit();
    if (stray !== undefined) {
      const statement = `The bitmap of RAM block "${name}" marks page ${stray}, but the block has ${this.pageCount} pages`;
      throw invalid('MAPPED_RAM_BITMAP', statement, bitmapOffset + Math.floor(stray / 8), { value: stray });
    }
    this.presentPages = this.bitmap.count(0, this.mappedPages);
  }

  get counts(): PageCounts {
    return { presentPages: this.presentPages, zeroPages: 0, absentPages: this.pageCount - this.presentPages };
  }
}

/** An opened mapped-ram file. */
export class MappedRamSnapshot implements Snapshot {
  readonly configuration: StreamConfiguration;
  readonly setup: RamSetup;
  readonly summary: StreamSummary;
  readonly elsewhere: ReadonlySet<number>;
  readonly #readAt: ReadAt;
  readonly #indexes: readonly MappedRamBlockIndex[];
  #scratch: Uint8Array = new Uint8Array(0);
  /** Of each block that is the region of a memory device; looked for when first asked. */
  #plugged: readonly (PluggedBlocks | undefined)[] | undefined;

  /** @throws RamferryError `invalid`, if pages are stored that no bitmap knows of */
  constructor(
    readAt: ReadAt,
    configuration: StreamConfiguration,
    setup: RamSetup,
    summary: StreamSummary,
    indexes: readonly MappedRamBlockIndex[],
    elsewhere: ReadonlySet<number>,
  ) {
    this.#readAt = readAt;
    this.configuration = configuration;
    this.setup = setup;
    this.summary = summary;
    this.#indexes = indexes;
    this.elsewhere = elsewhere;
    this.#refuseMissingBitmaps();
  }

  /** What ties the file to its digest sidecar, if one was made with it. */
  get fingerprint(): string | undefined {
    return readFingerprint(this.#indexes[0]?.layout, this.#readAt);
  }

  get indexBytes(): number {
    return this.#indexes.reduce((sum, { layout }) => sum + layout.bitmapBytes, 0);
  }

  counts(block: number): PageCounts {
    return this.#indexes[block].counts;
  }

  cells(block: number, pagesPerCell: number): PageCounts[] {
    const { bitmap, pageCount, mappedPages } = this.#indexes[block];
    return Array.from({ length: Math.ceil(pageCount / pagesPerCell) }, (_, cell) => {
      const first = cell * pagesPerCell;
      const end = Math.min(first + pagesPerCell, pageCount);
      const presentPages = bitmap.count(first, Math.min(end, mappedPages));
      return { presentPages, zeroPages: 0, absentPages: end - first - presentPages };
    });
  }

  kindOf(block: number, page: PageIndex): PageKind {
    return this.#indexes[block].bitmap.has(page) ? PageKind.present : PageKind.absent;
  }

  nextPresent(block: number, from: PageIndex, end = this.#indexes[block].pageCount as PageIndex): PageIndex {
    const { bitmap, mappedPages } = this.#indexes[block];
    const last = Math.min(end, mappedPages);
    const page = bitmap.nextSet(from, last);
    return page < last ? (page as PageIndex) : end;
  }

  presentBitmap(block: number, target: Uint8Array): void {
    target.set(this.#indexes[block].bitmap.bytes.subarray(0, target.length));
  }

  /** What a memory device had not plugged. Zero pages are absent here as well, so the bitmap alone does not tell. */
  forEachDiscarded(block: number, visit: (firstPage: PageIndex, pageCount: number) => void): void {
    const { targetPageSize: pageSize } = this.setup;
    this.#plugged ??= pluggedOfBlocks(this.setup, memoryDevices(this.summary), (index, offset, length) => {
      const { bitmap, mappedPages } = this.#indexes[index];
      const end = Math.min((offset + length) / pageSize, mappedPages);
      return bitmap.nextSet(offset / pageSize, end) >= end;
    });
    const plugged = this.#plugged[block];
    if (plugged !== undefined) {
      forEachUnplugged(plugged, (offset, length) => visit((offset / pageSize) as PageIndex, length / pageSize));
    }
  }

  /** The first run of present pages in [from, end) of a block; undefined if there is none. */
  presentRun(block: number, from: PageIndex, end = this.#indexes[block].pageCount): PageRun | undefined {
    const { bitmap, mappedPages } = this.#indexes[block];
    const last = Math.min(end, mappedPages);
    const firstPage = bitmap.nextSet(from, last);
    return firstPage >= last ? undefined : this.#run(block, firstPage, bitmap.nextClear(firstPage, last));
  }

  /** The first run of absent pages that have a place in the file, at or after `from`; undefined if there is none. */
  absentRun(block: number, from: PageIndex): PageRun | undefined {
    const { bitmap, mappedPages } = this.#indexes[block];
    const firstPage = bitmap.nextClear(from, mappedPages);
    return firstPage >= mappedPages ? undefined : this.#run(block, firstPage, bitmap.nextSet(firstPage, mappedPages));
  }

  #run(block: number, firstPage: number, end: number): PageRun {
    // MR-1
    const offset = fileOffset(this.#indexes[block].layout.pagesOffset + firstPage * this.setup.targetPageSize);
    return { firstPage: firstPage as PageIndex, pageCount: end - firstPage, offset };
  }

  readPages(block: number, firstPage: PageIndex, pageCount: number, target: Uint8Array): void {
    checkPageRange(this.setup, block, firstPage, pageCount, target.length);
    refuseElsewhere(this, [block]);
    const { targetPageSize: pageSize } = this.setup;
    const end = firstPage + pageCount;
    const part = (first: number, behind: number): Uint8Array =>
      target.subarray((first - firstPage) * pageSize, (behind - firstPage) * pageSize);
    for (let page: number = firstPage; page < end; ) {
      const run = this.presentRun(block, page as PageIndex, end);
      // MR-16: absent pages become zero, also where the target holds something, or the file something stale.
      part(page, run?.firstPage ?? end).fill(0);
      if (run === undefined) {
        return;
      }
      page = run.firstPage + run.pageCount;
      this.#readAt(run.offset, part(run.firstPage, page));
    }
  }

  stalePages(block: number, firstPage: PageIndex, pageCount: number): number {
    const { bitmap, mappedPages } = this.#indexes[block];
    const end = Math.min(firstPage + pageCount, mappedPages);
    let stale = 0;
    for (let page: number = firstPage; page < end; ) {
      const gap = bitmap.nextClear(page, end);
      const gapEnd = bitmap.nextSet(gap, end);
      this.#forStored(block, gap, gapEnd, () => {
        stale += 1;
      });
      page = gapEnd;
    }
    return stale;
  }

  /** Calls `visit` with each page in [from, end) whose bytes in the file are not all zero. */
  #forStored(block: number, from: number, end: number, visit: (page: number) => void): void {
    const { targetPageSize: pageSize } = this.setup;
    const { pagesOffset } = this.#indexes[block].layout;
    if (this.#scratch.length === 0) {
      this.#scratch = new Uint8Array(READ_BYTES);
    }
    for (let page = from; page < end; ) {
      const pages = Math.min(end - page, READ_BYTES / pageSize);
      this.#readAt(pagesOffset + page * pageSize, this.#scratch.subarray(0, pages * pageSize));
      for (let index = 0; index < pages; index += 1) {
        if (!isZero(this.#scratch, index * pageSize, pageSize)) {
          visit(page + index);
        }
      }
      page += pages;
    }
  }

  /**
   * QEMU 9 and 10 write such files with the capabilities background-snapshot and mapped-ram together: pages, device
   * state, but the step that writes the bitmaps belongs to RAM's END, which is not there. QEMU loads them as zero.
   */
  #refuseMissingBitmaps(): void {
    if (!this.summary.backgroundSnapshot || this.#indexes.some(({ presentPages }) => presentPages > 0)) {
      return;
    }
    const { blocks, targetPageSize: pageSize } = this.setup;
    let left: number = PROBE_BYTES.all;
    this.#indexes.forEach(({ layout, mappedPages }, block) => {
      const pages = Math.min(mappedPages, Math.floor(Math.min(left, PROBE_BYTES.block) / pageSize));
      left -= pages * pageSize;
      this.#forStored(block, 0, pages, (page) => {
        const statement =
          `No page is marked as present, but RAM block "${blocks[block].name}" has bytes in page ${page}, ` +
          'and RAM has no END section';
        const hint =
          'QEMU writes this with background-snapshot and mapped-ram together, and loads it as zero memory: save with one of them.';
        throw invalid('MAPPED_RAM_NO_BITMAPS', statement, layout.pagesOffset + page * pageSize, { value: page, hint });
      });
    });
  }
}

/** Whether `length` bytes from `at` on are zero; both multiples of 4. */
const isZero = (bytes: Uint8Array, at: number, length: number): boolean => {
  const words = new Int32Array(bytes.buffer, bytes.byteOffset + at, length / 4);
  for (let index = 0; index < words.length; index += 1) {
    if (words[index] !== 0) {
      return false;
    }
  }
  return true;
};
