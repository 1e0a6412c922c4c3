// The machine of the workload guest: which RAM blocks it has, where they are, and which of them its writers share.

import { GUEST_PAGE_SIZE } from '../../../kernels/kernels.js';
import type { MemoryRegion } from '../../device/index.js';
import { guestAddress, type RamBlock, type RamBlockList } from '../../memory/index.js';
import { pageKey } from './pattern.js';
import {
  VIRTIO_MEM_ADDRESS,
  VIRTIO_MEM_BLOCK,
  VIRTIO_MEM_DRIVER_ADDRESS,
  VIRTIO_MEM_DRIVER_BLOCK,
} from './virtio-mem-machine.js';

/** Machine type name in the configuration element of streams. */
export const WORKLOAD_MACHINE = 'ramferry-workload';

const RAM_BLOCK = 'pc.ram';
const VIDEO_BLOCK = 'vga.vram';
/** Holds a pattern that nobody changes. */
export const ROM_BLOCK = 'pc.rom';
export const ROM_GENERATION = 1;

/** Memory of the kernel's own, in machines with a balloon: the queues of its driver. */
export const KERNEL_BLOCK = 'pc.kernel';

/** As in QEMU's PC; 32 pages, so that a block that is no multiple of 64 pages is always among those migrated. */
const ROM_BYTES = 128 * 1024;
/** Small, so that it costs a demo nothing; QEMU's has 16 MiB. */
const VIDEO_BYTES = 1024 * 1024;
const KERNEL_BYTES = 128 * 1024;

/** Where blocks are for the guest, far enough apart for whatever size they have. */
const GuestAddresses = {
  ram: 0,
  rom: 2 ** 44,
  video: 2 ** 44 + 2 ** 30,
  kernel: 2 ** 44 + 2 ** 31,
  dimms: 2 ** 45,
} as const;
const DIMM_DISTANCE = 2 ** 40;

const plugged = (index: number | string): string => `dimm${index}`;

/** Adds the blocks that the machine starts with. */
export function addBlocks(blocks: RamBlockList, memoryBytes: number, balloon = false): void {
  if (balloon) {
    blocks.add({ name: KERNEL_BLOCK, usedLength: KERNEL_BYTES });
  }
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

/** The guest-physical address of the first byte of a block; follows from its name, so that it is the same on both sides. */
export function addressOf({ name }: RamBlock): number {
  switch (name) {
    case RAM_BLOCK:
      return GuestAddresses.ram;
    case ROM_BLOCK:
      return GuestAddresses.rom;
    case VIDEO_BLOCK:
      return GuestAddresses.video;
    case KERNEL_BLOCK:
      return GuestAddresses.kernel;
    case VIRTIO_MEM_BLOCK:
      return VIRTIO_MEM_ADDRESS;
    case VIRTIO_MEM_DRIVER_BLOCK:
      return VIRTIO_MEM_DRIVER_ADDRESS;
    default:
      return GuestAddresses.dimms + Number(name.slice(plugged('').length)) * DIMM_DISTANCE;
  }
}

/** The memory that the guest's devices see. */
export const memoryRegions = (blocks: RamBlockList): MemoryRegion[] =>
  blocks.blocks.map((block) => ({
    guestAddress: guestAddress(addressOf(block)),
    block,
    offset: 0,
    bytes: block.usedLength,
  }));
