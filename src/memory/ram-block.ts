// A RAM block: one contiguous guest memory object, which lies in one or more segments, with the bitmaps that go with it.

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { RamferryError } from './errors.js';
import type { RamDiscardManager } from './ram-discard-manager.js';
import type { Segment } from './segment.js';
import { type GuestAddress, type PageIndex, pageIndex, type RamPage } from './units.js';

/** A piece of a block that is contiguous in one segment. Extents cover the maximum length, in order. */
export interface Extent {
  readonly segment: Segment;
  /** Byte offset of the first page in the segment's memory, a multiple of 64 pages. */
  readonly address: number;
  readonly firstPage: PageIndex;
  readonly pageCount: number;
}

/** Byte addresses in the `BitmapMemory`; bit = page of the block; sized by the maximum length, whole 64-bit words. */
export interface BlockBitmaps {
  /** Still to be sent (SEND). Reading the address throws for a block that is not migrated (G-9). */
  readonly send: number;
  /** Marks of guest stores (REMOTE). */
  readonly remote: number;
  /** What the last log sync saw of `remote` (SNAP). */
  readonly snapshot: number;
  /** Placed by the destination (RECV). Reading the address throws for a block that is not migrated (G-9). */
  readonly received: number;
}

/** What the owner of a block says about it. Lengths are bytes and multiples of the host page size. */
export interface RamBlockSpec {
  /** 1 to 255 bytes of UTF-8, unique in its list. */
  readonly name: string;
  readonly usedLength: number;
  /** Default: the used length. */
  readonly maxLength?: number;
  /** A power of two from the guest page size up. Default: the guest page size. */
  readonly hostPageSize?: number;
  /** Default true. */
  readonly migratable?: boolean;
  /** Migratable, but not moved, because the other side sees the same memory. Default false. */
  readonly ignored?: boolean;
  /** Default false. */
  readonly shared?: boolean;
  /** Whether the used length may change, up to the maximum. Default: whether the maximum is larger. */
  readonly resizable?: boolean;
  /** Guest-physical address. Default 0. */
  readonly guestAddress?: GuestAddress;
  /**
   * The block is memory only where its RamDiscardManager says so, in multiples of this many bytes: a power of two from the
   * host page size up. Nowhere at first. Not for blocks that can be resized. Default 0: it is memory all over.
   */
  readonly discardGranularity?: number;
}

/** Where the list has put a block. */
export interface RamBlockPlacement {
  /** Tells a block from a later one of the same name. */
  readonly id: number;
  readonly ramPage: RamPage;
  readonly extents: readonly Extent[];
  readonly bitmaps: BlockBitmaps;
  readonly discardManager: RamDiscardManager | undefined;
}

export class RamBlock {
  readonly name: string;
  readonly maxLength: number;
  readonly hostPageSize: number;
  readonly migratable: boolean;
  readonly ignored: boolean;
  readonly shared: boolean;
  readonly resizable: boolean;
  readonly guestAddress: GuestAddress;
  readonly id: number;
  /** First page in the flat ram address space, a multiple of 64. */
  readonly ramPage: RamPage;
  readonly extents: readonly Extent[];
  readonly bitmaps: BlockBitmaps;
  /** Knows which parts are discarded; undefined if none can be. */
  readonly discardManager: RamDiscardManager | undefined;
  #usedLength: number;

  constructor(spec: Required<RamBlockSpec>, placement: RamBlockPlacement) {
    this.name = spec.name;
    this.#usedLength = spec.usedLength;
    this.maxLength = spec.maxLength;
    this.hostPageSize = spec.hostPageSize;
    this.migratable = spec.migratable;
    this.ignored = spec.ignored;
    this.shared = spec.shared;
    this.resizable = spec.resizable;
    this.guestAddress = spec.guestAddress;
    this.id = placement.id;
    this.ramPage = placement.ramPage;
    this.extents = placement.extents;
    this.discardManager = placement.discardManager;
    this.bitmaps = this.migrated ? placement.bitmaps : withoutMigration(this.name, placement.bitmaps);
  }

  get usedLength(): number {
    return this.#usedLength;
  }

  /** Only for the list that holds the block: everyone else calls `RamBlockList.resize`. */
  setUsedLength(bytes: number): void {
    this.#usedLength = bytes;
  }

