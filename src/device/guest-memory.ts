// Guest memory as devices and drivers see it: by guest-physical address. A small address map leads to RAM blocks; every
// access is checked against it, since devices take their addresses from the guest.
//
//   guest address ──region──▶ RAM block, offset ──extent──▶ segment, address
//
// A thread has its own: its stores go to its own end of the dirty log, store first, mark second (TS-1).

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import {
  type GuestAddress,
  guestAddress,
  type PageIndex,
  pageIndex,
  type RamBlock,
  RamferryError,
  type Segment,
} from '../memory/index.js';

/** Where the guest sees a part of a RAM block. All three numbers are bytes and multiples of the guest page size. */
export interface MemoryRegion {
  readonly guestAddress: GuestAddress;
  readonly block: RamBlock;
  /** Start of the part in the block. */
  readonly offset: number;
  readonly bytes: number;
}

/** The calling thread's end of the dirty log: a `StoreBarrierWriter`, or something of the same shape. */
export interface StoreTracker {
  /** Before a load from the page, where memory may still be arriving. */
  beforeLoad?(block: RamBlock, page: number): void;
  /** Before a store to the page, where background snapshots are taken: they may have to save it first (BS-3). */
  beforeStore?(block: RamBlock, page: number): void;
  /** After a store to the pages. */
  markRange(block: RamBlock, firstPage: number, pageCount: number): void;
}

/** The part of a region that lies in one extent. */
interface Piece {
  readonly start: number;
  readonly end: number;
  readonly block: RamBlock;
  /** Offset of `start` in the block. */
  readonly offset: number;
  /** Where `start` is in the segment's memory. */
  readonly address: number;
  readonly views: SegmentViews;
}

interface SegmentViews {
  readonly bytes: Uint8Array;
  readonly halfwords: Uint16Array;
  readonly words: Int32Array;
}

export class GuestMemory {
  readonly regions: readonly MemoryRegion[];
  /** By start. A piece ends where the next starts, or before. */
  readonly #pieces: readonly Piece[];
  readonly #tracker: StoreTracker;

  /** Throws GUEST_REGION_INVALID for regions that overlap, or are not whole pages of their block. */
  constructor(regions: readonly MemoryRegion[], tracker: StoreTracker) {
    this.regions = regions.toSorted((one, other) => one.guestAddress - other.guestAddress);
    this.#tracker = tracker;
    let end = 0;
    for (const region of this.regions) {
      const { guestAddress: start, block, offset, bytes } = region;
      const whole = [start, offset, bytes].every(
        (value) => Number.isSafeInteger(value) && value % GUEST_PAGE_SIZE === 0,
      );
      if (!whole || start < end || bytes <= 0 || offset < 0 || offset + bytes > block.maxLength) {
        throw new RamferryError(
          'usage',
          'GUEST_REGION_INVALID',
          `Guest addresses ${start} to ${start + bytes} cannot show bytes ${offset} to ${offset + bytes} of RAM block ` +
            `${block.name} of ${block.maxLength} bytes: they must be whole pages, and no other region may overlap`,
          { value: start },
        );
      }
      end = start + bytes;
    }
    const views = new Map<Segment, SegmentViews>();
    this.#pieces = this.regions.flatMap((region) => piecesOf(region, views));
  }

  /** Whether all of [address, address + length) is memory. */
  contains(address: GuestAddress, length: number): boolean {
    return this.forEachRange(address, length, () => {}) === length;
  }

  /**
   * Visits what of [address, address + length) is memory, from the start to the first byte that is not, as byte ranges of
   * RAM blocks; returns the bytes visited. A range ends at a block's used length; one block may be visited repeatedly.
   */
  forEachRange(
    address: GuestAddress,
    length: number,
    visit: (block: RamBlock, offset: number, bytes: number) => void,
  ): number {
    let done = 0;
    while (done < length) {
      const piece = this.#pieceAt(address + done);
      if (piece === undefined) {
        break;
      }
      const offset = piece.offset + (address + done - piece.start);
      const bytes = Math.min(length - done, piece.end - (address + done), piece.block.usedLength - offset);
      if (bytes <= 0) {
        break;
      }
      visit(piece.block, offset, bytes);
      done += bytes;
    }
    return done;
  }

