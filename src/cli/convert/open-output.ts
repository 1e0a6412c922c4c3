// Where a conversion writes: a file of its own, in which every byte has its place, or something that takes bytes in order.

import fs from 'node:fs';
import { promisify } from 'node:util';
import type { ByteChannel } from '../../channel/channel.js';
import { channelError } from '../../channel/channel-error.js';
import { OutputFile } from '../../channel/output-file-node.js';
import { isStdout, openStdout } from '../stdout-output.js';

const writeSome = promisify(fs.write);

/** stdout, a named pipe or a device. */
export interface SequentialOutput {
  /** The bytes are used again when it has resolved. */
  write(bytes: Uint8Array): Promise<void>;
  commit(): Promise<void>;
  abort(): void;
}

/** @throws RamferryError if it cannot be written */
export const openOutput = (out: string): OutputFile | SequentialOutput => {
  if (isStdout(out)) {
    return toStdout(openStdout());
  }
  const output = OutputFile.open(out);
  // A device holds what somebody else has left there, and a pipe has no positions.
  return output.isNew ? output : inOrder(output, out);
};

const toStdout = (channel: ByteChannel): SequentialOutput => ({
  write: (bytes) =>
    new Promise((resolve, reject) => {
      channel.write(bytes, (error) => (error === undefined ? resolve() : reject(error)));
    }),
  async commit() {
    await channel.end();
  },
  abort() {
    // Nobody else is to get the number of stdout.
  },
});

const inOrder = (output: OutputFile, file: string): SequentialOutput => ({
  async write(bytes) {
    try {
      for (let at = 0; at < bytes.length; ) {
        at += (await writeSome(output.descriptor, bytes, at)).bytesWritten;
      }
    } catch (error) {
      throw channelError(error, 'write', file);
    }
  },
  commit: () => output.commit(),
  abort: () => output.abort(),
});
