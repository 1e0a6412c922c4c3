// The write protector for guests whose stores cannot be asked: the kernel holds a store to a protected page up and reports
// it through a userfaultfd, which this thread reads between two batches (userfaultfd-node.ts).
//
//   arm      userfaultfd · register extents · populate, before Linux 6.4 only
//   protect  UFFDIO_WRITEPROTECT over what is to be saved: the pause grows with the guest's page table entries
//   release  UFFDIO_WRITEPROTECT back, which wakes who waits; not before all of a huge page is saved
//   stop     unregister, close
//
// To lift the protection of a part of a huge page would split it, and a guest whose huge pages are split is 13 % slower
// afterwards (measured: random pages of 1 GiB). So a store anywhere in a huge page has all of it saved, which holds the
// thread up for a millisecond or two and, since the other 511 pages then never fault, makes the whole shorter.
//
// The engine's own thread never stores to guest RAM, or it would wait for itself;
// its lists and results lie in the segments' control tails, which are not registered.

import { readFileSync } from 'node:fs';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { RamferryError } from '../memory/errors.js';
import type { Extent, RamBlock } from '../memory/ram-block.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import { addressOf } from '../memory/system-library-node.js';
import { Userfaultfd } from './userfaultfd-node.js';
import { protectionOf } from './write-protect.js';
import type { PagesToSave, UrgentPages, WriteProtector } from './write-protector.js';

/** Bytes whose protection is lifted together: those of a huge page, where the system has them. */
const unitBytes = (): number => {
  try {
    const folder = '/sys/kernel/mm/transparent_hugepage/';
    const isNever = readFileSync(`${folder}enabled`, 'utf8').includes('[never]');
    return isNever ? GUEST_PAGE_SIZE : Number(readFileSync(`${folder}hpage_pmd_size`, 'utf8'));
  } catch {
    return GUEST_PAGE_SIZE;
  }
};

/** An extent with its address in this process; a number holds any user space address. */
interface PlacedExtent {
  readonly block: RamBlock;
  readonly extent: Extent;
  readonly address: number;
  readonly bytes: number;
}

/** Pages of an extent that are in the same huge page. */
interface Unit extends PlacedExtent {
  readonly first: number;
  readonly end: number;
}

export interface UserfaultfdOptions {
  /** Told of the descriptor, so that somebody can close it if this thread dies; and of undefined right before it is closed here. */
  readonly onDescriptor?: (descriptor: number | undefined) => void;
}

export class UserfaultfdProtector implements WriteProtector {
  readonly #blocks: RamBlockList;
  readonly #options: UserfaultfdOptions;
  #userfaultfd: Userfaultfd | undefined;
  #extents: readonly PlacedExtent[] = [];
  readonly #unitBytes = unitBytes();
  /** The one that a guest thread waits for. */
  #urgent: Unit | undefined;

  constructor(blocks: RamBlockList, options: UserfaultfdOptions = {}) {
    this.#blocks = blocks;
    this.#options = options;
  }

