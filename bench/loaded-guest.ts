// The guest of a stream as a guest in our memory, stopped for good: what a source engine finds when it saves or moves a
// guest that nobody runs. Loaded from the very stream that QEMU wrote, so both sides send the same pages.

import { openChannel } from '../src/channel/index.js';
import { type IncomingState, MemoryTarget, MigrationDestination } from '../src/destination/index.js';
import { pickRamSectionId } from '../src/format/stream/index.js';
import { adviseHugePages } from '../src/memory/huge-pages-node.js';
import { RamBlockList } from '../src/memory/index.js';
import type { SourceGuest } from '../src/source/guest.js';

/** Far above any benchmark's guest. */
export const MEMORY_LIMIT = 2 ** 36;

export const loadGuest = async (file: string): Promise<SourceGuest> => {
  const blocks = RamBlockList.create({ onSegment: adviseHugePages });
  let state: IncomingState | undefined;
  const destination = new MigrationDestination({
    channel: await openChannel(`file:${file}`, { direction: 'read' }),
    target: new MemoryTarget({ blocks, memoryLimit: MEMORY_LIMIT }),
    commit: async (arrived) => {
      state = arrived;
    },
  });
  await destination.run();
  if (state === undefined) {
    throw destination.error;
  }
  const { configuration, summary } = state;
  return {
    machine: configuration.machine,
    uuid: configuration.uuid,
    ramSectionId: pickRamSectionId(summary.tail),
    blocks,
    log: undefined,
    isRunning: () => false,
    stop: async () => {},
    resume: async () => {},
    earlySections: summary.tail.early,
    saveDevices: () => summary.tail,
  };
};
