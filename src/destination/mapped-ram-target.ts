// A mapped-ram file as the target of a migration: the pages of a stream go to their fixed places, so that the file is
// never larger than the guest's RAM, however busy the guest is meanwhile.
//
//   stream        head page 7 │ head page 8 │ head page 9 │ head zero 4 │ …
//                        └─────────┬┴─────────────┘            │
//   run of neighbours        7  8  9, up to 1 MiB              │
//                                  │ one write                 │ FILE bit cleared; a hole, if it was set
//   file                ···│4│···│7│8│9│···  ◀─────────────────┘
//
// Runs wait in a window until the file's writer has taken them, and the next ones are filled meanwhile. Which pages are in it
// is known: before anything else happens to one of them the window is emptied, so that of two versions of a page the later
// one stays (MR-11).

import type { PositionedFile } from '../channel/positioned-file.js';
import { invalid } from '../format/invalid.js';
import { writeFingerprint } from '../format/mapped-ram/fingerprint.js';
import { type MappedRamLayout, mappedRamStart } from '../format/mapped-ram/layout.js';
import { DIGEST_PAGE_BYTES, fingerprintOf, RamDigest } from '../format/ram-digest.js';
import type { StreamConfiguration } from '../format/stream/configuration.js';
import { Capability, ElementType } from '../format/stream/constants.js';
import type { DeviceTail } from '../format/stream/device-tail.js';
import type { RamSetup, ReadRamBlock } from '../format/stream/stream-handler.js';
import { oldFraming, ramBodyEnd, ramPart, streamEnd, streamHeader } from '../format/stream/write.js';
import { decodeXbzrle } from '../format/stream/xbzrle.js';
import { RamferryError } from '../memory/errors.js';
import { FileBitmap } from '../memory/file-bitmap.js';
import { Segment } from '../memory/segment.js';
import { fileOffset } from '../memory/units.js';
import type { DigestingTarget, DigestOption, PageCounts, ReceiveArea } from './target.js';

/** The most that one read or write gains from. */
const RUN_BYTES = 2 ** 20;

/** So much waits for the writer at most. With four times as much a conversion is no quicker. */
const WINDOW_BYTES = 8 * RUN_BYTES;

/** A read of a MiB, and what the reader left of the one before. */
const AREA_BYTES = 2 * RUN_BYTES;

/**
 * A source that announces more is refused before its bitmaps are reserved: 1 GiB of them belongs to this. The largest
 * guests that exist have a quarter of it, and no common file system a larger file.
 */
const RAM_LIMIT_BYTES = 2 ** 44;

/** The same in pages: a source chooses their size as well. */
const RAM_LIMIT_PAGES = 2 ** 32;

/** A block with its place in the file. */
interface PlacedBlock extends MappedRamLayout {
  readonly file: FileBitmap;
  /** Pages in the window. */
  readonly waiting: FileBitmap;
}

/** Pages that follow each other, in the window from byte `at` on. */
interface Run {
  readonly block: number;
  readonly firstPage: number;
  readonly at: number;
  bytes: number;
}

/** Looks at a byte in 64 first, since pages that only begin with zeros are many. */
const isZero = (page: Uint8Array): boolean => {
  for (let at = 0; at < page.length; at += 64) {
    if (page[at] !== 0) {
      return false;
    }
  }
  return page.every((byte) => byte === 0);
};

export class MappedRamTarget implements DigestingTarget {
  readonly pages: PageCounts = { normal: 0, zero: 0, xbzrle: 0 };
  readonly warnings: readonly string[] = [];
  readonly ready = true;
  readonly #file: PositionedFile;
  readonly #area: ReceiveArea = { bytes: new Uint8Array(AREA_BYTES), start: 0, end: AREA_BYTES };
  /** In the order of the setup record. */
  #placed: PlacedBlock[] = [];
  #ramSectionId = 0;
  #pageSize = 0;
  /** Where the stream goes on. */
  #end: number;

