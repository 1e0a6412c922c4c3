// Entry point of a writer thread of a positioned file: opens the file for itself and writes pages where it is told to,
// straight from guest memory.

import fs from 'node:fs';
import { constants } from 'node:os';
import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { servePageWrites } from './page-write-queue.js';
import { writeFully } from './write-fully-node.js';

export interface PageWriterData {
  readonly path: string;
  readonly flags: number;
  readonly queue: SharedArrayBuffer;
  /** Brings memories in the order of their numbers. Polled, since this thread never returns to its event loop. */
  readonly memories: MessagePort;
}

/** All that a thread ever posts: that its file is open. What keeps it from opening ends it as an `error`. */
export type PageWriterMessage = 'open';

const { path, flags, queue, memories } = workerData as PageWriterData;
const known: Uint8Array[] = [];
const descriptor = fs.openSync(path, flags);
parentPort?.postMessage('open' satisfies PageWriterMessage);

/** A memory is posted before the first job that names it. */
const memoryOf = (number: number): Uint8Array => {
  while (known.length <= number) {
    known.push(new Uint8Array(receiveMessageOnPort(memories)?.message as SharedArrayBuffer));
  }
  return known[number]!;
};

servePageWrites(queue, (memory, at, length, position) => {
  try {
    writeFully(descriptor, memoryOf(memory), at, length, position);
    return 0;
  } catch (error) {
    // Whatever else it may be, the pages are not in the file.
    return (error as NodeJS.ErrnoException).errno ?? -constants.errno.EIO;
  }
});
fs.closeSync(descriptor);
memories.close();
