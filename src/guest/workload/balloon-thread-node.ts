// Entry point of the worker threads of a guest's balloon: its driver, or its device.

import { parentPort, workerData } from 'node:worker_threads';
import { runBalloonDevice, runBalloonDriver } from './balloon-loops.js';
import { BalloonThread, type WorkloadShared } from './control.js';

export interface BalloonThreadData {
  readonly shared: WorkloadShared;
  /** A `BalloonThread`. */
  readonly thread: number;
}

const { shared, thread } = workerData as BalloonThreadData;
parentPort?.postMessage('parked');
if (shared.balloon !== undefined) {
  const run = thread === BalloonThread.driver ? runBalloonDriver : runBalloonDevice;
  run(shared, shared.balloon);
}