  readonly #window = Segment.create({ ramBytes: WINDOW_BYTES });
  /** Those in the window; the last one may grow. */
  #runs: Run[] = [];

  readonly #digests: boolean;
  #digest: RamDigest | undefined;
  #fingerprint: string | undefined;

  constructor(file: PositionedFile, { digests = false }: DigestOption = {}) {
    this.#file = file;
    this.#end = file.start;
    this.#digests = digests;
  }

  get digest(): RamDigest | undefined {
    return this.#digest;
  }

  /** What ties the file to its digest, once the devices are written; undefined if the file has no room for it. */
  get fingerprint(): string | undefined {
    return this.#fingerprint;
  }

  /** Size of the file so far. */
  get fileBytes(): number {
    return this.#end;
  }

  area(): ReceiveArea {
    return this.#area;
  }

  // Nothing of the area is needed once the reader is done with it, and writes are over when they return.
  consumed(): void {}
  async whenReady(): Promise<void> {}

  configuration(configuration: StreamConfiguration): void {
    if (configuration.capabilities.includes(Capability.IGNORE_SHARED)) {
      // MR-22
      throw new RamferryError(
        'invalid',
        'MAPPED_RAM_IGNORED_BLOCK',
        'The source leaves out shared memory (x-ignore-shared), which a mapped-ram file has no room for.',
        { value: Capability.IGNORE_SHARED, hint: 'Receive it as a stream.' },
      );
    }
    if (configuration.isMissing) {
      throw oldFraming('A mapped-ram file');
    }
    const capabilities = [...configuration.capabilities, Capability.MAPPED_RAM];
    this.#append(streamHeader({ ...configuration, capabilities }));
  }

  ramSetup({ sectionId, targetPageSize, totalBytes, blocks }: RamSetup): void {
    const limit = Math.min(RAM_LIMIT_BYTES, RAM_LIMIT_PAGES * targetPageSize);
    if (totalBytes > limit) {
      throw invalid(
        'MEMORY_LIMIT',
        `The guest has ${totalBytes} bytes of RAM, a mapped-ram file here ${limit} at most`,
        blocks[0]!.lengthOffset,
        { value: totalBytes },
      );
    }
    this.#ramSectionId = sectionId;
    this.#pageSize = targetPageSize;
    const { pieces, layouts, end } = mappedRamStart(fileOffset(this.#end), sectionId, blocks, targetPageSize);
    for (const { position, bytes } of pieces) {
      this.#file.write(bytes, position);
    }
    this.#end = end;
    this.#placed = layouts.map((layout, index) => {
      const pageCount = blocks[index]!.usedLength / targetPageSize;
      return { ...layout, file: new FileBitmap(pageCount), waiting: new FileBitmap(pageCount) };
    });
    if (this.#digests && targetPageSize % DIGEST_PAGE_BYTES === 0) {
      this.#digest = new RamDigest(blocks);
    }
  }

  zeroPage({ index }: ReadRamBlock, page: number): void {
    this.#clear(index, page);
    this.pages.zero += 1;
  }

