// Our receiving process of the stream benchmarks: one migration from the socket of argument 1 into the file of argument 2,
// as `ramferry receive` does it, or without one into memory of its own.

import { listen, openChannel } from '../src/channel/index.js';
import { FileTarget, MemoryTarget, MigrationDestination } from '../src/destination/index.js';
import { adviseHugePages } from '../src/memory/huge-pages-node.js';
import { RamBlockList } from '../src/memory/index.js';
import { BackgroundPopulator } from '../src/memory/populator-node.js';
import { MEMORY_LIMIT } from './loaded-guest.js';
import { tellParent } from './node-child.js';

const [uri, file] = process.argv.slice(2);
const listener = await listen(uri!);
tellParent('listening');
const channel = await listener.accept();
const output = file === undefined ? undefined : await openChannel(`file:${file}`, { direction: 'write' });
const destination = new MigrationDestination({
  channel,
  target:
    output === undefined
      ? new MemoryTarget({
          blocks: RamBlockList.create({ onSegment: adviseHugePages }),
          memoryLimit: MEMORY_LIMIT,
          populator: new BackgroundPopulator(),
        })
      : new FileTarget(output),
  commit: async () => output?.end(),
});
const { ram } = await destination.run();
if (destination.error !== undefined) {
  throw destination.error;
}
tellParent(ram['normal-bytes']);
