// Guest memory as it is, for tools that know nothing of migration: by block, or by guest-physical address.

import path from 'node:path';
import { copySparsely } from '../../memory-file/sparse-copy-node.js';
import { OutputFolder } from '../output-folder.js';
import { inSlices } from '../read-memory-file.js';
import { refuseUnorderedStdout } from '../stdout-output.js';
import { addressedMemory } from './addressed-memory.js';
import { blockNamed } from './block-named.js';
import { type Conversion, nameAndLength, type Written } from './conversion.js';
import { writeOneFile } from './one-file.js';

/** What the file of a block is called: characters that are no good in file names stand as %XX, so names stay apart. */
export const rawFileName = (block: string): string =>
  `${block.replace(/[^\w@.:-]/g, (character) => `%${character.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`)}.raw`;

const writeFolder = async ({ snapshot, out, surroundings }: Conversion): Promise<Written> => {
  const how = 'one block can be, or all by address: --block, --by-address';
  refuseUnorderedStdout(out, 'raw, of all RAM blocks,', how);
  const folder = OutputFolder.open(out);
  try {
    const blocks = snapshot.setup.blocks.map((block) => ({ ...nameAndLength(block), file: rawFileName(block.name) }));
    const copies = blocks.map(({ file, usedLength }, block) => ({
      block,
      offset: 0,
      bytes: usedLength,
      descriptor: folder.create(file),
      file: path.join(out, file),
      position: 0,
    }));
    const fileBytes = await copySparsely(snapshot, copies, (...slice) => inSlices(surroundings, ...slice));
    surroundings.progress.update({ phase: 'syncing the files' });
    folder.commit();
    return { blocks, fileBytes };
  } finally {
    folder.abort();
  }
};

const writeBlock = async (conversion: Conversion, name: string): Promise<Written> => {
  const block = blockNamed(conversion.snapshot, name, conversion.file);
  const memory = [{ position: 0, block: block.index, offset: 0, bytes: block.usedLength }];
  const fileBytes = await writeOneFile(conversion, { heads: [], memory });
  return { blocks: [nameAndLength(block)], fileBytes };
};

/** A file for each RAM block, or one of the block that is named. */
export const writeRaw = (conversion: Conversion): Promise<Written> =>
  conversion.block === undefined ? writeFolder(conversion) : writeBlock(conversion, conversion.block);

/** One file in which the offset of a byte is its guest-physical address. */
export const writeRawByAddress = async (conversion: Conversion): Promise<Written> => {
  const { ranges, written } = addressedMemory(conversion);
  const memory = ranges.map(({ address, block, offset, bytes }) => ({ position: address, block, offset, bytes }));
  return { ...written, fileBytes: await writeOneFile(conversion, { heads: [], memory }) };
};
