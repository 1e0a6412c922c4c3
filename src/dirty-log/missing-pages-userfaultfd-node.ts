// Missing pages of guests whose accesses cannot be asked: the kernel holds a thread up that touches a page which is not there,
// and reports it through a userfaultfd; here that is a callback of the event loop.
//
//   arm      userfaultfd · register extents · madvise(DONTNEED) what is missing, so that it is
//   place    UFFDIO_COPY, UFFDIO_ZEROPAGE: for every other thread a page is there as a whole or not at all
//   finish   unregister: what never came reads as zero
//
// Pages that have come without content may never have been touched here, and are missing to the kernel as well: it reports
// them, and gets a zero page without anybody asking the source. The engine's own thread must not touch what is missing, or
// it would wait for itself; what it receives into, the segments' control tails, is not registered.

import process from 'node:process';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { Extent, RamBlock } from '../memory/ram-block.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import { discardMemory } from '../memory/release-memory-node.js';
import { addressOf } from '../memory/system-library-node.js';
import {
  type ArrivedPages,
  type MissingPage,
  type MissingPages,
  noteAllReceived,
  noteReceived,
  ZERO_PAGE,
} from './missing-pages.js';
import { Userfaultfd } from './userfaultfd-node.js';

/** How long one wait for faults is; only a bound on how long one goes on that nobody needs any more. */
const POLL_MS = 200;

/** An extent with its address in this process; a number holds any user space address. */
interface PlacedExtent {
  readonly block: RamBlock;
  readonly extent: Extent;
  readonly address: number;
  readonly bytes: number;
}

export class UserfaultfdMissingPages implements MissingPages {
  readonly #blocks: RamBlockList;
  readonly #endGuest: () => void;
  #userfaultfd: Userfaultfd | undefined;
  #extents: readonly PlacedExtent[] = [];
  #onFault: () => void = () => {};
  /** A thread that the kernel holds up would keep the process from ending. */
  readonly #atExit = (): void => this.abandon();

  /** `endGuest` tells the guest's threads to end: when pages are lost, those that waited go on with zeros up to their next look. */
  constructor(blocks: RamBlockList, endGuest: () => void) {
    this.#blocks = blocks;
    this.#endGuest = endGuest;
  }

  /** Throws USERFAULTFD_UNSUPPORTED. */
  arm(onFault: () => void): void {
    const userfaultfd = Userfaultfd.open('missing');
    this.#userfaultfd = userfaultfd;
    this.#onFault = onFault;
    process.once('exit', this.#atExit);
    const migrated = this.#blocks.blocks.filter((block) => block.migrated);
    this.#extents = migrated.flatMap((block) =>
      block.extents.map((extent) => ({
        block,
        extent,
        address: addressOf(extent.segment.bytes) + extent.address,
        bytes: extent.pageCount * GUEST_PAGE_SIZE,
      })),
    );
    for (const { address, bytes } of this.#extents) {
      userfaultfd.register(address, bytes);
    }
    const { kernels } = this.#blocks.bitmaps;
    for (const block of migrated) {
      const { received } = block.bitmaps;
      for (let page = 0; page < block.usedPages; ) {
        const first = kernels.findNextClear(received, page, block.usedPages);
        page = kernels.findNextSet(received, first, block.usedPages);
        discardMemory(block, first, page - first);
      }
    }
    this.#listen(userfaultfd);
  }

  #listen(userfaultfd: Userfaultfd): void {
    userfaultfd.whenFault(POLL_MS, () => {
      if (this.#userfaultfd === userfaultfd) {
        this.#onFault();
        this.#listen(userfaultfd);
      }
    });
  }

  nextFault(): MissingPage | undefined {
    const userfaultfd = this.#userfaultfd;
    for (;;) {
      const address = userfaultfd?.nextFault();
      if (userfaultfd === undefined || address === undefined) {
        return undefined;
      }
      const { block, extent, address: start } = this.#extentAt(address);
      const page = extent.firstPage + Math.floor((address - start) / GUEST_PAGE_SIZE);
      if (this.#blocks.bitmaps.kernels.countRange(block.bitmaps.received, page, 1) === 0) {
        return { block, page };
      }
      userfaultfd.zero(address - (address % GUEST_PAGE_SIZE), GUEST_PAGE_SIZE);
    }
  }

  #extentAt(address: number): PlacedExtent {
    // The kernel reports nothing but what was registered.
    return this.#extents.find(({ address: start, bytes }) => address >= start && address < start + bytes)!;
  }

  place(arrived: ArrivedPages): void {
    const { extent, pages, contents, count, bytes } = arrived;
    const start = addressOf(extent.segment.bytes) + extent.address;
    const source = addressOf(bytes);
    for (let index = 0; index < count; index += 1) {
      const page = pages[index]!;
      const address = start + (page - extent.firstPage) * GUEST_PAGE_SIZE;
      if (contents[index] === ZERO_PAGE) {
        this.#userfaultfd!.zero(address, GUEST_PAGE_SIZE);
      } else {
        this.#userfaultfd!.copy(address, source + contents[index]!, GUEST_PAGE_SIZE);
        extent.segment.markWritten(extent.address + (page - extent.firstPage) * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
      }
    }
    noteReceived(this.#blocks.bitmaps.words, arrived);
  }

  finish(): void {
    for (const block of this.#blocks.blocks.filter(({ migrated }) => migrated)) {
      noteAllReceived(this.#blocks.bitmaps.words, block);
    }
    this.#close();
  }

  abandon(): void {
    if (this.#userfaultfd !== undefined) {
      this.#endGuest();
      this.#close();
    }
  }

  #close(): void {
    const userfaultfd = this.#userfaultfd;
    this.#userfaultfd = undefined;
    for (const { address, bytes } of this.#extents) {
      userfaultfd?.unregister(address, bytes);
    }
    userfaultfd?.close();
    process.off('exit', this.#atExit);
  }
}
