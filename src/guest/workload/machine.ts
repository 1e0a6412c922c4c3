// The machine of the workload guest: which RAM blocks it has, and which of them its writers share.

import { GUEST_PAGE_SIZE } from '../../../kernels/kernels.js';
import type { RamBlock, RamBlockList } from '../../memory/index.js';
import { pageKey } from './pattern.js';

/** Machine type name in the configuration element of streams. */
export const WORKLOAD_MACHINE = 'ramferry-workload';

const RAM_BLOCK = 'pc.ram';
const VIDEO_BLOCK = 'vga.vram';
/** Holds a pattern that nobody changes. */
export const ROM_BLOCK = 'pc.rom';
export const ROM_GENERATION = 1;

/** As in QEMU's PC; 32 pages, so that a block that is no multiple of 64 pages is always among those migrated. */
const ROM_BYTES = 128 * 1024;
/** Small, so that it costs a demo nothing; QEMU's has 16 MiB. */
const VIDEO_BYTES = 1024 * 1024;

const plugged = (index: number): string => `dimm${index}`;

/** Adds the blocks that the machine starts with. */
export function addBlocks(blocks: RamBlockList, memoryBytes: number): void {
  blocks.add({ name: RAM_BLOCK, usedLength: memoryBytes });
  blocks.add({ name: VIDEO_BLOCK, usedLength: VIDEO_BYTES });
  const rom = blocks.add({ name: ROM_BLOCK, usedLength: ROM_BYTES });
  rom.forEachRange(0, rom.usedPages, ({ segment, address, firstPage }, first, pageCount) => {
    for (let page: number = first; page < first + pageCount; page += 1) {
      segment.kernels.fillPattern(address + (page - firstPage) * GUEST_PAGE_SIZE, pageKey(rom, page), ROM_GENERATION);
    }
  });
}

/** Adds a memory module. */
export function plugBlock(blocks: RamBlockList, bytes: number): RamBlock {
  let index = 0;
  while (blocks.find(plugged(index)) !== undefined) {
    index += 1;
  }
  return blocks.add({ name: plugged(index), usedLength: bytes });
}

/** The blocks that writers write to, in the order in which the machine got them: the same on both sides of a migration. */
export function writableBlocks(blocks: RamBlockList): RamBlock[] {
  const found: RamBlock[] = [];
  const names = [RAM_BLOCK, VIDEO_BLOCK];
  for (let index = 0; ; index += 1) {
    const block = blocks.find(names[index] ?? plugged(index - names.length));
    if (block === undefined) {
      return found;
    }
    found.push(block);
  }
}
