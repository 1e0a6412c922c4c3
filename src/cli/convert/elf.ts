// Any memory file to an ELF core. A block is in the file once, however many addresses it has.

import { elfCore } from '../../format/elf-core.js';
import { addressedMemory } from './addressed-memory.js';
import type { Conversion, Written } from './conversion.js';
import { writeOneFile } from './one-file.js';

export const writeElf = async (conversion: Conversion): Promise<Written> => {
  const { ranges, blocks, written } = addressedMemory(conversion);
  const offsets = new Map<number, number>();
  let ramBytes = 0;
  for (const { index, usedLength } of blocks) {
    offsets.set(index, ramBytes);
    ramBytes += usedLength;
  }
  const segments = ranges.map(({ block, address, offset, bytes }) => ({
    address,
    offset: offsets.get(block)! + offset,
    bytes,
  }));
  const { head, ramOffset } = elfCore(conversion.snapshot.configuration.machine, segments);
  const memory = blocks.map(({ index, usedLength }) => ({
    position: ramOffset + offsets.get(index)!,
    block: index,
    offset: 0,
    bytes: usedLength,
  }));
  return { ...written, fileBytes: await writeOneFile(conversion, { heads: [{ position: 0, content: head }], memory }) };
};
