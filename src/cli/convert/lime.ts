// Any memory file to a LiME dump: ranges of memory by address, each behind a header.

import { LIME_HEADER_BYTES, limeHeader } from '../../format/lime.js';
import { addressedMemory } from './addressed-memory.js';
import type { Conversion, Written } from './conversion.js';
import { type HeadPart, type MemoryPart, writeOneFile } from './one-file.js';

export const writeLime = async (conversion: Conversion): Promise<Written> => {
  const { ranges, written } = addressedMemory(conversion);
  const heads: HeadPart[] = [];
  const memory: MemoryPart[] = [];
  let position = 0;
  for (const { address, block, offset, bytes } of ranges) {
    heads.push({ position, content: limeHeader(address, bytes) });
    position += LIME_HEADER_BYTES;
    memory.push({ position, block, offset, bytes });
    position += bytes;
  }
  return { ...written, fileBytes: await writeOneFile(conversion, { heads, memory }) };
};
