// A guest, the engine and a destination of a postcopy that notes whatever a real one would not survive.

import assert from 'node:assert/strict';
import type { ByteChannel } from '../src/channel/channel.js';
import type { RamBlock } from '../src/memory/ram-block.js';
import { MigrationSource, type MigrationSourceOptions } from '../src/source/migration-source.js';
import { defaultParameters, type MigrationParameters } from '../src/source/parameters.js';
import type { PostcopyOptions } from '../src/source/postcopy.js';
import { PostcopySink } from '../src/source/postcopy-sink.js';
import type { MigrationReport } from '../src/source/statistics.js';
import type { MigrationStatus } from '../src/source/status.js';
import { type Cut, PostcopyDestination } from './postcopy-destination.js';
import { PAGE, ScriptedGuest } from './source-kit.js';

export interface Setting {
  readonly pages?: readonly number[];
  readonly hostPageSize?: number;
  readonly postcopy?: Partial<PostcopyOptions>;
  readonly parameters?: Partial<MigrationParameters>;
  readonly cut?: Cut;
  readonly stallMs?: number;
  readonly guest?: ScriptedGuest;
  /** The connection as the source gets it. */
  readonly through?: (channel: ByteChannel) => ByteChannel;
  /** Send what is asked for over a second connection. */
  readonly preempt?: boolean;
}

/** A guest, its destination and the engine between them; the switch is ordered at once unless a test waits. */
export const setUp = ({
  pages = [60, 20],
  hostPageSize = PAGE,
  postcopy,
  parameters,
  cut,
  stallMs,
  preempt = false,
  through = (channel) => channel,
  ...given
}: Setting = {}) => {
  const guest = given.guest ?? new ScriptedGuest(pages, 2 ** 22, hostPageSize);
  const { blocks } = guest.blocks;
  const destination = new PostcopyDestination(blocks);
  const statuses: MigrationStatus[] = [];
  const status: { changed: () => unknown } = { changed: () => {} };
  const source = new MigrationSource({
    guest,
    sink: new PostcopySink(through(destination.connect(cut)), {
      ...(stallMs !== undefined && { stallMs }),
      ...(preempt && { openPreempt: async () => destination.connectPreempt() }),
    }),
    parameters: { ...defaultParameters, ...parameters },
    postcopy: { prefetchPages: 4, ...postcopy },
    onStatus: (value) => {
      statuses.push(value);
      status.changed();
    },
  } satisfies MigrationSourceOptions);
  const reached = async (wanted: MigrationStatus): Promise<void> => {
    while (source.state.value !== wanted) {
      assert.ok(!source.state.ended, `${wanted} is not reached: ${source.state.value}, ${source.error?.message}`);
      await new Promise<void>((resolve) => {
        status.changed = resolve;
      });
    }
  };
  return { guest, blocks, destination, source, statuses, status, reached };
};

export const fill = (guest: ScriptedGuest, everyNth = 1): void => {
  for (const block of guest.blocks.blocks) {
    for (let page = 0; page < block.usedPages; page += everyNth) {
      guest.store(block, page, (page % 255) + 1);
    }
  }
};

/** PC-19: what the guest reads at the destination is what it last wrote at the source. */
export const assertArrived = (guest: ScriptedGuest, destination: PostcopyDestination): void => {
  assert.deepEqual(destination.violations, []);
  for (const block of guest.blocks.blocks) {
    for (let page = 0; page < block.usedPages; page += 1) {
      assert.equal(destination.value(block.name, page), guest.load(block, page), `${block.name} page ${page}`);
    }
  }
};

/** Pages that are missing when the destination starts to listen, by block; taken at that step. */
export const missingAtListen = (
  destination: PostcopyDestination,
  blocks: readonly RamBlock[],
): Map<string, boolean[]> => {
  const missing = new Map<string, boolean[]>();
  destination.onListen = () => {
    for (const { name } of blocks) {
      missing.set(
        name,
        Array.from(destination.placed(name).content, (value) => value < 0),
      );
    }
  };
  return missing;
};

export const completed = (report: MigrationReport): void => {
  assert.equal(report['error-desc'], undefined);
  assert.equal(report.status, 'completed');
};
