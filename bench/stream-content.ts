// What the stream benchmarks move: a real guest whose memory is nearly all nonzero, stopped in QEMU, and the stream file that
// QEMU made of it. Without a QEMU the stream file of a guest of our own takes its place, and there is no peer.

import { openChannel } from '../src/channel/index.js';
import { buildDeviceTail, pickRamSectionId } from '../src/format/stream/index.js';
import { RamBlockList } from '../src/memory/index.js';
import { MigrationSource } from '../src/source/migration-source.js';
import { defaultParameters } from '../src/source/parameters.js';
import { StreamSink } from '../src/source/stream-sink.js';
import type { Lab, LabGuest } from '../test/interop/lab.js';

/** What Linux leaves to a workload; more, and it spends its time looking for free pages. */
const fillable = (megabytes: number): number => Math.floor(megabytes * 0.92) - 90;

export interface StreamContent {
  /** Bytes of the pages in `file` that are not zero: what every figure counts. */
  readonly normalBytes: number;
  /** The guest in its QEMU, if that wrote the file. */
  readonly guest?: LabGuest;
}

/** Boots a guest, has it fill its memory, stops it and saves it into `file`. */
export const qemuContent = async (lab: Lab, megabytes: number, file: string): Promise<StreamContent> => {
  const guest = await lab.startGuest({ memory: megabytes, workload: `churn:${fillable(megabytes)}:0` });
  await guest.waitReady();
  await guest.stop();
  const { ram } = await guest.saveStream(file);
  return { normalBytes: ram!['normal-bytes'], guest };
};

/** The same amount of patterns, written by our own engine. */
export const patternContent = async (megabytes: number, file: string): Promise<StreamContent> => {
  const blocks = RamBlockList.create();
  const block = blocks.add({ name: 'ram', usedLength: megabytes * 2 ** 20 });
  block.forEachRange(0, (fillable(megabytes) * 2 ** 20) / 4096, ({ segment, address, firstPage }, first, count) => {
    for (let page = first as number; page < first + count; page++) {
      segment.kernels.fillPattern(address + (page - firstPage) * 4096, page, 1);
    }
  });
  const tail = buildDeviceTail([]);
  const source = new MigrationSource({
    guest: {
      machine: 'none',
      uuid: undefined,
      ramSectionId: pickRamSectionId(tail),
      blocks,
      log: undefined,
      isRunning: () => false,
      stop: async () => {},
      resume: async () => {},
      saveDevices: () => tail,
    },
    sink: new StreamSink(await openChannel(`file:${file}`, { direction: 'write' }), { returnPath: false }),
    parameters: defaultParameters,
  });
  const { ram } = await source.run();
  if (source.error !== undefined) {
    throw source.error;
  }
  return { normalBytes: ram['normal-bytes'] };
};
