// Page tables of x86 vCPUs: from virtual to guest-physical addresses. What the tables look like is in table-format.ts.
//
// The tables are the guest's: they may refer to each other in circles, on purpose (Windows maps its own tables so) or not.

import { RamferryError } from '../../memory/errors.js';
import { hex } from '../invalid.js';
import type { PhysicalMemory } from '../physical-memory.js';
import { PAGE_BYTES, type PagingRegisters, TableEntry, type TableFormat, tableFormat } from './table-format.js';
import { TableWalk, WalkedTables } from './table-walk.js';

export type { PagingRegisters } from './table-format.js';
export { WalkedTables } from './table-walk.js';

/** Bytes from `virtual` on are the guest's memory from `physical` on. */
export interface VirtualMapping {
  /** Canonical, as 64 bits without a sign: kernel addresses begin at 0xffff8000_00000000. */
  readonly virtual: bigint;
  readonly physical: number;
  readonly bytes: number;
}

/** Where a virtual address is. */
export interface Translation {
  readonly physical: number;
  /** Size of the page that it is in: 4 KiB, 2 MiB, 4 MiB or 1 GiB. */
  readonly pageBytes: number;
}

/** What a walk over all tables may take. */
export interface WalkLimits {
  /** Most tables read, one that is reached in two ways counted twice. By default a million, enough for 2 TiB in pages of 4 KiB. */
  readonly tables?: number;
  /** Most mappings; by default 16 million. */
  readonly mappings?: number;
}

/** A walk that is one of several. */
export interface WalkOptions extends WalkLimits {
  /** Only the half of the addresses that kernels use. */
  readonly isUpperHalf?: boolean;
  /**
   * What walks before this one have visited: the tables that they have in common are left out, and the limits are those of all
   * together.
   */
  readonly walked?: WalkedTables;
}

const TABLE_LIMIT = 2 ** 20;
const MAPPING_LIMIT = 2 ** 24;

/**
 * The page tables that a vCPU had in use.
 *
 * With page-table isolation, those of a vCPU that ran a program have little of the kernel.
 */
export class PageTables {
  readonly #memory: PhysicalMemory;
  readonly #format: TableFormat;

  /**
   * @param registers of one vCPU, `x86Registers(…)[n]`
   * @throws RamferryError `failed`, `NOT_PAGED`, if the vCPU had no paging
   */
  constructor(memory: PhysicalMemory, registers: PagingRegisters) {
    const { cpu, mode, pagingLevels } = registers;
    if (pagingLevels === 0) {
      throw new RamferryError(
        'failed',
        'NOT_PAGED',
        `vCPU ${cpu} ran without paging, in ${mode} mode: it has no page tables, and its addresses are guest-physical ones.`,
        { value: cpu },
      );
    }
    this.#memory = memory;
    this.#format = tableFormat(registers);
  }

  /** Guest-physical address of the first table. */
  get root(): number {
    return this.#format.root;
  }

  /** First address of the upper half of the address space, which kernels use. */
  get upperHalf(): bigint {
    const { virtualBits } = this.#format;
    return this.#canonical(2 ** (virtualBits - 1) / PAGE_BYTES);
  }

  /**
   * @param virtual an address without a sign
   * @throws RamferryError `failed`: `NOT_MAPPED` if the guest has nothing there, `NOT_CANONICAL` if no guest could, and as
   *   `PhysicalMemory.read` if a table is not in the file
   */
  translate(virtual: bigint): Translation {
    if (!this.#isCanonical(virtual)) {
      throw new RamferryError(
        'failed',
        'NOT_CANONICAL',
        `${hex(virtual)} is no address of this vCPU: its addresses have ${this.#format.virtualBits} bits.`,
        { value: hex(virtual) },
      );
    }
    const translation = this.#follow(virtual);
    if (translation === undefined) {
      throw new RamferryError('failed', 'NOT_MAPPED', `Virtual address ${hex(virtual)} is not mapped.`, {
        value: hex(virtual),
      });
    }
    return translation;
  }

  /** The same, but undefined for an address that is not mapped, or not canonical. */
  tryTranslate(virtual: bigint): Translation | undefined {
    return this.#isCanonical(virtual) ? this.#follow(virtual) : undefined;
  }

