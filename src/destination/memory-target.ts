// Guest memory as the target of a migration. Bytes are received in the staging memory of a segment, so that one call of
// a kernel scatters a whole run of page records into that segment without JavaScript seeing a page
// (spec/node-performance.md sections 0 and 9).
//
//   channel ──▶ staging of segment 1 ──▶ loadRecords ──▶ pages of segment 1
//                                   └──▶ set, page by page ──▶ pages of other segments, until the next read,
//                                                              which goes to the staging of the last page's segment
//
// A source walks memory upward, so a change of segment is rare and costs at most one buffer of single copies. One that
// hops between segments with every page gets single copies all the time: no page is copied twice in any case.

import { GUEST_PAGE_SIZE, LoadStop, ZERO_RECORD_BYTES } from '../../kernels/kernels.js';
import { be32 } from '../format/bytes.js';
import type { StreamConfiguration } from '../format/stream/configuration.js';
import { Capability } from '../format/stream/constants.js';
import { LONGEST_UNIT_BYTES } from '../format/stream/read.js';
import type { RamSetup, ReadRamBlock } from '../format/stream/stream-handler.js';
import { decodeXbzrle } from '../format/stream/xbzrle.js';
import { RamferryError } from '../memory/errors.js';
import type { GuestClaim } from '../memory/guest-claim.js';
import type { RamBlock } from '../memory/ram-block.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import { type Segment, STAGING_SLOT_BYTES } from '../memory/segment.js';
import { PopulateAhead, type Populator } from './populate-ahead.js';
import { createBlocks, matchBlocks } from './ram-geometry.js';
import type { MigrationTarget, PageCounts, ReceiveArea } from './target.js';

/** Slot of the segments' control tails that this thread works in. No source uses a segment while it is being loaded. */
const SLOT = 0;

export interface MemoryTargetOptions {
  /**
   * The memory of a guest whose geometry the source must match; blocks that a guest already ran in are marked written
   * (`RamBlock.markWritten`). Or an empty list, with a memory limit.
   */
  readonly blocks: RamBlockList;
  /** Create what the source announces, up to this many bytes in all. A failed migration leaves the list as it is then. */
  readonly memoryLimit?: number;
  /** Touches pages that will probably be loaded next. */
  readonly populator?: Populator;
}

