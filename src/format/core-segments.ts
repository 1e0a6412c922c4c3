// Which bytes of guest memory have which virtual address in a core.

import { RamferryError } from '../memory/errors.js';
import type { ElfSegment } from './elf-core.js';
import type { PhysicalRange } from './physical-range.js';
import type { VirtualMapping } from './x86/page-tables.js';

/** Where a byte of a RAM block is among all memory of the core. */
export type MemoryOffset = (block: number, offset: number) => number;

/**
 * Virtual addresses of memory that nobody has mapped: no processor takes them for addresses, so that no debugger finds anything
 * there by mistake. A core for crash and drgn needs all memory, which they read by physical address.
 */
const NOWHERE = 1n << 63n;

/** Most segments with an address that somebody has mapped: each is a program header of 56 bytes. */
const SEGMENT_LIMIT = 2 ** 20;

/** Without paging, as QEMU has it, virtual addresses are the physical ones. */
export const physicalSegments = (ranges: readonly PhysicalRange[], offsetOf: MemoryOffset): ElfSegment[] =>
  ranges.map(({ address, block, offset, bytes }) => ({
    virtual: address,
    physical: address,
    offset: offsetOf(block, offset),
    bytes,
  }));

/** Segments by virtual address, and what they amount to. */
export interface VirtualSegments {
  /** What is mapped, then what is not. */
  readonly segments: readonly ElfSegment[];
  readonly mappings: number;
  /** Bytes of memory that are mapped at least once, and that are not. */
  readonly mappedBytes: number;
  readonly unmappedBytes: number;
}

/**
 * The same by virtual address. What is mapped and is no memory of the core, such as devices, has no segment.
 * @param ranges ascending, without overlaps
 * @param limit most segments that are mapped
 * @throws RamferryError `failed`, `TOO_MANY_MAPPINGS`, if there were more
 */
export const virtualSegments = (
  ranges: readonly PhysicalRange[],
  mappings: readonly VirtualMapping[],
  offsetOf: MemoryOffset,
  limit = SEGMENT_LIMIT,
): VirtualSegments => {
  const segments: ElfSegment[] = [];
  for (const { virtual, physical, bytes } of mappings) {
    forEachCommon(ranges, physical, bytes, ({ block, offset }, address, length) => {
      if (segments.length === limit) {
        throw tooMany(limit);
      }
      segments.push({
        virtual: virtual + BigInt(address - physical),
        physical: address,
        offset: offsetOf(block, offset),
        bytes: length,
      });
    });
  }
  const mapped = segments.length;
  let unmappedBytes = 0;
  const byAddress = segments.toSorted((a, b) => a.physical - b.physical);
  let next = 0;
  for (const { address, block, offset, bytes } of ranges) {
    let from = address;
    const add = (to: number): void => {
      if (to > from) {
        const virtual = NOWHERE + BigInt(from);
        segments.push({ virtual, physical: from, offset: offsetOf(block, offset + from - address), bytes: to - from });
        unmappedBytes += to - from;
      }
    };
    for (; next < mapped && byAddress[next]!.physical < address + bytes; next += 1) {
      const { physical, bytes: length } = byAddress[next]!;
      add(physical);
      from = Math.max(from, physical + length);
    }
    add(address + bytes);
  }
  const allBytes = ranges.reduce((sum, { bytes }) => sum + bytes, 0);
  return { segments, mappings: mapped, mappedBytes: allBytes - unmappedBytes, unmappedBytes };
};

/** A page of the largest size may have all memory in it, which may be in a thousand pieces. */
const tooMany = (limit: number): RamferryError =>
  new RamferryError('failed', 'TOO_MANY_MAPPINGS', `The vCPUs have mapped more than ${limit} pieces of memory.`, {
    value: limit,
  });

/** Visits what bytes [physical, physical + bytes) have in common with the ranges: a place in a block, its address, its length. */
const forEachCommon = (
  ranges: readonly PhysicalRange[],
  physical: number,
  bytes: number,
  visit: (place: Pick<PhysicalRange, 'block' | 'offset'>, address: number, bytes: number) => void,
): void => {
  const end = physical + bytes;
  for (let index = firstBehind(ranges, physical); index < ranges.length && ranges[index]!.address < end; index += 1) {
    const { address, block, offset, bytes: rangeBytes } = ranges[index]!;
    const from = Math.max(physical, address);
    const to = Math.min(end, address + rangeBytes);
    visit({ block, offset: offset + from - address }, from, to - from);
  }
};

/** The first range that ends behind an address. */
const firstBehind = (ranges: readonly PhysicalRange[], address: number): number => {
  let low = 0;
  let high = ranges.length;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    const range = ranges[middle]!;
    if (range.address + range.bytes <= address) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
};
