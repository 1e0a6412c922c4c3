// Our receiving process of the stream benchmarks: one migration from the socket of argument 1 into memory of its own.

import { listen } from '../src/channel/index.js';
import { MemoryTarget, MigrationDestination } from '../src/destination/index.js';
import { RamBlockList } from '../src/memory/index.js';
import { MEMORY_LIMIT } from './loaded-guest.js';
import { tellParent } from './node-child.js';

const listener = await listen(process.argv[2]!);
tellParent('listening');
const channel = await listener.accept();
const destination = new MigrationDestination({
  channel,
  target: new MemoryTarget({ blocks: RamBlockList.create(), memoryLimit: MEMORY_LIMIT }),
});
const { ram } = await destination.run();
if (destination.error !== undefined) {
  throw destination.error;
}
tellParent(ram['normal-bytes']);