  page({ index }: ReadRamBlock, page: number, bytes: Uint8Array, at: number): void {
    const content = bytes.subarray(at, at + this.#pageSize);
    // Not every source looks.
    if (isZero(content)) {
      this.#clear(index, page);
    } else {
      this.#place(index, page).set(content);
    }
    this.pages.normal += 1;
  }

  xbzrlePage(
    { index }: ReadRamBlock,
    page: number,
    bytes: Uint8Array,
    at: number,
    length: number,
    offset: number,
  ): void {
    const { file, pagesOffset } = this.#placed[index]!;
    const isHere = file.has(page);
    const content = this.#place(index, page);
    if (isHere) {
      this.#file.read(content, pagesOffset + page * this.#pageSize);
    } else {
      // Not from the file: what it holds of a page that became zero is no longer the page.
      content.fill(0);
    }
    decodeXbzrle(bytes, at, length, content, offset);
    this.pages.xbzrle += 1;
  }

  async finish(): Promise<void> {
    this.#empty();
  }

  /** Writes the bitmaps, which complete the pages (MR-13), and then everything that follows RAM. */
  writeDevices(tail: DeviceTail): void {
    const { early, iterable, sections, description, lacksFooters } = tail;
    if (lacksFooters) {
      throw oldFraming('A mapped-ram file');
    }
    for (const { bitmapOffset, file } of this.#placed) {
      this.#file.writeOnce(file.bytes, bitmapOffset);
    }
    if (this.#digest !== undefined) {
      const fingerprint = fingerprintOf(this.#digest, tail);
      const write = (bytes: Uint8Array, position: number): void => this.#file.write(bytes, position);
      this.#fingerprint = writeFingerprint(this.#placed[0], fingerprint, write) ? fingerprint : undefined;
    }
    this.#append(early);
    if (iterable !== undefined) {
      this.#append(iterable);
    }
    this.#append(ramPart(ElementType.SECTION_END, this.#ramSectionId));
    this.#append(ramBodyEnd(this.#ramSectionId));
    this.#append(sections);
    this.#append(streamEnd(description));
  }

  #clear(index: number, page: number): void {
    const { file, waiting, pagesOffset } = this.#placed[index]!;
    if (file.clear(page, 1) > 0) {
      if (waiting.has(page)) {
        // It would fill the hole.
        this.#empty();
      }
      this.#file.punchHole(pagesOffset + page * this.#pageSize, this.#pageSize);
      this.#digest?.clear(index, page * this.#pageSize, this.#pageSize);
    }
  }

  /** Room in the window for a page that will be written; what was there of it is in the file. */
  #place(index: number, page: number): Uint8Array {
    const { file, waiting } = this.#placed[index]!;
    if (waiting.has(page)) {
      this.#empty();
    }
    const run = this.#runFor(index, page);
    run.bytes += this.#pageSize;
    file.set(page, 1);
    waiting.set(page, 1);
    const end = run.at + run.bytes;
    return this.#window.bytes.subarray(end - this.#pageSize, end);
  }

  /** The run that the page goes to the end of. */
  #runFor(block: number, page: number): Run {
    let at = 0;
    const last = this.#runs.at(-1);
    if (last !== undefined) {
      at = last.at + last.bytes;
      if (at === WINDOW_BYTES) {
        this.#empty();
        at = 0;
      } else if (block === last.block && page === this.#pageAfter(last) && last.bytes < RUN_BYTES) {
        return last;
      } else {
        this.#write(last);
      }
    }
    const run: Run = { block, firstPage: page, at, bytes: 0 };
    this.#runs.push(run);
    return run;
  }

  #pageAfter({ firstPage, bytes }: Run): number {
    return firstPage + bytes / this.#pageSize;
  }

  #write({ block, firstPage, at, bytes }: Run): void {
    const position = firstPage * this.#pageSize;
    // While it is in the cache: the run has just been filled, and is about to be copied into the file.
    this.#digest?.setInSegment(block, position, this.#window, at, bytes);
    this.#file.writePages(this.#window.bytes, at, bytes, this.#placed[block]!.pagesOffset + position);
  }

  /** Returns when everything in the window is in the file. */
  #empty(): void {
    const last = this.#runs.at(-1);
    if (last !== undefined) {
      this.#write(last);
      this.#file.barrier();
      for (const { block, firstPage, bytes } of this.#runs) {
        this.#placed[block]!.waiting.clear(firstPage, bytes / this.#pageSize);
      }
      this.#runs = [];
    }
  }

  #append(bytes: Uint8Array): void {
    this.#file.write(bytes, this.#end);
    this.#end += bytes.length;
  }
}
