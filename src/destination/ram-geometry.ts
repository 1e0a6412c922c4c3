// The blocks that a source announces against the blocks that are here (spec/algorithms.md 7.20). Everything is checked
// before anything is changed, and all of it happens before the first page is applied (PL-42).

import { hex, invalid } from '../format/invalid.js';
import type { RamSetup, ReadRamBlock } from '../format/stream/stream-handler.js';
import type { RamBlock } from '../memory/ram-block.js';
import type { RamBlockList } from '../memory/ram-block-list.js';

/** Creates the announced blocks in an empty list. Throws MEMORY_LIMIT before it reserves anything. */
export const createBlocks = (blocks: RamBlockList, setup: RamSetup, memoryLimit: number): RamBlock[] => {
  let total = 0;
  for (const { name, usedLength, lengthOffset } of setup.blocks) {
    total += usedLength;
    if (total > memoryLimit) {
      throw invalid(
        'MEMORY_LIMIT',
        `RAM block "${name}" of ${usedLength} bytes makes the guest ${total} bytes large, ${memoryLimit} are allowed`,
        lengthOffset,
        { value: usedLength, hint: 'Raise the memory limit if the guest really is that large.' },
      );
    }
  }
  return setup.blocks.map(({ name, usedLength }) => blocks.add({ name, usedLength }));
};

/** Finds the announced blocks in the memory of a guest, and gives them the announced lengths. */
export const matchBlocks = (blocks: RamBlockList, setup: RamSetup): RamBlock[] => {
  const matched = setup.blocks.map((announced) => matchBlock(blocks.find(announced.name), announced));
  for (const [index, block] of matched.entries()) {
    const { usedLength } = setup.blocks[index]!;
    if (block.usedLength !== usedLength) {
      blocks.resize(block, usedLength);
    }
  }
  return matched;
};

const matchBlock = (block: RamBlock | undefined, announced: ReadRamBlock): RamBlock => {
  const { name, usedLength, address, lengthOffset } = announced;
  const refused = (statement: string, value: number | string, offset = lengthOffset): Error =>
    invalid('RAM_GEOMETRY', `The source has RAM block "${name}"${statement}`, offset, {
      value,
      hint: 'Source and destination must be configured alike.',
    });
  if (block === undefined || !block.migratable) {
    throw refused(block === undefined ? ', which is unknown here' : ', which is not migratable here', name);
  }
  if (block.ignored && block.guestAddress !== address) {
    throw refused(` at ${hex(address ?? 0)}, here it is at ${hex(block.guestAddress)}`, address ?? 0, lengthOffset + 8);
  }
  if (usedLength !== block.usedLength && !block.resizable) {
    throw refused(` of ${usedLength} bytes, here it has ${block.usedLength} and cannot be resized`, usedLength);
  }
  if (usedLength > block.maxLength || usedLength % block.hostPageSize !== 0) {
    const allowed = `multiples of ${block.hostPageSize} up to ${block.maxLength}`;
    throw refused(` of ${usedLength} bytes, here it can have ${allowed}`, usedLength);
  }
  return block;
};