export class MemoryTarget implements MigrationTarget {
  readonly pages: PageCounts = { normal: 0, zero: 0, xbzrle: 0 };
  readonly pageSize = GUEST_PAGE_SIZE;
  readonly refusesIterable = true;
  readonly warnings: string[] = [];
  readonly ready = true;
  readonly #blocks: RamBlockList;
  readonly #memoryLimit: number | undefined;
  readonly #ahead: PopulateAhead | undefined;
  #ignoreShared = false;
  /** From the moment at which the source's blocks are known: nobody else saves or migrates a guest that is not all here. */
  #claim: GuestClaim | undefined;
  /** The blocks in the order of the setup record. */
  #announced: readonly RamBlock[] = [];
  /** Where the last page lies, and with it the next area. */
  #segment: Segment | undefined;
  /** For what comes before the first page. */
  readonly #head: ReceiveArea = {
    bytes: new Uint8Array(2 * LONGEST_UNIT_BYTES),
    start: 0,
    end: 2 * LONGEST_UNIT_BYTES,
  };

  constructor({ blocks, memoryLimit, populator }: MemoryTargetOptions) {
    this.#blocks = blocks;
    this.#memoryLimit = memoryLimit;
    this.#ahead = populator && new PopulateAhead(populator);
  }

  area(): ReceiveArea {
    const segment = this.#segment;
    if (segment === undefined) {
      return this.#head;
    }
    const start = segment.stagingSlot(SLOT);
    return { bytes: segment.bytes, start, end: start + STAGING_SLOT_BYTES };
  }

  // Nothing is held back: pages are in place when the reader has consumed them.
  consumed(): void {}
  async whenReady(): Promise<void> {}
  async finish(): Promise<void> {}

  release(): void {
    this.#claim?.release();
  }

  configuration({ capabilities }: StreamConfiguration): void {
    this.#ignoreShared = capabilities.includes(Capability.IGNORE_SHARED);
  }

  ramSetup(setup: RamSetup): void {
    if (setup.targetPageSize !== GUEST_PAGE_SIZE) {
      throw new RamferryError(
        'invalid',
        'TARGET_PAGE_SIZE',
        `The guest has pages of ${setup.targetPageSize} bytes; memory can be loaded only in pages of ${GUEST_PAGE_SIZE}.`,
        { value: setup.targetPageSize },
      );
    }
    if (this.#ignoreShared !== this.#blocks.blocks.some((block) => block.ignored)) {
      throw new RamferryError(
        'invalid',
        'CAPABILITY_MISMATCH',
        this.#ignoreShared
          ? 'The source leaves out shared memory (x-ignore-shared), but none is shared with this side.'
          : 'Memory here is shared with the source, but the source does not leave it out (x-ignore-shared).',
        { value: Capability.IGNORE_SHARED },
      );
    }
    const claim = this.#blocks.claim('incoming');
    this.#claim = claim;
    this.#announced = this.#blocks.changeAs(claim, () =>
      this.#memoryLimit === undefined
        ? matchBlocks(this.#blocks, setup)
        : createBlocks(this.#blocks, setup, this.#memoryLimit),
    );
    const missing = this.#blocks.blocks.filter((block) => block.migratable && !this.#announced.includes(block));
    if (missing.length > 0) {
      const names = missing.map((block) => `"${block.name}"`).join(', ');
      this.warnings.push(`The source does not have RAM ${missing.length > 1 ? 'blocks' : 'block'} ${names}.`);
    }
    this.#segment = this.#announced[0]?.extents[0]?.segment;
  }

  /** The block here of one that the source lists. */
  protected blockOf({ index }: ReadRamBlock): RamBlock {
    return this.#announced[index]!;
  }

  records(announced: ReadRamBlock, bytes: Uint8Array, start: number, end: number): number {
    const block = this.blockOf(announced);
    const usedPages = announced.usedLength / GUEST_PAGE_SIZE;
    let at = start;
    while (block.migrated && end - at >= ZERO_RECORD_BYTES) {
      const page = be32(bytes, at) * 2 ** 20 + (be32(bytes, at + 4) >>> 12);
      if (page >= usedPages) {
        break;
      }
      const { segment, address, firstPage, pageCount } = block.extentOf(page);
      if (segment.bytes !== bytes) {
        break;
      }
      const result = segment.resultSlot(SLOT);
      const taken = segment.kernels.loadRecords(
        at,
        end - at,
        address,
        firstPage,
        Math.min(pageCount, usedPages - firstPage),
        segment.writtenBitmap + address / GUEST_PAGE_SIZE / 8,
        result,
      );
      const { words } = segment;
      const zeroPages = words[result / 4] as number;
      const normalPages = words[result / 4 + 1] as number;
      this.pages.zero += zeroPages;
      this.pages.normal += normalPages;
      this.#ahead?.loaded(
        segment,
        address + (page - firstPage) * GUEST_PAGE_SIZE,
        zeroPages + normalPages,
        normalPages,
        address + this.#populatedPages(block, page, firstPage, pageCount) * GUEST_PAGE_SIZE,
      );
      at += taken;
      if (taken === 0 || words[result / 4 + 2] !== LoadStop.outside) {
        break;
      }
    }
    return at - start;
  }

  /** How many pages of an extent may be populated ahead of `page`: none where they are discarded (RD-15). */
  #populatedPages({ discardManager }: RamBlock, page: number, firstPage: number, pageCount: number): number {
    const end = discardManager?.populatedEnd(page * GUEST_PAGE_SIZE) ?? Number.POSITIVE_INFINITY;
    return Math.min(pageCount, end / GUEST_PAGE_SIZE - firstPage);
  }

  zeroPage(announced: ReadRamBlock, page: number): void {
    const address = this.locate(announced, page);
    const { words, writtenBitmap, kernels } = this.#segment!;
    // Memory that nothing was loaded into reads as zero; filling it would only commit it.
    const wasWritten = (words[writtenBitmap / 4 + (address >>> 17)] & (1 << (address >>> 12))) !== 0;
    if (wasWritten) {
      kernels.zeroFill(address, GUEST_PAGE_SIZE);
    }
    this.pages.zero += 1;
  }

  page(announced: ReadRamBlock, page: number, bytes: Uint8Array, at: number): void {
    const address = this.locate(announced, page);
    this.#segment!.bytes.set(bytes.subarray(at, at + GUEST_PAGE_SIZE), address);
    this.#segment!.markWritten(address, GUEST_PAGE_SIZE);
    this.pages.normal += 1;
  }

  xbzrlePage(
    announced: ReadRamBlock,
    page: number,
    bytes: Uint8Array,
    at: number,
    length: number,
    offset: number,
  ): void {
    const address = this.locate(announced, page);
    decodeXbzrle(bytes, at, length, this.#segment!.bytes.subarray(address, address + GUEST_PAGE_SIZE), offset);
    this.#segment!.markWritten(address, GUEST_PAGE_SIZE);
    this.pages.xbzrle += 1;
  }

  /** Makes the page's segment the current one and returns its address there. */
  protected locate(announced: ReadRamBlock, page: number): number {
    const block = this.blockOf(announced);
    if (!block.migrated) {
      // PL-40
      throw new RamferryError(
        'invalid',
        'PAGE_OF_IGNORED_BLOCK',
        `The source sends page ${page} of RAM block "${block.name}", which is shared with this side.`,
        { value: block.name },
      );
    }
    const extent = block.extentOf(page);
    this.#segment = extent.segment;
    return extent.address + (page - extent.firstPage) * GUEST_PAGE_SIZE;
  }
}
