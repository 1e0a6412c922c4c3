// The destination of the hint benchmarks: receives one migration after the other of guests of argument 1 bytes, each over the
// socket that it is told, and looks whether the guest arrived intact.
//
// Its memory is populated beforehand, as QEMU's is with `prealloc=on`, and zeroed between two migrations. On a virtual machine
// the first touch of memory may take longer than filling it over any link, and only plain migrations would pay that in full.

import { once } from 'node:events';
import { listen } from '../src/channel/index.js';
import { MemoryTarget, MigrationDestination } from '../src/destination/index.js';
import { deviceStates } from '../src/format/stream/index.js';
import { WorkloadGuest } from '../src/guest/index.js';
import { addBlocks } from '../src/guest/workload/machine.js';
import { adviseHugePages } from '../src/memory/huge-pages-node.js';
import { RamBlockList, type Segment } from '../src/memory/index.js';
import { tellParent } from './node-child.js';

const segments: Segment[] = [];
const blocks = RamBlockList.create({
  onSegment: (segment) => {
    adviseHugePages(segment);
    segments.push(segment);
  },
});
addBlocks(blocks, Number(process.argv[2]), true);

for (;;) {
  for (const segment of segments) {
    segment.kernels.zeroFill(0, segment.ramBytes);
    segment.markUnwritten(0, segment.ramBytes);
  }
  tellParent('empty');
  const [uri] = (await once(process, 'message')) as [string];
  const listener = await listen(uri);
  tellParent('listening');
  const channel = await listener.accept();
  await listener.close();
  let guest: WorkloadGuest | undefined;
  const destination = new MigrationDestination({
    channel,
    target: new MemoryTarget({ blocks }),
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
}
