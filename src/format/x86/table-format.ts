// What page tables look like in each paging mode.
//
//   levels   entries of          virtual bits of an entry's index      large pages
//   2        4 bytes             22, 12                                4 MiB (CR4.PSE)
//   3 (PAE)  8 bytes             30, 21, 12; 4 entries at the top      2 MiB
//   4, 5     8 bytes             [48,] 39, 30, 21, 12                  2 MiB, 1 GiB

import type { X86Registers } from './registers.js';

/** The registers that say where page tables are and how they are read. */
export type PagingRegisters = Pick<X86Registers, 'cpu' | 'cr3' | 'cr4' | 'mode' | 'pagingLevels'>;

/** The smallest page. Page numbers count pages of this size. */
export const PAGE_BYTES = 4096;

const PRESENT = 1 << 0;
/** In an entry above the last level: it maps memory itself. */
const LARGE = 1 << 7;
const CR4_PAGE_SIZE = 1n << 4n;

/** Tables of one level. */
export interface TableLevel {
  readonly entries: number;
  /** Pages that an entry covers. */
  readonly pages: number;
  readonly mayBeLarge: boolean;
}

/** Tables of one paging mode. */
export interface TableFormat {
  /** From the root on. */
  readonly levels: readonly TableLevel[];
  readonly entryBytes: 4 | 8;
  /** Where the first table is. */
  readonly root: number;
  /** Bits of a virtual address. Those above are copies of the highest, in 64-bit modes. */
  readonly virtualBits: 32 | 48 | 57;
}

/** The tables of a vCPU with paging, that is with `pagingLevels` above 0. */
export const tableFormat = ({ cr3, cr4, pagingLevels }: PagingRegisters): TableFormat => {
  const rootAt = (bits: bigint, alignment: bigint): number => Number(cr3 & ((1n << bits) - alignment));
  const level = (pages: number, mayBeLarge: boolean, entries = 512): TableLevel => ({ pages, mayBeLarge, entries });
  const last = [level(512, true), level(1, false)];
  if (pagingLevels === 2) {
    const levels = [level(1024, (cr4 & CR4_PAGE_SIZE) !== 0n, 1024), level(1, false, 1024)];
    return { levels, entryBytes: 4, root: rootAt(32n, 4096n), virtualBits: 32 };
  }
  if (pagingLevels === 3) {
    return { levels: [level(512 ** 2, false, 4), ...last], entryBytes: 8, root: rootAt(32n, 32n), virtualBits: 32 };
  }
  const four = [level(512 ** 3, false), level(512 ** 2, true), ...last];
  const root = rootAt(52n, 4096n);
  return pagingLevels === 5
    ? { levels: [level(512 ** 4, false), ...four], entryBytes: 8, root, virtualBits: 57 }
    : { levels: four, entryBytes: 8, root, virtualBits: 48 };
};

/** An entry of a table. One object is loaded with one after the other, since a walk meets hundreds of millions. */
export class TableEntry {
  readonly #bytes: 4 | 8;
  /** The lower word says what the entry is; which page it refers to takes both. */
  #low = 0;
  #high = 0;

  constructor(bytes: 4 | 8) {
    this.#bytes = bytes;
  }

  load(table: DataView, index: number): this {
    this.#low = table.getUint32(index * this.#bytes, true);
    this.#high = this.#bytes === 8 ? table.getUint32(index * 8 + 4, true) : 0;
    return this;
  }

  get isPresent(): boolean {
    return (this.#low & PRESENT) !== 0;
  }

  /** Whether it maps memory itself, at this level. */
  isLeaf({ pages, mayBeLarge }: TableLevel): boolean {
    return pages === 1 || (mayBeLarge && (this.#low & LARGE) !== 0);
  }

  /** Address of the table of the next level. */
  get table(): number {
    return this.#page * PAGE_BYTES;
  }

  /** Number of the first page of what a leaf maps. */
  firstPage({ pages }: TableLevel): number {
    if (this.#bytes === 4 && pages > 1) {
      // 4 MiB: bits 13 to 20 are bits 32 to 39 of the address.
      return ((this.#low >>> 13) & 0xff) * 2 ** 20 + (this.#low >>> 22) * 1024;
    }
    return this.#page - (this.#page % pages);
  }

  /** 40 bits; above them are keys and the no-execute bit. */
  get #page(): number {
    return (this.#high & 0xf_ffff) * 2 ** 20 + (this.#low >>> 12);
  }
}
