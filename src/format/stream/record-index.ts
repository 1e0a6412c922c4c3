// Where in a stream file the last record of every page is. Sparse, because a block may be far larger than what the
// stream holds of it, and bounded, because the file says how much that is.
//
//   leaf number ─▶ Map ─▶ leaf: 512 pages, one number each
//                          0        absent: no record
//                          1        zero mark
//                          n >= 8   the page's content is at byte n of the file
//                          -1 - k   delta k: XBZRLE data, on top of what the page was before
//
//   delta k: offset and length of the data, and the page's entry before it, which may be a delta again

import { RamferryError } from '../../memory/errors.js';
import { type PageCounts, PageKind } from '../snapshot.js';

const ABSENT = 0;
const ZERO = 1;

/** Pages of a leaf: 2 MiB of a guest with 4 KiB pages, so that a sparse guest pays for what it uses. */
const LEAF_PAGES = 512;

/** A leaf with its entry in the map and the head of its view. */
const LEAF_BYTES = LEAF_PAGES * 8 + 256;

/** Leaves that are allocated at once: a buffer for each of them would keep the garbage collector busy. */
const SLAB_LEAVES = 256;

/** What indexes are made of, and how much they may still take. Shared by all blocks of a stream. */
export class IndexBudget {
  readonly #limit: number;
  #used = 0;
  /** Leaves that are allocated, those in front of `#nextLeaf` used. */
  #slab = new Float64Array(0);
  #nextLeaf = 0;

  constructor(limitBytes: number) {
    this.#limit = limitBytes;
  }

  get usedBytes(): number {
    return this.#used;
  }

  take(bytes: number): void {
    this.#used += bytes;
    if (this.#used > this.#limit) {
      throw new RamferryError(
        'failed',
        'INDEX_TOO_LARGE',
        `The index of this file's pages takes more than ${this.#limit} bytes.`,
        {
          value: this.#limit,
          hint: 'Raise the limit to 1/256 of the guest memory, or convert the stream to mapped-ram.',
        },
      );
    }
  }

  /** A leaf of absent pages. */
  leaf(): Float64Array {
    this.take(LEAF_BYTES);
    if (this.#nextLeaf === this.#slab.length) {
      this.#slab = new Float64Array(SLAB_LEAVES * LEAF_PAGES);
      this.#nextLeaf = 0;
    }
    this.#nextLeaf += LEAF_PAGES;
    return this.#slab.subarray(this.#nextLeaf - LEAF_PAGES, this.#nextLeaf);
  }
}

/** XBZRLE records, each linked to what the page was before it. */
export class DeltaList {
  readonly #budget: IndexBudget;
  #offsets = new Float64Array(0);
  #before = new Float64Array(0);
  #lengths = new Uint16Array(0);
  #count = 0;

  constructor(budget: IndexBudget) {
    this.#budget = budget;
  }

  /** Adds a delta and returns its number. */
  add(offset: number, length: number, before: number): number {
    if (this.#count === this.#offsets.length) {
      const capacity = Math.max(this.#count * 2, 1024);
      this.#budget.take((capacity - this.#count) * 18);
      this.#offsets = grown(this.#offsets, new Float64Array(capacity));
      this.#before = grown(this.#before, new Float64Array(capacity));
      this.#lengths = grown(this.#lengths, new Uint16Array(capacity));
    }
    this.#offsets[this.#count] = offset;
    this.#before[this.#count] = before;
    this.#lengths[this.#count] = length;
    return this.#count++;
  }

  offset(delta: number): number {
    return this.#offsets[delta];
  }

  length(delta: number): number {
    return this.#lengths[delta];
  }

  /** The page's entry before this delta. */
  before(delta: number): number {
    return this.#before[delta];
  }
}

const grown = <Numbers extends Float64Array | Uint16Array>(from: Numbers, to: Numbers): Numbers => {
  to.set(from);
  return to;
};

/** The index of one block. */
export class RecordIndex {
  readonly #pageCount: number;
  readonly #budget: IndexBudget;
  readonly #deltas: DeltaList;
  readonly #leaves = new Map<number, Float64Array>();
  /** Numbers of the leaves in order, made when first asked for. */
  #sorted: Float64Array | undefined;
  /** The leaf used last: records come mostly in page order. */
  #leafNumber = -1;
  #leaf: Float64Array = new Float64Array(0);
  #presentPages = 0;
  #zeroPages = 0;

  constructor(pageCount: number, budget: IndexBudget, deltas: DeltaList) {
    this.#pageCount = pageCount;
    this.#budget = budget;
    this.#deltas = deltas;
  }

  get counts(): PageCounts {
    return {
      presentPages: this.#presentPages,
      zeroPages: this.#zeroPages,
      absentPages: this.#pageCount - this.#presentPages - this.#zeroPages,
    };
  }

