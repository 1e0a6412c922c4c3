// Our saving process of the mapped-ram benchmarks: loads the stream file of argument 1 into memory, then saves that guest
// to every path it is told, and answers with the bytes of nonzero pages. It syncs the file; QEMU does not.

import { openPositionedFile, type PositionedFileOptions } from '../src/channel/positioned-file-node.js';
import { writeSidecar } from '../src/memory-file/write-digest-sidecar-node.js';
import { MappedRamSink } from '../src/source/mapped-ram-sink.js';
import { MigrationSource } from '../src/source/migration-source.js';
import { defaultParameters } from '../src/source/parameters.js';
import { loadGuest } from './loaded-guest.js';
import { serveParent, tellParent } from './node-child.js';

export interface SaveQuestion {
  readonly path: string;
  readonly options: PositionedFileOptions;
  /** Write a digest sidecar as well. */
  readonly digests: boolean;
}

const guest = await loadGuest(process.argv[2]!);
serveParent(async (question) => {
  const { path, options, digests } = question as SaveQuestion;
  const sink = new MappedRamSink(await openPositionedFile(path, options), { digests });
  const source = new MigrationSource({ guest, sink, parameters: defaultParameters });
  const { ram } = await source.run();
  if (source.error !== undefined) {
    throw source.error;
  }
  if (sink.digest !== undefined) {
    const { machine, uuid } = guest;
    const file = { configuration: { machine, uuid }, tail: guest.saveDevices(), fingerprint: sink.fingerprint };
    await writeSidecar(path, file, sink.digest);
  }
  return ram['normal-bytes'];
});
tellParent('ready');
