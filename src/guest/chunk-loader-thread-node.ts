// Entry point of a thread that helps to load a mapped-ram file. It opens the file for itself; where it cannot, it is no help,
// and nobody misses it.

import { workerData } from 'node:worker_threads';
import type { ReadRamBlock } from '../format/stream/stream-handler.js';
import { RamBlockList, type SharedRamBlockList } from '../memory/ram-block-list.js';
import { ChunkLoader } from './chunk-loader-node.js';
import { openFileReader } from './file-reader-node.js';

export interface ChunkLoaderThreadData {
  readonly file: string;
  readonly setup: readonly ReadRamBlock[];
  readonly blocks: SharedRamBlockList;
  readonly counters: SharedArrayBuffer;
  /** Which of the helpers this is. */
  readonly helper: number;
}

const { file, setup, blocks, counters, helper } = workerData as ChunkLoaderThreadData;
const { readAt, close } = openFileReader(file);
new ChunkLoader(readAt, setup, RamBlockList.attach(blocks).blocks, counters).help(helper);
close();
