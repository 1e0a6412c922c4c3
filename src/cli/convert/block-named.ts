// `--block NAME`.

import type { Snapshot } from '../../format/index.js';
import type { ReadRamBlock } from '../../format/stream/stream-handler.js';
import { RamferryError } from '../../memory/errors.js';

/** @throws RamferryError `usage`, naming the blocks that there are */
export const blockNamed = ({ setup }: Snapshot, name: string, file: string): ReadRamBlock => {
  const block = setup.blocks.find((candidate) => candidate.name === name);
  if (block === undefined) {
    const names = setup.blocks.map((candidate) => candidate.name).join(', ');
    throw new RamferryError('usage', 'NO_SUCH_BLOCK', `${file} has no RAM block "${name}".`, {
      file,
      value: name,
      hint: `its RAM blocks are: ${names}`,
    });
  }
  return block;
};