  /** Throws USERFAULTFD_UNSUPPORTED. */
  arm(): void {
    const userfaultfd = Userfaultfd.open('write-protect');
    this.#userfaultfd = userfaultfd;
    this.#options.onDescriptor?.(userfaultfd.descriptor);
    const { kernels } = this.#blocks.bitmaps;
    const migrated = this.#blocks.blocks.filter((block) => block.migrated);
    this.#extents = migrated.flatMap((block) =>
      block.extents.map((extent) => ({
        block,
        extent,
        address: addressOf(extent.segment.bytes) + extent.address,
        bytes: extent.pageCount * GUEST_PAGE_SIZE,
      })),
    );
    for (const block of migrated) {
      const { isProtected } = protectionOf(block.bitmaps);
      kernels.testAndClearRange(isProtected, 0, block.maxPages);
      kernels.merge(block.bitmaps.send, isProtected, Math.ceil(block.maxPages / 64));
    }
    for (const { address, bytes } of this.#extents) {
      userfaultfd.register(address, bytes);
    }
    if (!userfaultfd.protectsUnpopulated) {
      this.#forEachProtected(({ extent }, first, count) => {
        for (let page = first; page < first + count; page += 1) {
          // A page without an entry in the page tables would be skipped; reading makes one.
          Atomics.load(extent.segment.bytes, extent.address + (page - extent.firstPage) * GUEST_PAGE_SIZE);
        }
      });
    }
  }

  protect(): void {
    this.#forEachProtected(({ address, extent }, first, count) => {
      const start = address + (first - extent.firstPage) * GUEST_PAGE_SIZE;
      this.#userfaultfd!.protect(start, count * GUEST_PAGE_SIZE);
    });
  }

  nextUrgent(): UrgentPages | undefined {
    for (;;) {
      this.#urgent ??= this.#nextFault();
      if (this.#urgent === undefined) {
        return undefined;
      }
      const { block, extent, first, end } = this.#urgent;
      const { kernels } = this.#blocks.bitmaps;
      const { isProtected } = protectionOf(block.bitmaps);
      const firstPage = kernels.findNextSet(isProtected, first, end);
      if (firstPage < end) {
        return { block, extent, firstPage, pageCount: kernels.findNextClear(isProtected, firstPage, end) - firstPage };
      }
      this.#urgent = undefined;
    }
  }

  /** Where a guest thread waits for pages to be saved. */
  #nextFault(): Unit | undefined {
    for (;;) {
      const address = this.#userfaultfd!.nextFault();
      const unit = address === undefined ? undefined : this.#unitAt(this.#extentAt(address), address);
      // It may have been saved while the fault was on its way here: nothing to send, but somebody to wake (BS-13).
      if (unit === undefined || !this.#unprotectSaved(unit)) {
        return unit;
      }
    }
  }

  /** Guest threads claim nothing here. */
  claim({ count }: PagesToSave): number {
    return count;
  }

  release({ block, extent, pages, count }: PagesToSave): void {
    const { isProtected } = protectionOf(block.bitmaps);
    const placed = this.#extents.find((candidate) => candidate.extent === extent)!;
    for (let index = 0; index < count; ) {
      const first = pages[index]!;
      const from = index;
      do {
        index += 1;
      } while (index < count && pages[index] === pages[index - 1]! + 1);
      this.#blocks.bitmaps.kernels.testAndClearRange(isProtected, first, index - from);
      for (let page = first; page < first + index - from; ) {
        const unit = this.#unitAt(placed, placed.address + (page - extent.firstPage) * GUEST_PAGE_SIZE);
        this.#unprotectSaved(unit);
        page = unit.end;
      }
    }
  }

  stop(): void {
    for (const { block, address, bytes } of this.#extents) {
      this.#userfaultfd?.unregister(address, bytes);
      this.#blocks.bitmaps.kernels.testAndClearRange(protectionOf(block.bitmaps).isProtected, 0, block.maxPages);
    }
    this.#options.onDescriptor?.(undefined);
    this.#userfaultfd?.close();
    this.#userfaultfd = undefined;
    this.#extents = [];
    this.#urgent = undefined;
  }

  /** Calls back with the longest runs of pages to protect, each in one extent. */
  #forEachProtected(visit: (placed: PlacedExtent, first: number, count: number) => void): void {
    const { kernels } = this.#blocks.bitmaps;
    for (const placed of this.#extents) {
      const { firstPage, pageCount } = placed.extent;
      const { isProtected } = protectionOf(placed.block.bitmaps);
      const end = firstPage + pageCount;
      for (let first: number = firstPage; ; ) {
        first = kernels.findNextSet(isProtected, first, end);
        if (first >= end) {
          break;
        }
        const next = kernels.findNextClear(isProtected, first, end);
        visit(placed, first, next - first);
        first = next;
      }
    }
  }

  #extentAt(address: number): PlacedExtent {
    const placed = this.#extents.find(
      (candidate) => address >= candidate.address && address < candidate.address + candidate.bytes,
    );
    if (placed === undefined) {
      throw new RamferryError('failed', 'USERFAULTFD', `A fault at ${address} is in no RAM block.`, { value: address });
    }
    return placed;
  }

  #unitAt(placed: PlacedExtent, address: number): Unit {
    const { firstPage, pageCount } = placed.extent;
    const start = address - (address % this.#unitBytes) - placed.address;
    return {
      ...placed,
      first: firstPage + Math.max(0, start / GUEST_PAGE_SIZE),
      end: firstPage + Math.min(pageCount, (start + this.#unitBytes) / GUEST_PAGE_SIZE),
    };
  }

  /** Lifts the protection of a unit once all of it is saved; says whether it is. */
  #unprotectSaved({ block, extent, address, first, end }: Unit): boolean {
    const { isProtected } = protectionOf(block.bitmaps);
    if (this.#blocks.bitmaps.kernels.countRange(isProtected, first, end - first) > 0) {
      return false;
    }
    const start = address + (first - extent.firstPage) * GUEST_PAGE_SIZE;
    this.#userfaultfd!.unprotect(start, (end - first) * GUEST_PAGE_SIZE);
    return true;
  }
}