  /**
   * All that is mapped, in the order of virtual addresses as numbers without a sign; neighbours in both address spaces are
   * one. What is mapped need not be memory: devices are mapped, too. Tables at addresses where the guest has no memory hold
   * nothing.
   * @throws RamferryError `failed`: `PAGE_TABLES_ENDLESS` beyond the limits, and as `PhysicalMemory.read` if a table is not in
   *   the file
   */
  *mappings(options: WalkOptions = {}): Generator<VirtualMapping, void, undefined> {
    const {
      tables = TABLE_LIMIT,
      mappings = MAPPING_LIMIT,
      isUpperHalf = false,
      walked = new WalkedTables(),
    } = options;
    const isFirst = walked.tables === 0;
    const most = tables - walked.tables;
    const readTable = (address: number, target: Uint8Array): boolean => this.#readTable(address, target);
    const walk = new TableWalk(this.#format, readTable, walked, isUpperHalf);
    let isMore = walk.next(most);
    while (isMore) {
      if (walked.mappings === mappings) {
        throw this.#endless(`${mappings} pieces of memory`, isFirst);
      }
      walked.mappings += 1;
      const { virtualPage, physicalPage } = walk;
      let { pages } = walk;
      for (isMore = walk.next(most); isMore; isMore = walk.next(most)) {
        const isNext = walk.virtualPage === virtualPage + pages && walk.physicalPage === physicalPage + pages;
        if (!isNext || this.#isUpperHalf(walk.virtualPage)) {
          break;
        }
        pages += walk.pages;
      }
      const virtual = this.#canonical(virtualPage);
      yield { virtual, physical: physicalPage * PAGE_BYTES, bytes: pages * PAGE_BYTES };
    }
    walked.tables += walk.tables;
    if (!walk.isDone) {
      throw this.#endless(`${tables} page tables`, isFirst);
    }
  }

  /** Whether there is a table: where the guest has no memory there is none. */
  #readTable(address: number, target: Uint8Array): boolean {
    if (this.#memory.tryRead(address, target)) {
      return true;
    }
    if (!this.#memory.isHole(address)) {
      this.#memory.read(address, target); // Says why it cannot be read.
    }
    return false;
  }

  /** Follows the tables to a canonical address. */
  #follow(virtual: bigint): Translation | undefined {
    const { levels, root, entryBytes, virtualBits } = this.#format;
    const address = BigInt.asUintN(virtualBits, virtual);
    const page = Number(address >> 12n);
    const view = new DataView(new ArrayBuffer(entryBytes));
    const bytes = new Uint8Array(view.buffer);
    const entry = new TableEntry(entryBytes);
    let table = root;
    for (const level of levels) {
      const index = Math.floor(page / level.pages) % level.entries;
      if (!this.#readTable(table + index * entryBytes, bytes) || !entry.load(view, 0).isPresent) {
        return undefined;
      }
      if (entry.isLeaf(level)) {
        const physicalPage = entry.firstPage(level) + (page % level.pages);
        return {
          physical: physicalPage * PAGE_BYTES + Number(address & 0xfffn),
          pageBytes: level.pages * PAGE_BYTES,
        };
      }
      table = entry.table;
    }
    return undefined;
  }

  #isCanonical(virtual: bigint): boolean {
    const { virtualBits } = this.#format;
    return virtualBits === 32
      ? BigInt.asUintN(32, virtual) === virtual
      : BigInt.asUintN(64, BigInt.asIntN(virtualBits, virtual)) === virtual;
  }

  /** Whether it is the first page of the upper half, before which addresses jump. */
  #isUpperHalf(page: number): boolean {
    const { virtualBits } = this.#format;
    return virtualBits > 32 && page === 2 ** (virtualBits - 1) / PAGE_BYTES;
  }

  #canonical(page: number): bigint {
    const { virtualBits } = this.#format;
    const address = BigInt(page) * BigInt(PAGE_BYTES);
    return virtualBits === 32 ? address : BigInt.asUintN(64, BigInt.asIntN(virtualBits, address));
  }

  #endless(what: string, isFirst: boolean): RamferryError {
    const tables = `The page table at ${hex(this.root)} ${isFirst ? 'leads' : 'and those of other vCPUs lead'}`;
    return new RamferryError(
      'failed',
      'PAGE_TABLES_ENDLESS',
      `${tables} to more than ${what}, as tables do that refer to each other.`,
      { value: hex(this.root) },
    );
  }
}
