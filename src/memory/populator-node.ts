// Touches guest memory from a thread of its own (`Populator` of the destination). One mailbox, in which the newest
// request replaces the one before: what loading has overtaken is not worth touching any more.

import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads';
import type { Segment } from './segment.js';

/** Words of the mailbox. Addresses in a segment are below 2^31. */
export const Mailbox = { version: 0, segment: 1, at: 2, end: 3 } as const;

export interface PopulatorThreadData {
  readonly mailbox: SharedArrayBuffer;
  /** Brings memories, in the order of their numbers in the mailbox. */
  readonly port: MessagePort;
}

export class BackgroundPopulator {
  readonly #mailbox = new Int32Array(new SharedArrayBuffer(Object.keys(Mailbox).length * 4));
  readonly #segments: Segment[] = [];
  readonly #port: MessagePort;
  readonly #worker: Worker;

  constructor() {
    const { port1, port2 } = new MessageChannel();
    this.#port = port1;
    const workerData: PopulatorThreadData = { mailbox: this.#mailbox.buffer, port: port2 };
    this.#worker = new Worker(new URL('./populator-thread-node.js', import.meta.url), {
      workerData,
      transferList: [port2],
    });
    // It only ever helps: nobody waits for it, and if it dies loading goes on.
    this.#worker.on('error', () => {});
    this.#worker.unref();
    this.#port.unref();
  }

  populate(segment: Segment, at: number, end: number): void {
    let index = this.#segments.indexOf(segment);
    if (index < 0) {
      index = this.#segments.push(segment) - 1;
      this.#port.postMessage(segment.memory);
    }
    // A request that is read half-written touches some other pages of guest memory, which changes nothing.
    Atomics.store(this.#mailbox, Mailbox.segment, index);
    Atomics.store(this.#mailbox, Mailbox.at, at);
    Atomics.store(this.#mailbox, Mailbox.end, end);
    Atomics.add(this.#mailbox, Mailbox.version, 1);
    Atomics.notify(this.#mailbox, Mailbox.version);
  }

  /** Ends the thread. */
  async close(): Promise<void> {
    this.#port.close();
    await this.#worker.terminate();
  }
}
