// A mapped-ram file as the target of a migration: the pages of a stream go to their fixed places, so that the file is
// never larger than the guest's RAM, however busy the guest is meanwhile.
//
//   stream        head page 7 │ head page 8 │ head page 9 │ head zero 4 │ …
//                        └─────────┬┴─────────────┘            │
//   run of neighbours        7  8  9, up to 1 MiB              │
//                                  │ one write                 │ FILE bit cleared; a hole, if it was set
//   file                ···│4│···│7│8│9│···  ◀─────────────────┘
//
// One thread does everything in the order of the stream, so of two versions of a page the later one stays (MR-11).

import type { PositionedFile } from '../channel/positioned-file.js';
import { invalid } from '../format/invalid.js';
import { writeFingerprint } from '../format/mapped-ram/fingerprint.js';
import { type MappedRamLayout, mappedRamStart } from '../format/mapped-ram/layout.js';
import { DIGEST_PAGE_BYTES, fingerprintOf, RamDigest } from '../format/ram-digest.js';
import type { StreamConfiguration } from '../format/stream/configuration.js';
import { Capability, ElementType } from '../format/stream/constants.js';
import type { DeviceTail } from '../format/stream/device-tail.js';
import type { RamSetup, ReadRamBlock } from '../format/stream/stream-handler.js';
import { ramBodyEnd, ramPart, streamEnd, streamHeader } from '../format/stream/write.js';
import { decodeXbzrle } from '../format/stream/xbzrle.js';
import { RamferryError } from '../memory/errors.js';
import { FileBitmap } from '../memory/file-bitmap.js';
import { Segment } from '../memory/segment.js';
import { fileOffset } from '../memory/units.js';
import type { DigestingTarget, DigestOption, PageCounts, ReceiveArea } from './target.js';

/** The most that one read or write gains from. */
const RUN_BYTES = 2 ** 20;

/** A read of a MiB, and what the reader left of the one before. */
const AREA_BYTES = 2 * RUN_BYTES;

/**
 * A source that announces more is refused before its bitmaps are reserved: 512 MiB of them belong to this. The largest
 * guests that exist have a quarter of it, and no common file system a larger file.
 */
const RAM_LIMIT_BYTES = 2 ** 44;

/** A block with its place in the file. */
interface PlacedBlock extends MappedRamLayout {
  readonly file: FileBitmap;
}

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

  // The run: content of pages that follow each other, in the file from #runPosition on.
  readonly #run = Segment.create({ ramBytes: RUN_BYTES });
  #runBytes = 0;
  #runPosition = 0;
  /** Block of the run. */
  #runBlock = 0;

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

  /** Where the file ends so far. */
  get end(): number {
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
    const capabilities = [...configuration.capabilities, Capability.MAPPED_RAM];
    this.#append(streamHeader({ ...configuration, capabilities }));
  }

  ramSetup({ sectionId, targetPageSize, totalBytes, blocks }: RamSetup): void {
    if (totalBytes > RAM_LIMIT_BYTES) {
      throw invalid(
        'MEMORY_LIMIT',
        `The guest has ${totalBytes} bytes of RAM, a mapped-ram file here ${RAM_LIMIT_BYTES} at most`,
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
    this.#placed = layouts.map((layout, index) => ({
      ...layout,
      file: new FileBitmap(blocks[index]!.usedLength / targetPageSize),
    }));
    if (this.#digests && targetPageSize % DIGEST_PAGE_BYTES === 0) {
      this.#digest = new RamDigest(blocks);
    }
  }

  zeroPage({ index }: ReadRamBlock, page: number): void {
    const { file, pagesOffset } = this.#placed[index]!;
    if (file.clear(page, 1) > 0) {
      // The run may hold the page, and would fill the hole.
      this.#writeRun();
      this.#file.punchHole(pagesOffset + page * this.#pageSize, this.#pageSize);
      this.#digest?.clear(index, page * this.#pageSize, this.#pageSize);
    }
    this.pages.zero += 1;
  }

  page({ index }: ReadRamBlock, page: number, bytes: Uint8Array, at: number): void {
    this.#place(index, page).set(bytes.subarray(at, at + this.#pageSize));
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
      // Written: a run that held the page is over, since this one does not follow it.
      this.#file.read(content, pagesOffset + page * this.#pageSize);
    } else {
      // Not from the file: what it holds of a page that became zero is no longer the page.
      content.fill(0);
    }
    decodeXbzrle(bytes, at, length, content, offset);
    this.pages.xbzrle += 1;
  }

  async finish(): Promise<void> {
    this.#writeRun();
    this.#file.barrier();
  }

  /** Writes the bitmaps, which complete the pages (MR-13), and then everything that follows RAM. */
  writeDevices(tail: DeviceTail): void {
    const { early, sections, description } = tail;
    for (const { bitmapOffset, file } of this.#placed) {
      this.#file.write(file.bytes, bitmapOffset);
    }
    if (this.#digest !== undefined) {
      const fingerprint = fingerprintOf(this.#digest, tail);
      const write = (bytes: Uint8Array, position: number): void => this.#file.write(bytes, position);
      this.#fingerprint = writeFingerprint(this.#placed[0], fingerprint, write) ? fingerprint : undefined;
    }
    this.#append(early);
    this.#append(ramPart(ElementType.SECTION_END, this.#ramSectionId));
    this.#append(ramBodyEnd(this.#ramSectionId));
    this.#append(sections);
    this.#append(streamEnd(description));
  }

  /** Room in the run for a page that will be written. */
  #place(index: number, page: number): Uint8Array {
    const { file, pagesOffset } = this.#placed[index]!;
    const position = pagesOffset + page * this.#pageSize;
    if (position !== this.#runPosition + this.#runBytes || this.#runBytes === RUN_BYTES) {
      this.#writeRun();
      this.#runPosition = position;
      this.#runBlock = index;
    }
    file.set(page, 1);
    this.#runBytes += this.#pageSize;
    return this.#run.bytes.subarray(this.#runBytes - this.#pageSize, this.#runBytes);
  }

  #writeRun(): void {
    if (this.#runBytes > 0) {
      const { pagesOffset } = this.#placed[this.#runBlock]!;
      // While it is in the cache: the run has just been filled, and is about to be copied into the file.
      this.#digest?.setInSegment(this.#runBlock, this.#runPosition - pagesOffset, this.#run, 0, this.#runBytes);
      this.#file.writePages(this.#run.bytes, 0, this.#runBytes, this.#runPosition);
      this.#file.barrier();
      this.#runPosition += this.#runBytes;
      this.#runBytes = 0;
    }
  }

  #append(bytes: Uint8Array): void {
    this.#file.write(bytes, this.#end);
    this.#end += bytes.length;
  }
}
