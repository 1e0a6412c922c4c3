// The destination of the hint benchmarks: receives one migration from the socket of argument 1, then looks whether the guest
// arrived intact.

import { listen } from '../src/channel/index.js';
import { MemoryTarget, MigrationDestination } from '../src/destination/index.js';
import { deviceStates } from '../src/format/stream/index.js';
import { WorkloadGuest } from '../src/guest/index.js';
import { adviseHugePages } from '../src/memory/huge-pages-node.js';
import { RamBlockList } from '../src/memory/index.js';
import { BackgroundPopulator } from '../src/memory/populator-node.js';
import { MEMORY_LIMIT } from './loaded-guest.js';
import { tellParent } from './node-child.js';

const listener = await listen(process.argv[2]!);
tellParent('listening');
const channel = await listener.accept();
const blocks = RamBlockList.create({ onSegment: adviseHugePages });
let guest: WorkloadGuest | undefined;
const destination = new MigrationDestination({
  channel,
  target: new MemoryTarget({ blocks, memoryLimit: MEMORY_LIMIT, populator: new BackgroundPopulator() }),
  commit: async ({ summary }) => {
    guest = WorkloadGuest.restore(blocks, deviceStates(summary.tail, summary.devices));
  },
});
await destination.run();
if (guest === undefined) {
  throw destination.error;
}
const { bad, staleTables } = guest.verify();
if (bad + staleTables.length > 0) {
  throw new Error(`${bad} pages arrived wrong, ${staleTables.length} tables are stale`);
}
tellParent('intact');
