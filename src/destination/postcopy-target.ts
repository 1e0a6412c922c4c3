// Guest memory as the target of a migration that may switch to postcopy. Until then it is a `MemoryTarget` that also notes
// what has arrived (RECV); from then on the guest runs in it, and a page is placed once and for all (spec/algorithms.md 8.5).
//
//   before:  records ─▶ loadRecords ─▶ received bits
//   after:   records ─▶ those whose received bit is clear ─▶ MissingPages.place: content, received bit, wake
//                  └──▶ the others were stored to by the guest since: they are dropped (RC-4)

import { GUEST_PAGE_SIZE, NORMAL_RECORD_BYTES, ZERO_RECORD_BYTES } from '../../kernels/kernels.js';
import type { ArrivedPages, MissingPage, MissingPages } from '../dirty-log/missing-pages.js';
import { ZERO_PAGE } from '../dirty-log/missing-pages.js';
import { be32 } from '../format/bytes.js';
import { RecordFlag } from '../format/stream/constants.js';
import { receivedBitmapBytes } from '../format/stream/return-path.js';
import type { RamSetup, ReadRamBlock } from '../format/stream/stream-handler.js';
import { RamferryError } from '../memory/errors.js';
import type { Extent, RamBlock } from '../memory/ram-block.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import type { RamDiscardManager } from '../memory/ram-discard-manager.js';
import { MemoryTarget, type MemoryTargetOptions } from './memory-target.js';

export interface PostcopyTargetOptions extends MemoryTargetOptions {
  /** What makes guest threads wait for pages; called at the switch. */
  readonly missingPages: () => MissingPages;
}

/** Pages placed at once: a MiB, what one read brings. */
const BATCH_PAGES = 256;

export class PostcopyTarget extends MemoryTarget {
  /** Pages that came although they were there. A source that does everything right sends none (PC-5). */
  duplicates = 0;
  /** Called after pages were placed. */
  onPlaced: (block: RamBlock, pages: Int32Array, count: number) => void = () => {};
  readonly #blocks: RamBlockList;
  readonly #missingPages: () => MissingPages;
  readonly #words: Int32Array;
  #isAdvised = false;
  /** Set from the switch on. */
  #missing: MissingPages | undefined;
  readonly #frozen: RamDiscardManager[] = [];
  readonly #batch = { pages: new Int32Array(BATCH_PAGES), contents: new Int32Array(BATCH_PAGES), count: 0 };

  constructor(options: PostcopyTargetOptions) {
    super(options);
    this.#blocks = options.blocks;
    this.#missingPages = options.missingPages;
    this.#words = options.blocks.bitmaps.words;
  }

  advise(): void {
    this.#isAdvised = true;
  }

  override ramSetup(setup: RamSetup): void {
    super.ramSetup(setup);
    if (!this.#isAdvised) {
      return;
    }
    const arriving = new Set(setup.blocks.map((announced) => this.blockOf(announced)));
    for (const block of this.#migrated) {
      if (block.hostPageSize !== GUEST_PAGE_SIZE) {
        const message = `RAM block "${block.name}" has host pages of ${block.hostPageSize} bytes, in which postcopy cannot bring it`;
        throw new RamferryError('invalid', 'POSTCOPY_PAGE_SIZES', message, { value: block.hostPageSize });
      }
      if (arriving.has(block)) {
        this.#forget(block, 0, block.usedPages);
      } else {
        // The source does not have it: it stays what it is here.
        this.#blocks.bitmaps.kernels.setRange(block.bitmaps.received, 0, block.usedPages);
      }
    }
  }

