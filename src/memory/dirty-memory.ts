// The dirty map of the flat ram address space, which grows while other threads use it (spec/algorithms.md section 4).
//
//   client slots (header)        generation of a client            bitmap blocks, 2^21 bits each
//   | vga | code | migration |   | count | block 0 | block 1 |     never moved, never freed (DM-2)
//      │                            ▲        │         └───────▶ | 0 0 1 0 … |
//      └── Atomics.load, once ──────┘        └─────────────────▶ | 1 0 0 0 … |
//          per operation
//
// Growing writes a new generation out of the old pointers and those of new, zeroed blocks, and publishes it with one
// Atomics.store. An operation that still works on the old one finds there all pages that existed when it began (DM-3).
// Old generations are never freed nor reused: no reader can hold one that was reclaimed (DM-25), so no grace period
// and no read section is needed. The price is bounded: the flat space has 1024 blocks, so that even growing one block at a
// time through all of it leaves 3 x 4 x 1024^2 / 2 bytes, 6 MiB, behind.
//
// Only the owner of the list grows it, so there is no lock. Everything else may be called by any thread at any time.

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { BitmapMemory } from './bitmap-memory.js';
import { DirtySnapshot } from './dirty-snapshot.js';
import type { RamBlock } from './ram-block.js';
import { type RamPage, ramPage } from './units.js';
import { maskOfBits, populationCount } from './words.js';

/** Who wants to know about dirty pages. */
export const DirtyClient = { vga: 0, code: 1, migration: 2 } as const;
export type DirtyClient = (typeof DirtyClient)[keyof typeof DirtyClient];

const CLIENTS: readonly DirtyClient[] = Object.values(DirtyClient);

/** A set of clients, as the sum of their `DirtyClientMask`. */
export const DirtyClientMask = { vga: 1, code: 2, migration: 4, all: 7 } as const;

const clientsOf = (mask: number): DirtyClient[] => CLIENTS.filter((client) => (mask & (1 << client)) !== 0);

/** Pages of one bitmap block: 8 GiB of guest RAM in 256 KiB of bitmap. */
export const DIRTY_BLOCK_PAGES = 2 ** 21;
const BLOCK_SHIFT = 21;
const IN_BLOCK = DIRTY_BLOCK_PAGES - 1;

/** Header words: one slot per client with the address of its generation, then the mask of clients that merges feed. */
const TRACKING_WORD = CLIENTS.length;
const HEADER_BITS = (TRACKING_WORD + 1) * 32;

export class DirtyMemory {
  /** Where it is in the bitmap memory; `attach` takes it. */
  readonly header: number;
  readonly #bitmaps: BitmapMemory;
  readonly #words: Int32Array;

  private constructor(bitmaps: BitmapMemory, header: number) {
    this.header = header;
    this.#bitmaps = bitmaps;
    this.#words = bitmaps.words;
  }

  /** An empty map. Merges feed the display client; the others are switched on by `migrationTracking`, `codeTracking`. */
  static create(bitmaps: BitmapMemory): DirtyMemory {
    const dirty = new DirtyMemory(bitmaps, bitmaps.allocate(HEADER_BITS));
    for (const client of CLIENTS) {
      dirty.#publish(client, []);
    }
    dirty.#track(DirtyClientMask.vga, true);
    return dirty;
  }

  /** The same map in another thread. */
  static attach(bitmaps: BitmapMemory, header: number): DirtyMemory {
    return new DirtyMemory(bitmaps, header);
  }

  /** Whether merges feed the migration client (DM-19): on while a migration or a dirty-rate measurement runs. */
  get migrationTracking(): boolean {
    return (this.trackingClients & DirtyClientMask.migration) !== 0;
  }
  set migrationTracking(on: boolean) {
    this.#track(DirtyClientMask.migration, on);
  }

  /** Whether merges feed the translated-code client: on where the CPU is emulated. */
  get codeTracking(): boolean {
    return (this.trackingClients & DirtyClientMask.code) !== 0;
  }
  set codeTracking(on: boolean) {
    this.#track(DirtyClientMask.code, on);
  }