  /** A private copy, so that nobody can change it after it was checked. */
  read(address: GuestAddress, length: number): Uint8Array<ArrayBuffer> {
    this.#checkContained(address, length);
    const copy = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const piece = this.#pieceAt(address + done)!;
      const from = placeOf(piece, address + done);
      const bytes = Math.min(
        length - done,
        piece.end - (address + done),
        GUEST_PAGE_SIZE - ((address + done) % GUEST_PAGE_SIZE),
      );
      this.#beforeLoad(piece, address + done);
      copy.set(piece.views.bytes.subarray(from, from + bytes), done);
      done += bytes;
    }
    return copy;
  }

  /** Stores all of `bytes`, or nothing. */
  write(address: GuestAddress, bytes: Uint8Array): void {
    this.#checkContained(address, bytes.length);
    for (let done = 0; done < bytes.length; ) {
      const at = address + done;
      const piece = this.#pieceAt(at)!;
      const count = Math.min(bytes.length - done, GUEST_PAGE_SIZE - (at % GUEST_PAGE_SIZE));
      this.#store(piece, at, () => {
        piece.views.bytes.set(bytes.subarray(done, done + count), placeOf(piece, at));
      });
      done += count;
    }
  }

  /**
   * Makes a page that nobody needs read as zero, if it does not. What was never touched stays so: it costs no memory.
   * `address` is that of the page.
   */
  zeroPage(address: GuestAddress): void {
    const piece = this.#scalar(address, GUEST_PAGE_SIZE);
    this.#beforeLoad(piece, address);
    const from = placeOf(piece, address) / 4;
    const words = piece.views.words.subarray(from, from + GUEST_PAGE_SIZE / 4);
    if (words.some((word) => word !== 0)) {
      this.#store(piece, address, () => words.fill(0));
    }
  }

  // Scalars are little-endian and naturally aligned, so that none lies in two pieces.

  /**
   * 16-bit atomics, sequentially consistent: what the storing side wrote before is visible to whoever loads the value.
   * Not by a 32-bit atomic on the word around it: the halves next to ring indexes belong to other writers.
   */
  loadUint16(address: GuestAddress): number {
    const piece = this.#scalar(address, 2);
    this.#beforeLoad(piece, address);
    return Atomics.load(piece.views.halfwords, placeOf(piece, address) / 2);
  }

  storeUint16(address: GuestAddress, value: number): void {
    const piece = this.#scalar(address, 2);
    this.#store(piece, address, () => Atomics.store(piece.views.halfwords, placeOf(piece, address) / 2, value));
  }

  readUint32(address: GuestAddress): number {
    const piece = this.#scalar(address, 4);
    this.#beforeLoad(piece, address);
    return piece.views.words[placeOf(piece, address) / 4]! >>> 0;
  }

  writeUint32(address: GuestAddress, value: number): void {
    const piece = this.#scalar(address, 4);
    this.#store(piece, address, () => {
      piece.views.words[placeOf(piece, address) / 4] = value;
    });
  }

  /** Inexact above 2^53, where no memory is. */
  readUint64(address: GuestAddress): number {
    return this.readUint32(address) + this.readUint32(guestAddress(address + 4)) * 2 ** 32;
  }

  writeUint64(address: GuestAddress, value: number): void {
    this.writeUint32(address, value % 2 ** 32);
    this.writeUint32(guestAddress(address + 4), Math.floor(value / 2 ** 32));
  }

  #pieceAt(address: number): Piece | undefined {
    let low = 0;
    let high = this.#pieces.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#pieces[middle]!.end <= address) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    const piece = this.#pieces[low];
    return piece !== undefined && piece.start <= address ? piece : undefined;
  }

  #scalar(address: number, bytes: number): Piece {
    const piece = address % bytes === 0 ? this.#pieceAt(address) : undefined;
    if (piece === undefined || piece.offset + (address - piece.start) >= piece.block.usedLength) {
      throw notMemory(address, bytes);
    }
    return piece;
  }

  #checkContained(address: GuestAddress, length: number): void {
    if (!this.contains(address, length)) {
      throw notMemory(address, length);
    }
  }

  /** Of one page. */
  #beforeLoad(piece: Piece, address: number): void {
    this.#tracker.beforeLoad?.(piece.block, pageOf(piece, address));
  }

  /** A store inside of one page. */
  #store(piece: Piece, address: number, store: () => void): void {
    const page = pageOf(piece, address);
    this.#tracker.beforeStore?.(piece.block, page);
    store();
    this.#tracker.markRange(piece.block, page, 1);
  }
}

/** Where a guest address of the piece is in its segment's memory. */
const placeOf = (piece: Piece, address: number): number => piece.address + (address - piece.start);

const pageOf = (piece: Piece, address: number): number =>
  Math.floor((piece.offset + (address - piece.start)) / GUEST_PAGE_SIZE);

/** The whole pages of [offset, offset + bytes): partly covered pages at either end are left out (FH-19). */
export const wholePages = (offset: number, bytes: number): { firstPage: PageIndex; pageCount: number } => {
  const first = Math.ceil(offset / GUEST_PAGE_SIZE);
  return {
    firstPage: pageIndex(first),
    pageCount: Math.max(0, Math.floor((offset + bytes) / GUEST_PAGE_SIZE) - first),
  };
};

const piecesOf = (region: MemoryRegion, views: Map<Segment, SegmentViews>): Piece[] =>
  region.block.extents.flatMap(({ segment, address, firstPage, pageCount }) => {
    const extentStart = firstPage * GUEST_PAGE_SIZE;
    const from = Math.max(region.offset, extentStart);
    const to = Math.min(region.offset + region.bytes, extentStart + pageCount * GUEST_PAGE_SIZE);
    if (from >= to) {
      return [];
    }
    const known = views.get(segment) ?? {
      bytes: segment.bytes,
      halfwords: new Uint16Array(segment.memory.buffer),
      words: segment.words,
    };
    views.set(segment, known);
    const start = region.guestAddress + (from - region.offset);
    return [
      {
        start,
        end: start + (to - from),
        block: region.block,
        offset: from,
        address: address + (from - extentStart),
        views: known,
      },
    ];
  });

const notMemory = (address: number, bytes: number): RamferryError =>
  new RamferryError(
    'invalid',
    'GUEST_ADDRESS_INVALID',
    `Guest address ${address} does not have ${bytes} aligned bytes of memory`,
    { value: address },
  );