  get #migrated(): readonly RamBlock[] {
    return this.#blocks.blocks.filter(({ migrated }) => migrated);
  }

  /** What there is of these bytes is stale. */
  discard(announced: ReadRamBlock, start: number, length: number): void {
    this.#forget(this.blockOf(announced), start / GUEST_PAGE_SIZE, length / GUEST_PAGE_SIZE);
  }

  #forget({ bitmaps }: RamBlock, firstPage: number, pageCount: number): void {
    this.#blocks.bitmaps.kernels.testAndClearRange(bitmaps.received, firstPage, pageCount);
  }

  /** The guest is about to run: what has not arrived is missing. `onFault` is called when there is something for `nextFault`. */
  listen(onFault: () => void): void {
    for (const { bitmaps, discardManager, usedLength } of this.#migrated) {
      // Plugging has to wait: what was missing must not become something else meanwhile (8.6).
      if (discardManager !== undefined) {
        discardManager.freeze();
        this.#frozen.push(discardManager);
      }
      // What is no memory is not sent either: nobody may wait for it (RD-6).
      discardManager?.replayDiscarded(0, usedLength, (offset, length) => {
        this.#blocks.bitmaps.kernels.setRange(bitmaps.received, offset / GUEST_PAGE_SIZE, length / GUEST_PAGE_SIZE);
      });
    }
    this.#missing = this.#missingPages();
    this.#missing.arm(onFault);
  }

  /** A page that a guest thread has begun to wait for and that has not come meanwhile. */
  nextFault(): MissingPage | undefined {
    for (;;) {
      const fault = this.#missing?.nextFault();
      if (fault === undefined || !this.isReceived(fault.block, fault.page)) {
        return fault;
      }
    }
  }

  isReceived({ bitmaps: { received } }: RamBlock, page: number): boolean {
    return (this.#words[(received >>> 2) + (page >>> 5)]! & (1 << (page & 31))) !== 0;
  }

  /** Which pages of a block have arrived, as on the wire; zero behind its last page (RC-12). */
  receivedBitmap(announced: ReadRamBlock): Uint8Array {
    const { bitmaps, usedPages } = this.blockOf(announced);
    const { buffer } = this.#blocks.bitmaps.memory;
    return new Uint8Array(buffer, bitmaps.received, receivedBitmapBytes(usedPages));
  }

  /** Guest threads that wait will wait for ever: they end. */
  abandon(): void {
    this.#missing?.abandon();
    this.#thaw();
  }

  override async finish(): Promise<void> {
    this.#missing?.finish();
    this.#thaw();
  }

  #thaw(): void {
    for (const manager of this.#frozen.splice(0)) {
      manager.thaw();
    }
  }

  override records(announced: ReadRamBlock, bytes: Uint8Array, start: number, end: number): number {
    if (this.#missing !== undefined) {
      const block = this.blockOf(announced);
      return block.migrated ? this.#place(this.#missing, block, bytes, start, end) : 0;
    }
    const taken = super.records(announced, bytes, start, end);
    if (this.#isAdvised) {
      this.#noteRecords(this.blockOf(announced), bytes, start, start + taken);
    }
    return taken;
  }

  /** Sets the received bits of whole records, run by run. Nobody else looks at them yet. */
  #noteRecords({ bitmaps: { received } }: RamBlock, bytes: Uint8Array, start: number, end: number): void {
    const { kernels } = this.#blocks.bitmaps;
    let [first, next] = [0, 0];
    for (let at = start; at < end; ) {
      const page = pageAt(bytes, at);
      if (page !== next) {
        kernels.setRange(received, first, next - first);
        first = page;
      }
      next = page + 1;
      at += flagsAt(bytes, at) === ZERO_CONTINUED ? ZERO_RECORD_BYTES : NORMAL_RECORD_BYTES;
    }
    kernels.setRange(received, first, next - first);
  }

  /** Takes whole records with CONTINUE; the rest is left to the reader, record by record. */
  #place(missing: MissingPages, block: RamBlock, bytes: Uint8Array, start: number, end: number): number {
    const { usedPages } = block;
    const batch = this.#batch;
    let extent: Extent | undefined;
    let at = start;
    for (;;) {
      const isZero = end - at >= ZERO_RECORD_BYTES && flagsAt(bytes, at) === ZERO_CONTINUED && bytes[at + 8] === 0;
      if (!isZero && !(end - at >= NORMAL_RECORD_BYTES && flagsAt(bytes, at) === PAGE_CONTINUED)) {
        break;
      }
      const page = pageAt(bytes, at);
      if (page >= usedPages) {
        break;
      }
      if (
        extent === undefined ||
        batch.count === BATCH_PAGES ||
        page < extent.firstPage ||
        page >= extent.firstPage + extent.pageCount
      ) {
        this.#flush(missing, block, extent, bytes);
        extent = block.extentOf(page);
      }
      this.#add(block, page, isZero ? ZERO_PAGE : at + 8);
      at += isZero ? ZERO_RECORD_BYTES : NORMAL_RECORD_BYTES;
    }
    this.#flush(missing, block, extent, bytes);
    return at - start;
  }

  #add(block: RamBlock, page: number, content: number): void {
    const batch = this.#batch;
    if (this.isReceived(block, page)) {
      this.duplicates += 1;
      return;
    }
    batch.pages[batch.count] = page;
    batch.contents[batch.count] = content;
    batch.count += 1;
    this.pages[content === ZERO_PAGE ? 'zero' : 'normal'] += 1;
  }

  #flush(missing: MissingPages, block: RamBlock, extent: Extent | undefined, bytes: Uint8Array): void {
    const { pages, contents, count } = this.#batch;
    if (extent !== undefined && count > 0) {
      missing.place({ block, extent, pages, contents, count, bytes } satisfies ArrivedPages);
      this.onPlaced(block, pages, count);
      this.#batch.count = 0;
    }
  }

  #placeOne(missing: MissingPages, announced: ReadRamBlock, page: number, bytes: Uint8Array, content: number): void {
    // Says which segment the next bytes go to.
    this.locate(announced, page);
    const block = this.blockOf(announced);
    this.#add(block, page, content);
    this.#flush(missing, block, block.extentOf(page), bytes);
  }

  override zeroPage(announced: ReadRamBlock, page: number): void {
    if (this.#missing === undefined) {
      super.zeroPage(announced, page);
      this.#noteOne(announced, page);
    } else {
      this.#placeOne(this.#missing, announced, page, nothing, ZERO_PAGE);
    }
  }

  override page(announced: ReadRamBlock, page: number, bytes: Uint8Array, at: number): void {
    if (this.#missing === undefined) {
      super.page(announced, page, bytes, at);
      this.#noteOne(announced, page);
    } else {
      this.#placeOne(this.#missing, announced, page, bytes, at);
    }
  }

  override xbzrlePage(...[announced, page, ...rest]: Parameters<MemoryTarget['xbzrlePage']>): void {
    if (this.#missing !== undefined) {
      const message = `Page ${page} of RAM block "${announced.name}" comes as a difference to a content that it does not have here`;
      throw new RamferryError('invalid', 'XBZRLE_IN_POSTCOPY', message, { value: page });
    }
    super.xbzrlePage(announced, page, ...rest);
    this.#noteOne(announced, page);
  }

  #noteOne(announced: ReadRamBlock, page: number): void {
    if (this.#isAdvised) {
      this.#blocks.bitmaps.kernels.setRange(this.blockOf(announced).bitmaps.received, page, 1);
    }
  }
}

const ZERO_CONTINUED = RecordFlag.ZERO | RecordFlag.CONTINUE;
const PAGE_CONTINUED = RecordFlag.PAGE | RecordFlag.CONTINUE;
const nothing = new Uint8Array(0);

const flagsAt = (bytes: Uint8Array, at: number): number => be32(bytes, at + 4) % GUEST_PAGE_SIZE;
const pageAt = (bytes: Uint8Array, at: number): number => be32(bytes, at) * 2 ** 20 + (be32(bytes, at + 4) >>> 12);
