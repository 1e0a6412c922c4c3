// Entry point of a writer's worker thread.

import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import type { SharedRamBlockList } from '../../memory/index.js';
import type { WorkloadShared } from './control.js';
import { runWriter } from './writer-loop.js';

export interface WriterThreadData {
  readonly shared: WorkloadShared;
  readonly writer: number;
  /** Brings a new block list after each hot-plug. Polled, since this thread never returns to its event loop. */
  readonly port: MessagePort;
}

/** All that a thread ever posts: that its modules are loaded and only the run word keeps it from working. */
export type WriterThreadMessage = 'parked';

const { shared, writer, port } = workerData as WriterThreadData;
parentPort?.postMessage('parked' satisfies WriterThreadMessage);
runWriter(shared, writer, () => receiveMessageOnPort(port)?.message as SharedRamBlockList | undefined);
port.close();
