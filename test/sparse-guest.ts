// A guest with far more address space than memory, here and at another host, as a test and a benchmark use it.

import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { WorkloadGuest, type WorkloadOptions } from '../src/guest/index.js';
import type { FromSparseDestination, ToSparseDestination } from './sparse-destination.js';

export const MIB = 2 ** 20;

export const sparseOptions = (regionBytes: number, pluggedBytes: number): WorkloadOptions => ({
  memoryBytes: 8 * MIB,
  writers: 1,
  rate: 4 * MIB,
  virtioMem: { regionBytes, requestedBytes: pluggedBytes, rate: 64 * MIB },
});

/** The guest, running, with everything plugged and written that is to be. */
export const startSparseGuest = async (options: WorkloadOptions): Promise<WorkloadGuest> => {
  const guest = WorkloadGuest.create(options);
  await guest.start();
  await guest.virtioMemSettled();
  return guest;
};

type Message<Type> = Extract<FromSparseDestination, { readonly type: Type }>;

/** The other host. */
export class SparseDestination {
  readonly uri: string;
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess, uri: string) {
    this.#child = child;
    this.uri = uri;
  }

  /** Starts it; it listens and waits for one guest made with the same options. */
  static async start(options: WorkloadOptions): Promise<SparseDestination> {
    const child = fork(fileURLToPath(new URL('./sparse-destination.js', import.meta.url)));
    child.send({ type: 'receive', options } satisfies ToSparseDestination);
    const [{ uri }] = (await once(child, 'message')) as [Message<'listening'>];
    return new SparseDestination(child, uri);
  }

  /** Resolves when the guest has arrived and runs, or has not. */
  async received(): Promise<string> {
    const [{ status }] = (await once(this.#child, 'message')) as [Message<'received'>];
    return status;
  }

  /** What has become of the guest, which ends with it. */
  async judge(): Promise<Message<'judged'>> {
    this.#child.send({ type: 'judge' } satisfies ToSparseDestination);
    const [judged] = (await once(this.#child, 'message')) as [Message<'judged'>];
    return judged;
  }

  close(): void {
    this.#child.kill('SIGKILL');
  }
}
