// Our sending process of the stream benchmarks: loads the stream file of argument 1 into memory, then sends that guest to
// every URI it is told, and answers with the bytes of nonzero pages.

import { openChannel } from '../src/channel/index.js';
import { MigrationSource } from '../src/source/migration-source.js';
import { defaultParameters } from '../src/source/parameters.js';
import { StreamSink } from '../src/source/stream-sink.js';
import { loadGuest } from './loaded-guest.js';
import { serveParent, tellParent } from './node-child.js';

const guest = await loadGuest(process.argv[2]!);
serveParent(async (uri) => {
  const channel = await openChannel(uri as string, { direction: 'write' });
  const sink = new StreamSink(channel, { returnPath: false });
  const source = new MigrationSource({ guest, sink, parameters: defaultParameters });
  const { ram } = await source.run();
  if (source.error !== undefined) {
    throw source.error;
  }
  return ram['normal-bytes'];
});
tellParent('ready');
