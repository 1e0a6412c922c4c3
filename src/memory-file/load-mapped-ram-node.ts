// A mapped-ram file loaded into memory, whole: what a guest of ours starts from. Pages have their places, so they are read in
// any order, straight into guest memory (spec/algorithms.md 5(c), load).
//
// The threads that read are those of Node's pool: they are there, while a worker would start when a small guest is loaded.

import { setImmediate as nextTurn } from 'node:timers/promises';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { createBlocks, matchBlocks } from '../destination/ram-geometry.js';
import { refuseElsewhere } from '../format/elsewhere.js';
import { MappedRamSnapshot } from '../format/mapped-ram/snapshot.js';
import type { StreamConfiguration } from '../format/stream/configuration.js';
import type { RamSetup, StreamSummary } from '../format/stream/stream-handler.js';
import { RamferryError } from '../memory/errors.js';
import type { GuestClaim } from '../memory/guest-claim.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import { EXTENT_ALIGN_BYTES } from '../memory/segment.js';
import { ChunkLoader } from './chunk-loader.js';
import { openSnapshotFile } from './open-snapshot-file-node.js';
import { SLICE_MS } from './slices-node.js';

export interface LoadOptions {
  /** The memory of a guest that does not run, which the file must match: it is replaced. Or empty, with a memory limit. */
  readonly blocks: RamBlockList;
  /** Create the blocks of the file, up to this many bytes in all. */
  readonly memoryLimit?: number;
  /** Reads at a time. Default 4: Node has as many threads for them, unless UV_THREADPOOL_SIZE says otherwise. */
  readonly reads?: number;
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
 * memory's content is undefined then. `GUEST_BUSY` if the guest with that memory is being migrated, saved or loaded.
 */
export const loadMappedRam = async (operand: string, options: LoadOptions): Promise<LoadedFile> => {
  const { blocks, memoryLimit, reads = 4, signal } = options;
  const { snapshot, container, close } = await openSnapshotFile(operand);
  let claim: GuestClaim | undefined;
  try {
    if (!(snapshot instanceof MappedRamSnapshot)) {
      throw new RamferryError('usage', 'NOT_MAPPED_RAM', `${container.file} is not a mapped-ram file.`, {
        file: container.file,
        hint: 'A stream is loaded by a MigrationDestination with a MemoryTarget; convert --to mapped-ram makes one of these.',
      });
    }
    refuseElsewhere(snapshot, undefined, container.file);
    const { configuration, setup, summary } = snapshot;
    if (setup.targetPageSize !== GUEST_PAGE_SIZE) {
      throw new RamferryError(
        'invalid',
        'TARGET_PAGE_SIZE',
        `The guest has pages of ${setup.targetPageSize} bytes; memory can be loaded only in pages of ${GUEST_PAGE_SIZE}.`,
        { file: container.file, value: setup.targetPageSize },
      );
    }
    claim = blocks.claim('incoming');
    blocks.changeAs(claim, () => prepare(blocks, setup, memoryLimit));
    const loader = new ChunkLoader(container, setup.blocks, blocks.blocks);
    await loadChunks(loader, reads, signal);
    return { configuration, summary };
  } finally {
    claim?.release();
    close();
  }
};

/** Makes the memory, or empties the one that is there. */
const prepare = (blocks: RamBlockList, setup: RamSetup, memoryLimit: number | undefined): void => {
  if (memoryLimit !== undefined) {
    createBlocks(blocks, setup, memoryLimit);
    return;
  }
  // MR-16: what the file does not have is zero.
  for (const { extents } of matchBlocks(blocks, setup)) {
    for (const { segment, address, pageCount } of extents) {
      segment.reset(address, Math.ceil((pageCount * GUEST_PAGE_SIZE) / EXTENT_ALIGN_BYTES) * EXTENT_ALIGN_BYTES);
    }
  }
};

/** Loads all chunks, so many at a time. Nothing is being read any more when it settles. */
const loadChunks = async (loader: ChunkLoader, atOnce: number, signal: AbortSignal | undefined): Promise<void> => {
  let sliceEnd = performance.now() + SLICE_MS;
  let isGivenUp = false;
  const loadInTurn = async (): Promise<void> => {
    try {
      for (let loading: Promise<void> | undefined; !isGivenUp && (loading = loader.loadNext()) !== undefined; ) {
        await loading;
        signal?.throwIfAborted();
        if (performance.now() >= sliceEnd) {
          await nextTurn();
          sliceEnd = performance.now() + SLICE_MS;
        }
      }
    } catch (error) {
      isGivenUp = true;
      throw error;
    }
  };
  const ends = Array.from({ length: atOnce }, loadInTurn);
  await Promise.allSettled(ends);
  await Promise.all(ends);
};
