// A mapped-ram file as a sink: every page goes to its one place in the file, however often it is sent, so that a guest
// can be saved while it runs into a file that never becomes larger than its RAM (spec/algorithms.md section 5).
//
//   batch ──▶ runs of neighbours ──▶ zero? ── no ──▶ one positioned write, straight from guest memory; FILE bits set
//                                      └── yes ──▶ FILE bits cleared; a hole, if older content was there
//
//   first scan │ … │ last scan │ barrier, bitmaps, END, device state, description │ on disk, under its name
//              └─ barrier between any two scans

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { PositionedFile } from '../channel/positioned-file.js';
import { writeFingerprint } from '../format/mapped-ram/fingerprint.js';
import { type MappedRamLayout, mappedRamStart } from '../format/mapped-ram/layout.js';
import { fingerprintOf, RamDigest } from '../format/ram-digest.js';
import { Capability, ElementType } from '../format/stream/constants.js';
import type { DeviceTail } from '../format/stream/device-tail.js';
import { ramBodyEnd, ramPart, streamEnd, streamHeader } from '../format/stream/write.js';
import { RamferryError } from '../memory/errors.js';
import { FileBitmap } from '../memory/file-bitmap.js';
import type { Extent, RamBlock } from '../memory/ram-block.js';
import type { Segment } from '../memory/segment.js';
import { fileOffset } from '../memory/units.js';
import type { SourceGuest } from './guest.js';
import type { PageBatch, PageSink } from './page-sink.js';
import type { Trace } from './trace.js';

/** The largest write: 1 MiB, beyond which nothing is gained (spec/node-performance.md section 4). */
const RUN_PAGES = 256;

/** Result slot of the segments that this thread works in. */
const SLOT = 0;

/** A block with its place in the file. */
interface PlacedBlock extends MappedRamLayout {
  /** Position in the digest. */
  readonly index: number;
  readonly file: FileBitmap;
}

export interface MappedRamSinkOptions {
  /** Make a digest of RAM on the way. Default false. */
  readonly digests?: boolean;
  readonly trace?: Trace;
}

export class MappedRamSink implements PageSink {
  queued = 0;
  readonly ready = true;
  readonly movesGuest = false;
  onConfirmed = (): void => {};

  readonly #file: PositionedFile;
  readonly #trace: Trace;
  readonly #placed = new Map<RamBlock, PlacedBlock>();
  readonly #digests: boolean;
  #digest: RamDigest | undefined;
  #fingerprint: string | undefined;
  #ramSectionId = 0;
  #earlySections: Uint8Array | undefined;
  /** Of a guest whose pages are brought into memory: so many extents stay there besides the last one. */
  #extentsKept = Number.POSITIVE_INFINITY;
  #extent: Extent | undefined;
  /** Extents since the last barrier. */
  #extents = 0;
  /** Where the stream goes on. */
  #end = 0;
  /** Of the last page that was given. Within one scan positions only rise. */
  #lastPosition = 0;
  #aborted: Error | undefined;

  constructor(file: PositionedFile, options: MappedRamSinkOptions = {}) {
    this.#file = file;
    this.#digests = options.digests ?? false;
    this.#trace = options.trace ?? {};
  }

  /** Of what is in the file; from `start` on, if asked for. */
  get digest(): RamDigest | undefined {
    return this.#digest;
  }

  /** What ties the file to its digest, once the devices are written; undefined if the file has no room for it. */
  get fingerprint(): string | undefined {
    return this.#fingerprint;
  }

  get transferred(): number {
    return this.queued - this.#file.pendingBytes;
  }

  async whenReady(): Promise<void> {
    this.#throwIfAborted();
  }

