// What `search` and `strings` look through: all memory of a file or one block of it, with addresses where they are known.

import { elsewhereError } from '../format/elsewhere.js';
import { type BlockPlaces, type PhysicalMap, physicalMap, type Snapshot } from '../format/index.js';
import { type MemoryPlace, memoryStretches, type Stretch } from '../format/search/stretches.js';
import { RamferryError } from '../memory/errors.js';

export interface SearchedMemory {
  readonly stretches: readonly Stretch[];
  /** Bytes of the pages that have content. */
  readonly presentBytes: number;
  /** Why no addresses can be told, as a sentence. */
  readonly noAddresses: string | undefined;
  /** Names of the blocks whose content is not in the file. */
  readonly notSearched: readonly string[];
  /** Set if there are such: what was not found may be there. */
  readonly failure: RamferryError | undefined;
}

export interface SearchedOptions {
  readonly block?: string;
  readonly at: BlockPlaces;
}

/** @throws RamferryError `usage`: `NO_SUCH_BLOCK`, `BLOCK_PLACE` */
export const searchedMemory = (snapshot: Snapshot, file: string, { block, at }: SearchedOptions): SearchedMemory => {
  const { blocks, targetPageSize } = snapshot.setup;
  const wanted = block === undefined ? blocks : blocks.filter(({ name }) => name === block);
  if (wanted.length === 0 && block !== undefined) {
    throw new RamferryError('usage', 'NO_SUCH_BLOCK', `${file} has no RAM block "${block}".`, {
      file,
      value: block,
      hint: `its RAM blocks are: ${blocks.map(({ name }) => name).join(', ')}`,
    });
  }
  const { map, reason } = addresses(snapshot, at);
  const left = wanted.filter(({ index }) => snapshot.elsewhere.has(index));
  return {
    stretches: memoryStretches(snapshot, map, new Set(wanted.map(({ index }) => index))),
    presentBytes: wanted.reduce((sum, { index }) => sum + snapshot.counts(index).presentPages, 0) * targetPageSize,
    noAddresses: reason,
    notSearched: left.map(({ name }) => name),
    failure: left.length === 0 ? undefined : elsewhereError(left[0]!.name, file),
  };
};

/** A file that does not say where its memory lies is searched nonetheless. */
const addresses = (
  snapshot: Snapshot,
  places: BlockPlaces,
): { readonly map?: PhysicalMap; readonly reason?: string } => {
  try {
    return { map: physicalMap(snapshot, places) };
  } catch (error) {
    if (error instanceof RamferryError && places.size === 0) {
      return { reason: error.message };
    }
    throw error;
  }
};

const ADDRESS_DIGITS = 9;

/** `0x0fee01000`, or `-` for what has no address. */
export const addressText = ({ address }: MemoryPlace): string =>
  address === undefined ? '-' : `0x${address.toString(16).padStart(ADDRESS_DIGITS, '0')}`;

/** `pc.ram+0x1000`. */
export const offsetText = ({ block, offset }: MemoryPlace, { setup }: Snapshot): string =>
  `${setup.blocks[block]!.name}+0x${offset.toString(16)}`;