  /** The clients that merges feed. */
  get trackingClients(): number {
    return Atomics.load(this.#words, this.#slot(TRACKING_WORD));
  }

  /** Bitmap blocks of each client; only grows (DM-7). */
  get blockCount(): number {
    return this.#blockAddresses(DirtyClient.migration).length;
  }

  /** Byte addresses of a client's bitmap blocks in the bitmap memory, in flat order. */
  blockAddresses(client: DirtyClient): readonly number[] {
    return [...this.#blockAddresses(client)];
  }

  /** Owner only: covers the flat space up to `endPage`. Never shrinks. */
  grow(endPage: number): void {
    const count = Math.ceil(endPage / DIRTY_BLOCK_PAGES);
    for (const client of CLIENTS) {
      const blocks = [...this.#blockAddresses(client)];
      if (count > blocks.length) {
        while (blocks.length < count) {
          blocks.push(this.#bitmaps.allocate(DIRTY_BLOCK_PAGES));
        }
        this.#publish(client, blocks);
      }
    }
  }

  /** Whether a page of the range is dirty for the client. */
  anyDirty(first: RamPage, pageCount: number, client: DirtyClient): boolean {
    const { kernels } = this.#bitmaps;
    return this.#some(client, first, pageCount, (block, bit, bits) => {
      return kernels.findNextSet(block, bit, bit + bits) < bit + bits;
    });
  }

  /** Whether every page of the range is dirty for the client. */
  allDirty(first: RamPage, pageCount: number, client: DirtyClient): boolean {
    const { kernels } = this.#bitmaps;
    return !this.#some(client, first, pageCount, (block, bit, bits) => {
      return kernels.findNextClear(block, bit, bit + bits) < bit + bits;
    });
  }

  /** Those of `clients` (mask) for which a page of the range is clean. */
  includesClean(first: RamPage, pageCount: number, clients: number): number {
    let including = 0;
    for (const client of clientsOf(clients)) {
      including |= this.allDirty(first, pageCount, client) ? 0 : 1 << client;
    }
    return including;
  }

  /** Whether the page is clean for at least one client, so that a store to it has still to be noticed. */
  isClean(page: RamPage): boolean {
    return this.includesClean(page, 1, DirtyClientMask.all) !== 0;
  }

