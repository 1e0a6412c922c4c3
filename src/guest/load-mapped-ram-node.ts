// A mapped-ram file loaded into memory, whole: what a guest of ours starts from. Pages have their places, so threads read them
// in any order, straight into guest memory (spec/algorithms.md 5(c), load).

import { setImmediate as nextTurn } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { createBlocks, matchBlocks } from '../destination/ram-geometry.js';
import { MappedRamSnapshot } from '../format/mapped-ram/snapshot.js';
import type { StreamConfiguration } from '../format/stream/configuration.js';
import type { StreamSummary } from '../format/stream/stream-handler.js';
import { RamferryError } from '../memory/errors.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import { EXTENT_ALIGN_BYTES } from '../memory/segment.js';
import { allocateChunkCounters, ChunkLoader } from './chunk-loader-node.js';
import type { ChunkLoaderThreadData } from './chunk-loader-thread-node.js';
import { openSnapshotFile } from './open-snapshot-file-node.js';

/** Longest time in which nobody else in this thread gets a turn. */
const SLICE_MS = 30;

export interface LoadOptions {
  /** The memory of a guest that does not run, which the file must match: it is replaced. Or empty, with a memory limit. */
  readonly blocks: RamBlockList;
  /** Create the blocks of the file, up to this many bytes in all. */
  readonly memoryLimit?: number;
  /** Threads that read, the calling one included. Default 2. */
  readonly threads?: number;
  readonly signal?: AbortSignal;
}

/** What a file holds besides RAM. */
export interface LoadedFile {
  readonly configuration: StreamConfiguration;
  readonly summary: StreamSummary;
}

/**
 * @param operand a path, or `file:PATH,offset=N`
 * @throws RamferryError `invalid` if the file is not whole or its geometry does not fit, `failed` if it cannot be read; the
 * memory's content is undefined then
 */
export const loadMappedRam = async (operand: string, options: LoadOptions): Promise<LoadedFile> => {
  const { blocks, memoryLimit, threads = 2, signal } = options;
  const { snapshot, container, close } = await openSnapshotFile(operand);
  try {
    if (!(snapshot instanceof MappedRamSnapshot)) {
      throw new RamferryError('usage', 'NOT_MAPPED_RAM', `${container.file} is not a mapped-ram file.`, {
        file: container.file,
        hint: 'A stream is loaded by a MigrationDestination with a MemoryTarget; convert --to mapped-ram makes one of these.',
      });
    }
    const { configuration, setup, summary } = snapshot;
    if (setup.targetPageSize !== GUEST_PAGE_SIZE) {
      throw new RamferryError(
        'invalid',
        'TARGET_PAGE_SIZE',
        `The guest has pages of ${setup.targetPageSize} bytes; memory can be loaded only in pages of ${GUEST_PAGE_SIZE}.`,
        { file: container.file, value: setup.targetPageSize },
      );
    }
    if (memoryLimit === undefined) {
      // MR-16: what the file does not have is zero.
      for (const { extents } of matchBlocks(blocks, setup)) {
        for (const { segment, address, pageCount } of extents) {
          segment.reset(address, Math.ceil((pageCount * GUEST_PAGE_SIZE) / EXTENT_ALIGN_BYTES) * EXTENT_ALIGN_BYTES);
        }
      }
    } else {
      createBlocks(blocks, setup, memoryLimit);
    }
    // What was unpacked has no name under which a helper could open it.
    const helpers = container.isUnpacked ? 0 : threads - 1;
    const counters = allocateChunkCounters(helpers);
    const loader = new ChunkLoader(container.readAt, setup.blocks, blocks.blocks, counters);
    for (let helper = 0; helper < helpers; helper += 1) {
      startHelper({ file: container.file, setup: setup.blocks, blocks: blocks.share(), counters, helper });
    }
    try {
      for (let sliceEnd = performance.now() + SLICE_MS; loader.loadNext() > 0; ) {
        if (performance.now() >= sliceEnd) {
          await nextTurn();
          signal?.throwIfAborted();
          sliceEnd = performance.now() + SLICE_MS;
        }
      }
    } catch (error) {
      loader.abandon();
      throw error;
    }
    loader.finish();
    return { configuration, summary };
  } finally {
    close();
  }
};

const startHelper = (workerData: ChunkLoaderThreadData): void => {
  const url = new URL('./chunk-loader-thread-node.js', import.meta.url);
  const worker = new Worker(url, { workerData, name: 'mapped-ram loader' });
  // Without its help everything is loaded all the same.
  worker.on('error', () => {});
  worker.unref();
};
