// Our saving process of the mapped-ram benchmarks: loads the stream file of argument 1 into memory, then saves that guest
// to every path it is told, and answers with the bytes of nonzero pages. It syncs the file; QEMU does not.

import { openPositionedFile, type PositionedFileOptions } from '../src/channel/positioned-file-node.js';
import { MappedRamSink } from '../src/source/mapped-ram-sink.js';
import { MigrationSource } from '../src/source/migration-source.js';
import { defaultParameters } from '../src/source/parameters.js';
import { loadGuest } from './loaded-guest.js';
import { serveParent, tellParent } from './node-child.js';

const guest = await loadGuest(process.argv[2]!);
serveParent(async (question) => {
  const { path, options } = question as { path: string; options: PositionedFileOptions };
  const sink = new MappedRamSink(await openPositionedFile(path, options));
  const source = new MigrationSource({ guest, sink, parameters: defaultParameters });
  const { ram } = await source.run();
  if (source.error !== undefined) {
    throw source.error;
  }
  return ram['normal-bytes'];
});
tellParent('ready');
