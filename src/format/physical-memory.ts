// Guest memory by guest-physical address, for whoever follows pointers through it: page tables, kernel structures, `read`.

import { RamferryError } from '../memory/errors.js';
import { pageIndex } from '../memory/units.js';
import { elsewhereText } from './elsewhere.js';
import { hex } from './invalid.js';
import type { PhysicalMap } from './physical-map.js';
import type { Snapshot } from './snapshot.js';

/** Pages that stay in memory. Following pointers comes back to the same few: the upper levels of page tables, a list's nodes. */
const CACHED_PAGES = 256;

/**
 * Random access to the memory of an opened file by guest-physical address.
 *
 * Pages that are zero or absent read as zero and cost no I/O. Single pages and pieces of pages go through a small cache; what
 * is longer is read where it goes.
 */
export class PhysicalMemory {
  readonly map: PhysicalMap;
  readonly #snapshot: Snapshot;
  /** For each block the number of pages in the blocks before it, so that every page of the guest has a number. */
  readonly #firstPages: readonly number[];
  /** Which page is in which slot of the cache, by its number; -1 for none. */
  readonly #cached = new Float64Array(CACHED_PAGES).fill(-1);
  #cache: Uint8Array = new Uint8Array(0);
  /** Whether it is known where all of the guest's memory lies. */
  readonly #isPlaced: boolean;

  /** @param map `physicalMap(snapshot)` */
  constructor(snapshot: Snapshot, map: PhysicalMap) {
    this.#snapshot = snapshot;
    this.map = map;
    this.#isPlaced = map.unplaced.every(({ kind }) => kind !== 'memory');
    const { blocks, targetPageSize } = snapshot.setup;
    let pages = 0;
    this.#firstPages = blocks.map(({ usedLength }) => {
      const first = pages;
      pages += Math.ceil(usedLength / targetPageSize);
      return first;
    });
  }

  /**
   * Fills `target` with the memory from `address` on.
   * @throws RamferryError `failed`: `NO_MEMORY` if some of it is no memory, or memory whose address the file does not say,
   *   `MEMORY_ELSEWHERE` if the file leaves it out
   */
  read(address: number, target: Uint8Array): void {
    const done = this.#readSome(address, target);
    if (done < target.length) {
      throw this.#missing(address + done);
    }
  }

  /** The same, but says with false that not all of it is in the file. What `target` holds then is not specified. */
  tryRead(address: number, target: Uint8Array): boolean {
    return this.#readSome(address, target) === target.length;
  }

  /** Whether the guest has nothing at this address, as opposed to memory that the file leaves out or does not place. */
  isHole(address: number): boolean {
    return this.map.at(address) === undefined && this.#isPlaced;
  }

  /** Reads up to the first byte that is not in the file; returns how many bytes it read. */
  #readSome(address: number, target: Uint8Array): number {
    let done = 0;
    while (done < target.length) {
      const range = this.map.at(address + done);
      if (range === undefined || this.#snapshot.elsewhere.has(range.block)) {
        break;
      }
      const within = address + done - range.address;
      const bytes = Math.min(target.length - done, range.bytes - within);
      this.#readBlock(range.block, range.offset + within, target.subarray(done, done + bytes));
      done += bytes;
    }
    return done;
  }

  #readBlock(block: number, offset: number, target: Uint8Array): void {
    const { targetPageSize: pageSize } = this.#snapshot.setup;
    let done = 0;
    while (done < target.length) {
      const page = Math.floor((offset + done) / pageSize);
      const within = offset + done - page * pageSize;
      const wholePages = within === 0 ? Math.floor((target.length - done) / pageSize) : 0;
      if (wholePages > 1) {
        const piece = target.subarray(done, done + wholePages * pageSize);
        this.#snapshot.readPages(block, pageIndex(page), wholePages, piece);
        done += piece.length;
      } else {
        const piece = this.#page(block, page).subarray(within, within + target.length - done);
        target.set(piece, done);
        done += piece.length;
      }
    }
  }

  /** The page in the cache, valid until the next call. */
  #page(block: number, page: number): Uint8Array {
    const { targetPageSize: pageSize } = this.#snapshot.setup;
    if (this.#cache.length === 0) {
      this.#cache = new Uint8Array(CACHED_PAGES * pageSize);
    }
    const number = this.#firstPages[block]! + page;
    const slot = number % CACHED_PAGES;
    const bytes = this.#cache.subarray(slot * pageSize, (slot + 1) * pageSize);
    if (this.#cached[slot] !== number) {
      // A read that fails must not leave half a page under the name of the old one.
      this.#cached[slot] = -1;
      this.#snapshot.readPages(block, pageIndex(page), 1, bytes);
      this.#cached[slot] = number;
    }
    return bytes;
  }

  #missing(address: number): RamferryError {
    const range = this.map.at(address);
    if (range !== undefined) {
      const { name } = this.#snapshot.setup.blocks[range.block]!;
      return new RamferryError('failed', 'MEMORY_ELSEWHERE', elsewhereText(name), { value: name });
    }
    const unplaced = this.map.unplaced.filter(({ kind }) => kind === 'memory');
    const hint = unplaced.map((each) => each.hint ?? each.reason).join(' ');
    return new RamferryError(
      'failed',
      'NO_MEMORY',
      unplaced.length === 0
        ? `The guest has no memory at address ${hex(address)}.`
        : `No memory at address ${hex(address)} is known: the file does not say where all of the guest's memory lies.`,
      { value: hex(address), ...(hint !== '' && { hint }) },
    );
  }
}