  /** Counts of every `pagesPerCell` pages. Takes as long as there are records, however large the block is. */
  cells(pagesPerCell: number): PageCounts[] {
    const cellCount = Math.ceil(this.#pageCount / pagesPerCell);
    const present = new Float64Array(cellCount);
    const zero = new Float64Array(cellCount);
    for (const [number, leaf] of this.#leaves) {
      for (let slot = 0; slot < LEAF_PAGES; slot += 1) {
        const kind = kindOfEntry(leaf[slot]);
        if (kind !== PageKind.absent) {
          const counted = kind === PageKind.present ? present : zero;
          counted[Math.floor((number * LEAF_PAGES + slot) / pagesPerCell)] += 1;
        }
      }
    }
    return Array.from(present, (presentPages, cell) => {
      const zeroPages = zero[cell];
      const pages = Math.min(pagesPerCell, this.#pageCount - cell * pagesPerCell);
      return { presentPages, zeroPages, absentPages: pages - presentPages - zeroPages };
    });
  }

  setZeros(firstPage: number, pageCount: number): void {
    this.#set(firstPage, pageCount, ZERO, 0);
  }

  /** The content of the first page is at this byte of the file, and of each further one `stride` bytes behind that. */
  setContents(firstPage: number, pageCount: number, offset: number, stride: number): void {
    this.#set(firstPage, pageCount, offset, stride);
  }

  /** XBZRLE data at this byte of the file changes the page. */
  addDelta(page: number, offset: number, length: number): void {
    this.#set(page, 1, -1 - this.#deltas.add(offset, length, this.entry(page)), 0);
  }

  /** The page's entry, as drawn above. */
  entry(page: number): number {
    const number = Math.floor(page / LEAF_PAGES);
    if (number !== this.#leafNumber) {
      const leaf = this.#leaves.get(number);
      if (leaf === undefined) {
        return ABSENT;
      }
      this.#leafNumber = number;
      this.#leaf = leaf;
    }
    return this.#leaf[page % LEAF_PAGES];
  }

  /** Whether no page with an odd number has a record. */
  get hasEvenPagesOnly(): boolean {
    for (let page = 1; page < this.#pageCount; page += 2) {
      if (kindOfEntry(this.entry(page)) !== PageKind.absent) {
        return false;
      }
    }
    return true;
  }

  /** First present page in [from, end); `end` if there is none. Steps over what has no records. */
  nextPresent(from: number, end = this.#pageCount): number {
    this.#sorted ??= Float64Array.from(this.#leaves.keys()).sort();
    const first = Math.floor(from / LEAF_PAGES);
    let low = 0;
    for (let high = this.#sorted.length; low < high; ) {
      const middle = (low + high) >>> 1;
      if (this.#sorted[middle] < first) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    for (; low < this.#sorted.length && this.#sorted[low] * LEAF_PAGES < end; low += 1) {
      const firstPage = this.#sorted[low] * LEAF_PAGES;
      const leaf = this.#leaves.get(this.#sorted[low])!;
      const slots = Math.min(LEAF_PAGES, end - firstPage);
      for (let slot = Math.max(0, from - firstPage); slot < slots; slot += 1) {
        if (kindOfEntry(leaf[slot]) === PageKind.present) {
          return firstPage + slot;
        }
      }
    }
    return end;
  }

  /** Visits the runs of pages without a record, ascending. */
  forEachAbsent(visit: (firstPage: number, pageCount: number) => void): void {
    let from = 0;
    for (const number of Float64Array.from(this.#leaves.keys()).sort()) {
      const leaf = this.#leaves.get(number)!;
      for (let slot = 0; slot < LEAF_PAGES; slot += 1) {
        if (leaf[slot] !== ABSENT) {
          const page = number * LEAF_PAGES + slot;
          if (page > from) {
            visit(from, page - from);
          }
          from = page + 1;
        }
      }
    }
    if (this.#pageCount > from) {
      visit(from, this.#pageCount - from);
    }
  }

  #set(firstPage: number, pageCount: number, firstEntry: number, stride: number): void {
    const end = firstPage + pageCount;
    let entry = firstEntry;
    for (let page = firstPage; page < end; ) {
      const leaf = this.#leafFor(Math.floor(page / LEAF_PAGES));
      const first = page % LEAF_PAGES;
      const count = Math.min(end - page, LEAF_PAGES - first);
      let zeros = 0;
      let contents = 0;
      for (let slot = first; slot < first + count; slot += 1) {
        const before = leaf[slot];
        zeros += before === ZERO ? 1 : 0;
        contents += before !== ZERO && before !== ABSENT ? 1 : 0;
        leaf[slot] = entry;
        entry += stride;
      }
      this.#zeroPages += (firstEntry === ZERO ? count : 0) - zeros;
      this.#presentPages += (firstEntry === ZERO ? 0 : count) - contents;
      page += count;
    }
  }

  #leafFor(number: number): Float64Array {
    if (number !== this.#leafNumber) {
      let leaf = this.#leaves.get(number);
      if (leaf === undefined) {
        leaf = this.#budget.leaf();
        this.#leaves.set(number, leaf);
        this.#sorted = undefined;
      }
      this.#leafNumber = number;
      this.#leaf = leaf;
    }
    return this.#leaf;
  }
}

export const kindOfEntry = (entry: number): PageKind =>
  entry === ABSENT ? PageKind.absent : entry === ZERO ? PageKind.zero : PageKind.present;
