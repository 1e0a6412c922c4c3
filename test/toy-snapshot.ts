// A saved guest that is nothing but an array of pages, of any size: for what only reads pages.

import { type PageCounts, PageKind, type Snapshot } from '../src/format/snapshot.js';

export interface ToyBlock {
  readonly name: string;
  /** Content of each page; undefined where nothing is stored. */
  readonly pages: readonly (Uint8Array | undefined)[];
}

/** The parts of a snapshot that tell of pages; `flat` is all memory of a block. */
export const toySnapshot = (
  blocks: readonly ToyBlock[],
  pageSize: number,
  elsewhere: ReadonlySet<number> = new Set(),
): { readonly snapshot: Snapshot; readonly flat: readonly Uint8Array[]; readonly readPages: () => number } => {
  let readPages = 0;
  const flat = blocks.map(({ pages }) => {
    const bytes = new Uint8Array(pages.length * pageSize);
    for (const [index, page] of pages.entries()) {
      bytes.set(page ?? [], index * pageSize);
    }
    return bytes;
  });
  const isPresent = (block: number, page: number): boolean => blocks[block]!.pages[page] !== undefined;
  const snapshot: Pick<Snapshot, 'setup' | 'elsewhere' | 'counts' | 'kindOf' | 'nextPresent' | 'readPages'> = {
    setup: {
      targetPageSize: pageSize,
      blocks: blocks.map(({ name, pages }, index) => ({ name, index, usedLength: pages.length * pageSize })),
    } as unknown as Snapshot['setup'],
    elsewhere,
    counts: (block): PageCounts => {
      const presentPages = blocks[block]!.pages.filter((page) => page !== undefined).length;
      return { presentPages, zeroPages: 0, absentPages: blocks[block]!.pages.length - presentPages };
    },
    kindOf: (block, page) => (isPresent(block, page) ? PageKind.present : PageKind.absent),
    nextPresent: (block, from, end = blocks[block]!.pages.length as typeof from) => {
      let page: number = from;
      while (page < end && !isPresent(block, page)) {
        page += 1;
      }
      return page as typeof from;
    },
    readPages: (block, firstPage, pageCount, target) => {
      readPages += pageCount;
      target.set(flat[block]!.subarray(firstPage * pageSize, (firstPage + pageCount) * pageSize));
    },
  };
  return { snapshot: snapshot as Snapshot, flat, readPages: () => readPages };
};
