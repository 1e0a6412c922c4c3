// Which memory of the guest goes into a file that has guest-physical addresses, whatever its format.

import { type PhysicalMap, type PhysicalRange, physicalMap } from '../../format/physical-map.js';
import type { ReadRamBlock } from '../../format/stream/stream-handler.js';
import { blockNamed } from './block-named.js';
import { type Conversion, nameAndLength, type Written } from './conversion.js';

export interface AddressedMemory {
  readonly map: PhysicalMap;
  /** By address; those of a single firmware block may have bytes in common. */
  readonly ranges: readonly PhysicalRange[];
  /** The blocks that the ranges are of, in the order of the input. */
  readonly blocks: readonly ReadRamBlock[];
  /** What is told about them. */
  readonly written: Omit<Written, 'fileBytes'>;
}

/**
 * All memory of the guest, or one block.
 * @throws RamferryError `usage` if the address of some of it is not known
 */
export const addressedMemory = ({ snapshot, file, block: name, places }: Conversion): AddressedMemory => {
  const { setup } = snapshot;
  const one = name === undefined ? undefined : blockNamed(snapshot, name, file);
  const map = physicalMap(snapshot, places);
  if (one === undefined) {
    map.requireMemory();
  }
  const placed = one === undefined ? map.ranges : map.rangesOf(one.index);
  const isPlaced = new Set(placed.map(({ block }) => block));
  const blocks = setup.blocks.filter(({ index }) => isPlaced.has(index));
  const nameOf = (block: number): string => setup.blocks[block]!.name;
  return {
    map,
    ranges: [...placed].sort((a, b) => a.address - b.address),
    blocks,
    written: {
      blocks: blocks.map(nameAndLength),
      ranges: placed.map(({ block, address, offset, bytes }) => ({ block: nameOf(block), address, offset, bytes })),
      ...(one === undefined && {
        leftOut: map.unplaced.map(({ block, reason }) => ({ block: nameOf(block), reason })),
      }),
    },
  };
};
