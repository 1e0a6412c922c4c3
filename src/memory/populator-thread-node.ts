// The populator's thread: touches every page it is asked for, and looks for a newer request as often as it makes sense.

import { receiveMessageOnPort, workerData } from 'node:worker_threads';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { Mailbox, type PopulatorThreadData } from './populator-node.js';

/** Touched between two looks at the mailbox: a huge page. */
const STEP_BYTES = 2 * 2 ** 20;

const { mailbox: shared, port } = workerData as PopulatorThreadData;
const mailbox = new Int32Array(shared);
const memories: Int32Array[] = [];

let segment = -1;
let cursor = 0;
for (;;) {
  const version = Atomics.load(mailbox, Mailbox.version);
  const wanted = Atomics.load(mailbox, Mailbox.segment);
  const at = Atomics.load(mailbox, Mailbox.at);
  const end = Atomics.load(mailbox, Mailbox.end);
  while (version > 0 && memories[wanted] === undefined) {
    const { message } = receiveMessageOnPort(port) as { message: WebAssembly.Memory };
    memories.push(new Int32Array(message.buffer));
  }
  cursor = segment === wanted && cursor <= end ? Math.max(cursor, at) : at;
  segment = wanted;
  const words = memories[wanted];
  const stepEnd = Math.min(end, cursor + STEP_BYTES);
  for (; words !== undefined && cursor < stepEnd; cursor += GUEST_PAGE_SIZE) {
    // Adding nothing, atomically: the page is written to, and its content stays whatever others store there meanwhile.
    Atomics.add(words, cursor / 4, 0);
  }
  if (cursor >= end) {
    Atomics.wait(mailbox, Mailbox.version, version);
  }
}
