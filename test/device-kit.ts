// Guest memory for the tests of devices: two small RAM blocks, of which one is seen in two parts, and a record of marks.

import { GUEST_PAGE_SIZE } from '../kernels/kernels.js';
import { GuestMemory, type MemoryRegion } from '../src/device/index.js';
import { guestAddress, type RamBlock, RamBlockList } from '../src/memory/index.js';

/**
 *   guest address   0 ........ 1 MiB ..... 2 MiB ..... 16 MiB .. 17 MiB
 *                   | low half |    hole    | high half | hole   | dimm |
 *                   '------------ pc.ram, 2 MiB -------'
 */
export const LOW_BYTES = 2 ** 20;
export const HIGH_START = 2 * 2 ** 20;
export const DIMM_START = 16 * 2 ** 20;

export interface TestMachine {
  readonly blocks: RamBlockList;
  readonly ram: RamBlock;
  readonly dimm: RamBlock;
  readonly regions: readonly MemoryRegion[];
}

export const testMachine = (): TestMachine => {
  // Extents of 64 pages: what is contiguous for the guest is not for us.
  const blocks = RamBlockList.create({ segmentBytes: 256 * GUEST_PAGE_SIZE });
  const ram = blocks.add({ name: 'pc.ram', usedLength: 2 * LOW_BYTES });
  const dimm = blocks.add({ name: 'dimm0', usedLength: LOW_BYTES, maxLength: 2 * LOW_BYTES });
  return {
    blocks,
    ram,
    dimm,
    regions: [
      { guestAddress: guestAddress(DIMM_START), block: dimm, offset: 0, bytes: dimm.maxLength },
      { guestAddress: guestAddress(0), block: ram, offset: 0, bytes: LOW_BYTES },
      { guestAddress: guestAddress(HIGH_START), block: ram, offset: LOW_BYTES, bytes: LOW_BYTES },
    ],
  };
};

/** Memory of which `marks` holds `block:page` for every page that was reported dirty. */
export const markedMemory = (machine: TestMachine): { memory: GuestMemory; marks: Set<string> } => {
  const marks = new Set<string>();
  const memory = new GuestMemory(machine.regions, {
    markRange: (block, first, count) => {
      for (let page = first; page < first + count; page += 1) {
        marks.add(`${block.name}:${page}`);
      }
    },
  });
  return { memory, marks };
};