  /** Guest pages of the used length. */
  get usedPages(): number {
    return this.#usedLength / GUEST_PAGE_SIZE;
  }

  /** Guest pages of the maximum length. */
  get maxPages(): number {
    return this.maxLength / GUEST_PAGE_SIZE;
  }

  /** Whether its pages take part in migrations (spec/algorithms.md 7.20). */
  get migrated(): boolean {
    return this.migratable && !this.ignored;
  }

  /** The extent that holds `page`. Throws RangeError beyond the maximum length. */
  extentOf(page: number): Extent {
    let low = 0;
    let high = this.extents.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if (this.extents[middle]!.firstPage <= page) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    const extent = this.extents[low]!;
    if (!(page >= extent.firstPage && page < extent.firstPage + extent.pageCount)) {
      throw new RangeError(`Page ${page} is not in RAM block ${this.name} of ${this.maxPages} pages`);
    }
    return extent;
  }

  /**
   * Splits [firstPage, firstPage + pageCount), which must lie in the used length, at extent borders. `visit` receives the
   * pages of the block; the first one's bytes are at `extent.address + (first - extent.firstPage) * GUEST_PAGE_SIZE`.
   */
  forEachRange(
    firstPage: number,
    pageCount: number,
    visit: (extent: Extent, first: PageIndex, count: number) => void,
  ): void {
    this.#checkInside(firstPage * GUEST_PAGE_SIZE, pageCount * GUEST_PAGE_SIZE);
    const end = firstPage + pageCount;
    for (let page = firstPage; page < end; ) {
      const extent = this.extentOf(page);
      const next = Math.min(end, extent.firstPage + extent.pageCount);
      visit(extent, pageIndex(page), next - page);
      page = next;
    }
  }

  /** A private copy of `length` bytes from byte `offset` of the block. For headers, tests and tools: pages move by kernels. */
  read(offset: number, length: number): Uint8Array<ArrayBuffer> {
    const copy = new Uint8Array(length);
    this.#forEachBytes(offset, length, (segment, address, done, count) => {
      copy.set(segment.bytes.subarray(address, address + count), done);
    });
    return copy;
  }

  /** Stores bytes at byte `offset` of the block and notes the pages as written. Marks no dirty bit: that is the caller's. */
  write(offset: number, bytes: Uint8Array): void {
    this.#forEachBytes(offset, bytes.length, (segment, address, done, count) => {
      segment.bytes.set(bytes.subarray(done, done + count), address);
      segment.markWritten(address, count);
    });
  }

  /** Notes that pages may no longer read as zero, so that zero pages that are loaded over them are stored. */
  markWritten(firstPage: number, pageCount: number): void {
    this.#forEachBytes(firstPage * GUEST_PAGE_SIZE, pageCount * GUEST_PAGE_SIZE, (segment, address, _done, count) => {
      segment.markWritten(address, count);
    });
  }

  #forEachBytes(
    offset: number,
    length: number,
    visit: (segment: Segment, address: number, done: number, count: number) => void,
  ): void {
    this.#checkInside(offset, length);
    for (let done = 0; done < length; ) {
      const { segment, address, firstPage, pageCount } = this.extentOf(Math.floor((offset + done) / GUEST_PAGE_SIZE));
      const into = offset + done - firstPage * GUEST_PAGE_SIZE;
      const count = Math.min(length - done, pageCount * GUEST_PAGE_SIZE - into);
      visit(segment, address + into, done, count);
      done += count;
    }
  }

  #checkInside(offset: number, length: number): void {
    if (!(offset >= 0 && length >= 0 && offset + length <= this.#usedLength)) {
      throw new RangeError(
        `Bytes ${offset} to ${offset + length} are not in the ${this.#usedLength} used bytes of RAM block ${this.name}`,
      );
    }
  }
}

/** The bitmaps of a block that is not migrated: it has no storage for SEND and RECV, and nobody may go through them. */
const withoutMigration = (name: string, { remote, snapshot }: BlockBitmaps): BlockBitmaps => {
  const refuse = (): never => {
    throw new RamferryError('usage', 'RAM_BLOCK_NOT_MIGRATED', `RAM block ${name} is not migrated`, { value: name });
  };
  return {
    remote,
    snapshot,
    get send(): number {
      return refuse();
    },
    get received(): number {
      return refuse();
    },
  };
};