  start(guest: SourceGuest): void {
    const { machine, uuid, targetPageBits, ramSectionId, blocks, earlySections, extentAt, extentsKept = 0 } = guest;
    const migratable = blocks.blocks.filter((block) => block.migratable);
    const ignored = migratable.find((block) => block.ignored);
    if (ignored !== undefined) {
      // MR-22: QEMU 10 cannot write such a file either, nor read one without space for the block.
      throw new RamferryError(
        'usage',
        'MAPPED_RAM_IGNORED_BLOCK',
        `RAM block "${ignored.name}" is left out of migrations, which a mapped-ram file has no room for.`,
        { value: ignored.name, hint: 'Save as a stream, or without x-ignore-shared.' },
      );
    }
    this.#ramSectionId = ramSectionId;
    this.#earlySections = earlySections;
    if (extentAt !== undefined) {
      this.#extentsKept = extentsKept;
    }
    const header = streamHeader({
      machine,
      uuid,
      targetPageBits,
      capabilities: [Capability.MAPPED_RAM],
    });
    this.#end = this.#file.start;
    this.#append(header);
    this.#trace.savevm_section_start?.('ram', ramSectionId);
    const { pieces, layouts, end } = mappedRamStart(fileOffset(this.#end), ramSectionId, migratable, GUEST_PAGE_SIZE);
    for (const { position, bytes } of pieces) {
      this.#write(bytes, position);
    }
    this.#end = end;
    this.#trace.savevm_section_end?.('ram', ramSectionId, 0);
    for (const [index, layout] of layouts.entries()) {
      const block = migratable[index]!;
      this.#placed.set(block, { ...layout, index, file: new FileBitmap(block.usedPages) });
    }
    if (this.#digests) {
      this.#digest = new RamDigest(migratable);
    }
  }

  batchLimit(_extent: Extent): number {
    return RUN_PAGES;
  }

  // A PART would hold nothing (MR-14), and one for each of any number of iterations would make the file grow (MR-7).
  beginIteration(): void {}
  endIteration(): void {}

  writePages({ block, extent, pages, count }: PageBatch): number {
    this.#throwIfAborted();
    const placed = this.#placed.get(block)!;
    if (placed.pagesOffset + pages[0]! * GUEST_PAGE_SIZE <= this.#lastPosition) {
      // A new scan begins: of a page that is sent again, the older content must not arrive last (MR-11).
      this.#file.barrier();
    }
    this.#lastPosition = placed.pagesOffset + pages[count - 1]! * GUEST_PAGE_SIZE;
    let zeroPages = 0;
    for (let index = 0; index < count; ) {
      const first = index;
      do {
        index += 1;
      } while (index < count && pages[index] === pages[index - 1]! + 1);
      zeroPages += this.#writeNeighbours(placed, extent, pages[first]!, index - first);
    }
    this.#extents += extent === this.#extent ? 0 : 1;
    this.#extent = extent;
    if (this.#extents > this.#extentsKept) {
      // The next extent takes the place of the first of these.
      this.#file.barrier();
      this.#extents = 0;
    }
    return zeroPages;
  }

  /** Neighbouring pages: each run of pages with content is exactly one write (MR-27). */
  #writeNeighbours(placed: PlacedBlock, extent: Extent, page: number, count: number): number {
    const { segment } = extent;
    const address = extent.address + (page - extent.firstPage) * GUEST_PAGE_SIZE;
    const result = segment.resultSlot(SLOT);
    const zeroPages = segment.kernels.scanZero(address, count, result);
    if (zeroPages === 0 || zeroPages === count) {
      this.#writeRun(placed, segment, address, page, count, zeroPages > 0);
      return zeroPages;
    }
    const isZero = (index: number): boolean => (segment.words[(result >>> 2) + (index >>> 5)]! & (1 << index)) !== 0;
    for (let from = 0; from < count; ) {
      const zero = isZero(from);
      let to = from + 1;
      while (to < count && isZero(to) === zero) {
        to += 1;
      }
      this.#writeRun(placed, segment, address + from * GUEST_PAGE_SIZE, page + from, to - from, zero);
      from = to;
    }
    return zeroPages;
  }

  #writeRun(
    { file, pagesOffset, index }: PlacedBlock,
    segment: Segment,
    address: number,
    page: number,
    count: number,
    isZero: boolean,
  ): void {
    const offset = page * GUEST_PAGE_SIZE;
    const position = pagesOffset + offset;
    const length = count * GUEST_PAGE_SIZE;
    if (!isZero) {
      // The guest may store into a page between this and the write, or before a writer thread comes to it. Then the page is
      // dirty, and comes again.
      this.#digest?.setInSegment(index, offset, segment, address, length);
      this.#file.writePages(segment.bytes, address, length, position);
      file.set(page, count);
      this.queued += length;
    } else if (file.clear(page, count) > 0) {
      this.#punch(pagesOffset, index, page, count);
    }
  }

  forget(block: RamBlock, firstPage: number, pageCount: number): void {
    const { file, pagesOffset, index } = this.#placed.get(block)!;
    if (file.clear(firstPage, pageCount) > 0) {
      // A write that is under way would fill the hole.
      this.#file.barrier();
      this.#punch(pagesOffset, index, firstPage, pageCount);
    }
  }

  /** The file holds these pages no longer. */
  #punch(pagesOffset: number, index: number, firstPage: number, pageCount: number): void {
    const offset = firstPage * GUEST_PAGE_SIZE;
    const length = pageCount * GUEST_PAGE_SIZE;
    this.#file.punchHole(pagesOffset + offset, length);
    this.#digest?.clear(index, offset, length);
  }

  async flush(): Promise<void> {
    this.#throwIfAborted();
    this.#file.barrier();
  }

  writeDevices(tail: DeviceTail): void {
    this.#throwIfAborted();
    this.#file.barrier();
    const placed = [...this.#placed.values()];
    for (const { bitmapOffset, file } of placed) {
      this.#file.writeOnce(file.bytes, bitmapOffset);
      this.queued += file.bytes.length;
    }
    if (this.#digest !== undefined) {
      const fingerprint = fingerprintOf(this.#digest, tail);
      const write = (bytes: Uint8Array, position: number): void => this.#write(bytes, position);
      this.#fingerprint = writeFingerprint(placed[0], fingerprint, write) ? fingerprint : undefined;
    }
    // No page can follow its bitmap any more (MR-13).
    this.#placed.clear();
    if (this.#earlySections !== undefined) {
      this.#append(this.#earlySections);
    }
    this.#append(ramPart(ElementType.SECTION_END, this.#ramSectionId));
    this.#append(ramBodyEnd(this.#ramSectionId));
    this.#append(tail.sections);
    this.#append(streamEnd(tail.description));
  }

  async finish(): Promise<void> {
    this.#throwIfAborted();
    await this.#file.commit(() => this.onConfirmed());
  }

  abort(reason: Error): void {
    this.#aborted ??= reason;
    this.#file.abort();
  }

  #append(bytes: Uint8Array): void {
    this.#write(bytes, this.#end);
    this.#end += bytes.length;
  }

  #write(bytes: Uint8Array, position: number): void {
    this.#file.write(bytes, position);
    this.queued += bytes.length;
  }

  #throwIfAborted(): void {
    if (this.#aborted !== undefined) {
      throw this.#aborted;
    }
  }
}
