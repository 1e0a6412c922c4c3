// A guest that saves itself live into the mapped-ram file of argument 1, by writer threads if argument 2 says so: a process
// for tests to kill.

import { WorkloadGuest } from '../src/guest/workload/workload-guest-node.js';
import { Migration } from '../src/migration/migration.js';

const [path, channels] = process.argv.slice(2);
const guest = WorkloadGuest.create({ memoryBytes: 16 * 2 ** 20, workingSetBytes: 16 * 2 ** 20, rate: 40 * 2 ** 20 });
await guest.start();
const { error } = await new Migration({
  guest: { kind: 'workload', shared: guest.share() },
  blocks: guest.blocks,
  uri: `file:${path}`,
  mappedRam: { channels: Number(channels) },
  // Several passes, in a tenth of a second or two.
  parameters: { maxBandwidth: 200 * 2 ** 20, downtimeLimit: 10 },
}).ended;
await guest.shutdown();
process.exit(error === undefined ? 0 : 1);
