// Page tables of x86 as a kernel would write them, for guests that tests invent.

/** How a processor looks an address up: how many bits each table's index has, from the root on. */
export interface TestPaging {
  readonly levels: 2 | 3 | 4 | 5;
  readonly indexBits: readonly number[];
  readonly entryBytes: 4 | 8;
}

export const PAGING: Readonly<Record<2 | 3 | 4 | 5, TestPaging>> = {
  2: { levels: 2, indexBits: [10, 10], entryBytes: 4 },
  3: { levels: 3, indexBits: [2, 9, 9], entryBytes: 8 },
  4: { levels: 4, indexBits: [9, 9, 9, 9], entryBytes: 8 },
  5: { levels: 5, indexBits: [9, 9, 9, 9, 9], entryBytes: 8 },
};

const PRESENT = 1n;
const LARGE = 0x80n;

/** Tables in pages that are given out from `root` upwards. */
export class TestTables {
  readonly paging: TestPaging;
  readonly root: number;
  readonly #pages = new Map<number, Uint8Array>();
  #next: number;

  constructor(paging: TestPaging, root: number) {
    this.paging = paging;
    this.root = root;
    this.#next = root;
    this.#table();
  }

  /** Maps one page; `above` is how many levels above the last its entry is: 0 for 4 KiB. `more` are further bits of the entry. */
  map(virtual: bigint, physical: bigint, above = 0, more = 0n): void {
    const { indexBits } = this.paging;
    let table = this.root;
    for (let level = 0; level < indexBits.length - 1 - above; level += 1) {
      const index = this.#index(virtual, level);
      if (this.entry(table, index) === 0n) {
        this.put(table, index, BigInt(this.#table()) | PRESENT);
      }
      table = Number(this.entry(table, index) & ~0xfffn);
    }
    const last = indexBits.length - 1 - above;
    this.put(table, this.#index(virtual, last), physical | PRESENT | (above > 0 ? LARGE : 0n) | more);
  }

  entry(table: number, index: number): bigint {
    const view = this.#view(table);
    return this.paging.entryBytes === 8 ? view.getBigUint64(index * 8, true) : BigInt(view.getUint32(index * 4, true));
  }

  put(table: number, index: number, entry: bigint): void {
    const view = this.#view(table);
    if (this.paging.entryBytes === 8) {
      view.setBigUint64(index * 8, entry, true);
    } else {
      view.setUint32(index * 4, Number(entry), true);
    }
  }

  /** Pages for the kit of PCs, in a block that begins at address 0. */
  pagesOf(block: string): { block: string; offset: number; content: Uint8Array }[] {
    return [...this.#pages].map(([offset, content]) => ({ block, offset, content }));
  }

  #table(): number {
    const at = this.#next;
    this.#next += 4096;
    this.#pages.set(at, new Uint8Array(4096));
    return at;
  }

  #view(table: number): DataView {
    return new DataView(this.#pages.get(table)!.buffer);
  }

  #index(virtual: bigint, level: number): number {
    const { indexBits } = this.paging;
    const below = indexBits.slice(level + 1).reduce((sum, bits) => sum + bits, 12);
    return Number(BigInt.asUintN(indexBits[level]!, virtual >> BigInt(below)));
  }
}