  /** Marks one page for `clients` (mask). */
  setPage(page: RamPage, clients: number): void {
    for (const client of CLIENTS) {
      if ((clients & (1 << client)) !== 0) {
        const generation = this.#generation(client);
        this.#checkCovered(generation, page, 1);
        const block = this.#words[generation + 1 + (page >>> BLOCK_SHIFT)]!;
        Atomics.or(this.#words, (block >>> 2) + ((page & IN_BLOCK) >>> 5), 1 << (page & 31));
      }
    }
  }

  /** Marks a range for `clients` (mask). */
  setRange(first: RamPage, pageCount: number, clients: number): void {
    for (const client of clientsOf(clients)) {
      this.#forEach(client, first, pageCount, (block, bit, bits) => this.#bitmaps.kernels.setRange(block, bit, bits));
    }
  }

  /**
   * Marks what a tracker reports, for every tracking client: bit n of the bitmap at byte address `bitmap` of the bitmap memory
   * (a multiple of 8) stands for the n-th host page from `first` on. The bitmap may be longer than the range, and
   * is not changed. Returns the number of its bits that are set within the range.
   */
  mergeLittleEndian(bitmap: number, first: RamPage, pageCount: number, hostPageSize = GUEST_PAGE_SIZE): number {
    const { kernels } = this.#bitmaps;
    const perBit = hostPageSize / GUEST_PAGE_SIZE;
    const bitCount = Math.ceil(pageCount / perBit);
    const words = perBit === 1 && first % 64 === 0 ? Math.floor(pageCount / 64) : 0;
    const clients = this.trackingClients;
    for (const client of clientsOf(clients)) {
      this.#forEach(client, first, words * 64, (block, bit, bits, done) => {
        kernels.merge(bitmap + done / 8, block + bit / 8, bits / 64);
      });
    }
    // What the word-wise merge cannot take goes run by run: all of an unaligned range, the last pages of an aligned one.
    for (let from = words * 64; (from = kernels.findNextSet(bitmap, from, bitCount)) < bitCount; ) {
      const to = kernels.findNextClear(bitmap, from, bitCount);
      const pages = Math.min(to * perBit, pageCount) - from * perBit;
      this.setRange(ramPage(first + from * perBit), pages, clients);
      from = to;
    }
    return kernels.countRange(bitmap, 0, bitCount);
  }

  /**
   * Copies the marks of a block's dirty log onward: REMOTE is ORed into SNAP and into every tracking client, and keeps its
   * bits (TS-9). Every client has them before this returns, hence before anybody clears the log (G-6). Returns how
   * many bits REMOTE had.
   */
  fetchLog(block: RamBlock): number {
    const { kernels } = this.#bitmaps;
    const { remote, snapshot } = block.bitmaps;
    const pageCount = Math.ceil(block.usedPages / 64) * 64;
    const [leader, ...others] = clientsOf(this.trackingClients);
    let seen = 0;
    if (leader !== undefined) {
      this.#forEach(leader, block.ramPage, pageCount, (global, bit, bits, done) => {
        seen += kernels.fetchLog(remote + done / 8, snapshot + done / 8, global + bit / 8, bits / 64);
      });
    }
    // From SNAP, not again from REMOTE: a mark that came meanwhile is in no client yet, or in all of them.
    for (const client of others) {
      this.#forEach(client, block.ramPage, pageCount, (global, bit, bits, done) => {
        kernels.merge(snapshot + done / 8, global + bit / 8, bits / 64);
      });
    }
    return seen;
  }

  /** Clears a range for one client; true if a page in it was dirty (DM-12). */
  testAndClear(first: RamPage, pageCount: number, client: DirtyClient): boolean {
    let cleared = 0;
    this.#forEach(client, first, pageCount, (block, bit, bits) => {
      cleared += this.#bitmaps.kernels.testAndClearRange(block, bit, bits);
    });
    return cleared > 0;
  }

  /**
   * Moves the migration client's bits of pages [firstPage, firstPage + pageCount) of `block` into its send bitmap, which the
   * caller owns. Returns how many became set there that were clear (DM-13).
   */
  syncInto(block: RamBlock, firstPage = 0, pageCount = block.usedPages - firstPage): number {
    const { kernels } = this.#bitmaps;
    const { send } = block.bitmaps;
    let fresh = 0;
    this.#forEach(DirtyClient.migration, block.ramPage + firstPage, pageCount, (global, bit, bits, done) => {
      // Both bitmaps have the page at the same place of a 64-bit word, since blocks start at multiples of 64 pages (DM-8).
      const shift = firstPage + done - bit;
      const end = bit + bits;
      const bodyStart = Math.min(end, Math.ceil(bit / 64) * 64);
      const bodyEnd = Math.max(bodyStart, Math.floor(end / 64) * 64);
      fresh += this.#syncWithinWords(global, bit, bodyStart, send, shift);
      fresh += kernels.sync(global + bodyStart / 8, send + (bodyStart + shift) / 8, (bodyEnd - bodyStart) / 64);
      fresh += this.#syncWithinWords(global, bodyEnd, end, send, shift);
    });
    return fresh;
  }

  /**
   * Takes and clears the client's bits of a range, widened on both sides to multiples of 64 pages (DM-24): every mark ends up
   * in exactly one snapshot (DM-26).
   */
  snapshotAndClear(first: RamPage, pageCount: number, client: DirtyClient): DirtySnapshot {
    const start = Math.floor(first / 64) * 64;
    const end = Math.ceil((first + pageCount) / 64) * 64;
    const taken = new Int32Array((end - start) / 32);
    this.#forEach(client, start, end - start, (block, bit, bits, done) => {
      const from = (block >>> 2) + (bit >>> 5);
      for (let word = 0; word < bits >>> 5; word += 1) {
        if (this.#words[from + word] !== 0) {
          taken[(done >>> 5) + word] = Atomics.exchange(this.#words, from + word, 0);
        }
      }
    });
    return new DirtySnapshot(ramPage(start), taken);
  }

  /** `sync` for a range that begins or ends inside a 64-bit word: other bits of the word stay (DM-15, DM-16). */
  #syncWithinWords(global: number, from: number, to: number, send: number, shift: number): number {
    const words = this.#words;
    let fresh = 0;
    for (let bit = from; bit < to; ) {
      const next = Math.min(to, (bit | 31) + 1);
      const mask = maskOfBits(bit, next);
      const source = (global >>> 2) + (bit >>> 5);
      if ((words[source]! & mask) !== 0) {
        const target = (send >>> 2) + ((bit + shift) >>> 5);
        const moved = Atomics.and(words, source, ~mask) & mask;
        fresh += populationCount(moved & ~words[target]!);
        words[target]! |= moved;
      }
      bit = next;
    }
    return fresh;
  }

  /**
   * Visits the pieces of a range that lie in one bitmap block each (DM-9), with the address of the block, the bits in it, and
   * how many pages came before; the generation is loaded once. Stops and returns true when `visit` does.
   */
  #some(
    client: DirtyClient,
    first: number,
    pageCount: number,
    visit: (block: number, bit: number, bits: number, done: number) => boolean,
  ): boolean {
    const generation = this.#generation(client);
    this.#checkCovered(generation, first, pageCount);
    for (let done = 0; done < pageCount; ) {
      const bit = (first + done) & IN_BLOCK;
      const bits = Math.min(pageCount - done, DIRTY_BLOCK_PAGES - bit);
      if (visit(this.#words[generation + 1 + ((first + done) >>> BLOCK_SHIFT)]!, bit, bits, done)) {
        return true;
      }
      done += bits;
    }
    return false;
  }

  #forEach(
    client: DirtyClient,
    first: number,
    pageCount: number,
    visit: (block: number, bit: number, bits: number, done: number) => void,
  ): void {
    this.#some(client, first, pageCount, (block, bit, bits, done) => {
      visit(block, bit, bits, done);
      return false;
    });
  }

  /** Word index of the client's current generation. */
  #generation(client: DirtyClient): number {
    return Atomics.load(this.#words, this.#slot(client)) >>> 2;
  }

  #blockAddresses(client: DirtyClient): Int32Array {
    const generation = this.#generation(client);
    return this.#words.subarray(generation + 1, generation + 1 + this.#words[generation]!);
  }

  /** No operation indexes past the length of the generation it loaded (TS-7). */
  #checkCovered(generation: number, first: number, pageCount: number): void {
    const covered = this.#words[generation]! * DIRTY_BLOCK_PAGES;
    if (!(first >= 0 && pageCount >= 0 && first + pageCount <= covered)) {
      throw new RangeError(`Ram pages ${first} to ${first + pageCount} are outside the dirty map of ${covered} pages`);
    }
  }

  #publish(client: DirtyClient, blocks: readonly number[]): void {
    const generation = this.#bitmaps.allocate((1 + blocks.length) * 32);
    this.#words.set([blocks.length, ...blocks], generation >>> 2);
    Atomics.store(this.#words, this.#slot(client), generation);
  }

  #track(clients: number, on: boolean): void {
    if (on) {
      Atomics.or(this.#words, this.#slot(TRACKING_WORD), clients);
    } else {
      Atomics.and(this.#words, this.#slot(TRACKING_WORD), ~clients);
    }
  }

  #slot(word: number): number {
    return (this.header >>> 2) + word;
  }
}
