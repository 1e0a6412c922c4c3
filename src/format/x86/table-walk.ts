// All pages that page tables map, one after the other, without recursion and without an object for each.

import { TableEntry, type TableFormat, type TableLevel } from './table-format.js';

/** Fills `target` with a table; false if there is none. */
export type ReadTable = (address: number, target: Uint8Array) => boolean;

/** A table on the way from the root to a page. */
class OpenTable {
  readonly level: TableLevel;
  readonly entry: TableEntry;
  readonly bytes: Uint8Array;
  readonly #view: DataView;
  #next = 0;
  #firstPage = 0;
  /** Number of the first virtual page that `entry` covers. */
  page = 0;

  constructor(level: TableLevel, entryBytes: 4 | 8) {
    this.level = level;
    this.entry = new TableEntry(entryBytes);
    this.bytes = new Uint8Array(level.entries * entryBytes);
    this.#view = new DataView(this.bytes.buffer);
  }

  /** Begins with an entry; the first one covers the virtual pages from `page` on. */
  restart(page: number, entry = 0): void {
    this.#next = entry;
    this.#firstPage = page;
  }

  /** Goes to the next entry that is present; false if there is none. */
  advance(): boolean {
    const { entries, pages } = this.level;
    while (this.#next < entries) {
      const index = this.#next;
      this.#next += 1;
      if (this.entry.load(this.#view, index).isPresent) {
        this.page = this.#firstPage + index * pages;
        return true;
      }
    }
    return false;
  }
}

/**
 * What walks over the tables of several vCPUs have visited together. A kernel has the same tables below the first one in all of
 * them: nobody needs to visit those again.
 */
export class WalkedTables {
  tables = 0;
  mappings = 0;
  /** Addresses of tables by what they cover. */
  readonly #known = new Map<number, Set<number>>();

  /** Adds a table that covers the pages from `page` on, in a mode with so many levels; false if it was there before. */
  add(levels: number, page: number, address: number): boolean {
    const key = page * 8 + levels;
    const tables = this.#known.get(key) ?? new Set();
    if (tables.has(address)) {
      return false;
    }
    this.#known.set(key, tables.add(address));
    return true;
  }
}

/** Stands on one mapped page after the other, large ones included, in the order of virtual addresses. */
export class TableWalk {
  /** Number of the virtual page that it stands on, of the physical one, and how many pages of 4 KiB it has. */
  virtualPage = 0;
  physicalPage = 0;
  pages = 0;
  /** How many tables were read, each as often as it was reached. */
  tables = 0;
  readonly #open: readonly OpenTable[];
  readonly #root: number;
  readonly #readTable: ReadTable;
  readonly #walked: WalkedTables;
  readonly #firstEntry: number;
  #depth = -1;

  /** @param half whether only the upper half of the addresses is visited */
  constructor({ levels, entryBytes, root }: TableFormat, readTable: ReadTable, walked: WalkedTables, half: boolean) {
    this.#open = levels.map((level) => new OpenTable(level, entryBytes));
    this.#root = root;
    this.#readTable = readTable;
    this.#walked = walked;
    this.#firstEntry = half ? levels[0]!.entries / 2 : 0;
  }

  /** Goes on to the next page, or at the latest after `tableLimit` tables in all; false at the end, and at the limit. */
  next(tableLimit: number): boolean {
    if (this.tables === 0 && tableLimit > 0) {
      this.#enter(this.#root, 0, this.#firstEntry);
    }
    while (this.#depth >= 0) {
      const table = this.#open[this.#depth]!;
      if (!table.advance()) {
        this.#depth -= 1;
      } else if (table.entry.isLeaf(table.level)) {
        this.virtualPage = table.page;
        this.physicalPage = table.entry.firstPage(table.level);
        this.pages = table.level.pages;
        return true;
      } else if (this.#depth > 0 || this.#walked.add(this.#open.length, table.page, table.entry.table)) {
        if (this.tables >= tableLimit) {
          return false;
        }
        this.#enter(table.entry.table, table.page);
      }
    }
    return false;
  }

  /** Whether all pages were visited. */
  get isDone(): boolean {
    return this.tables > 0 && this.#depth < 0;
  }

  #enter(address: number, page: number, entry?: number): void {
    this.tables += 1;
    const table = this.#open[this.#depth + 1]!;
    if (this.#readTable(address, table.bytes)) {
      table.restart(page, entry);
      this.#depth += 1;
    }
  }
}
