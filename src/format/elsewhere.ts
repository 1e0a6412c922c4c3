// Memory that a file leaves out on purpose. With x-ignore-shared, QEMU saves no page of RAM that is shared with others, for whoever
// loads the file has it already. What such a block holds is not known here, and not zero.

import { RamferryError } from '../memory/errors.js';
import type { PageCounts, Snapshot } from './snapshot.js';
import type { StreamConfiguration } from './stream/configuration.js';
import { Capability } from './stream/constants.js';
import type { RamSetup } from './stream/stream-handler.js';

/**
 * Positions of the blocks that a file leaves out. Nothing marks them in a stream, but of any other block every page comes at least
 * once, as content or as a zero mark; in a mapped-ram file they have no room.
 */
export const elsewhereBlocks = (
  { capabilities }: StreamConfiguration,
  { blocks }: RamSetup,
  counts: readonly PageCounts[],
): ReadonlySet<number> => {
  if (!capabilities.includes(Capability.IGNORE_SHARED)) {
    return new Set();
  }
  const isLeftOut = (index: number): boolean => {
    const { mapped } = blocks[index]!;
    const { presentPages, zeroPages } = counts[index]!;
    return mapped === undefined ? presentPages + zeroPages === 0 : mapped.bitmapBytes === 0;
  };
  return new Set(blocks.map(({ index }) => index).filter(isLeftOut));
};

/** What is to be known of a block that is left out, as a sentence. */
export const elsewhereText = (name: string): string =>
  `The content of RAM block "${name}" is not in the file: it was shared memory, which x-ignore-shared leaves out.`;

/** The error about a block that is left out. */
export const elsewhereError = (name: string, file?: string): RamferryError =>
  new RamferryError('failed', 'MEMORY_ELSEWHERE', elsewhereText(name), {
    value: name,
    hint: 'Save the guest without x-ignore-shared.',
    ...(file !== undefined && { file }),
  });

/**
 * For whoever would take the memory of these blocks, by default all, for zero.
 * @throws RamferryError `failed`, `MEMORY_ELSEWHERE`, naming the first that is not in the file
 */
export const refuseElsewhere = (
  { elsewhere, setup }: Pick<Snapshot, 'elsewhere' | 'setup'>,
  blocks: Iterable<number> = elsewhere,
  file?: string,
): void => {
  for (const block of blocks) {
    if (elsewhere.has(block)) {
      throw elsewhereError(setup.blocks[block]!.name, file);
    }
  }
};
