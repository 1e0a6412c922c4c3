// Time as the engine sees it; tests put their own in.

export interface Clock {
  /** Milliseconds from an arbitrary origin, with fractions. */
  now(): number;
  /** Resolves after `milliseconds`, or at once when `signal` aborts. Never rejects. */
  sleep(milliseconds: number, signal?: AbortSignal): Promise<void>;
  /** Lets the event loop run once, so that messages and write completions are seen. */
  yield(): Promise<void>;
}

// `setTimeout(0)` costs a millisecond; Node's setImmediate does not, and a browser's message port does not either.
const scheduler = globalThis as { setImmediate?: (callback: () => void) => void };

export const systemClock: Clock = {
  now: () => performance.now(),
  sleep: (milliseconds, signal) =>
    new Promise((resolve) => {
      if (signal?.aborted === true) {
        resolve();
        return;
      }
      const done = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', done);
        resolve();
      };
      const timer = setTimeout(done, milliseconds);
      signal?.addEventListener('abort', done);
    }),
  yield: () =>
    new Promise((resolve) => {
      if (scheduler.setImmediate !== undefined) {
        scheduler.setImmediate(resolve);
        return;
      }
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () => {
        port1.close();
        resolve();
      };
      port2.postMessage(undefined);
    }),
};
