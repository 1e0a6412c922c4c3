// The threads that engines run in, so that a test can end one as a fault of its own would: without a word to anybody.

import { syncBuiltinESMExports } from 'node:module';
import threads, { type WorkerOptions } from 'node:worker_threads';

const running = new Set<threads.Worker>();
const { Worker: Original } = threads;

class WatchedWorker extends Original {
  constructor(file: string | URL, options?: WorkerOptions) {
    super(file, options);
    if (options?.name === 'migration') {
      running.add(this);
      this.once('exit', () => running.delete(this));
    }
  }
}

/** From here on `killEngines` finds every engine's thread that is started in this process. */
export const watchEngines = (): void => {
  threads.Worker = WatchedWorker as typeof threads.Worker;
  syncBuiltinESMExports();
};

/** Ends all of them; how many there were. */
export const killEngines = (): number => {
  const { size } = running;
  for (const worker of running) {
    void worker.terminate();
  }
  return size;
};
