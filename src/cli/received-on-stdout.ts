// What `receive` writes to stdout: the stream as it would stand in a file.

import type { ByteChannel, WriteDone } from '../channel/channel.js';
import { FileTarget } from '../destination/file-target.js';
import { openStdout } from './stdout-output.js';

/** As an output file of `receive`; whoever reads stdout has to keep what came until all of it has. */
export class ReceivedOnStdout {
  readonly target: FileTarget;
  bytes = 0;
  isCommitted = false;
  readonly #channel: ByteChannel = openStdout();

  constructor() {
    this.target = new FileTarget(this);
  }

  write(bytes: Uint8Array, done: WriteDone): void {
    this.bytes += bytes.length;
    this.#channel.write(bytes, done);
  }

  async commit(): Promise<void> {
    await this.#channel.end();
    this.isCommitted = true;
  }

  async abandon(): Promise<void> {
    this.#channel.destroy();
  }
}
