// A file as the end of a channel that is written: `file:PATH[,offset=N]`. It has its name only when its writer has said that it
// is complete, and it is on disk: until then, and for ever if the writer drops the channel, PATH is what it was.

import type { ByteChannel, WriteDone } from './channel.js';
import { channelError } from './channel-error.js';
import { joinHalves, type OutputHalf } from './channel-halves.js';
import { copyHead } from './copy-head-node.js';
import { openFile } from './descriptor-channel-node.js';
import { OutputFile } from './output-file-node.js';

class CommittedOutput implements OutputHalf {
  readonly closed: Promise<void>;
  readonly #file: OutputFile;
  readonly #channel: ByteChannel;
  #ending: Promise<void> | undefined;

  constructor(file: OutputFile, channel: ByteChannel) {
    this.#file = file;
    this.#channel = channel;
    // Not before the thread that writes is back.
    this.closed = channel.closed.then(async () => {
      await this.#ending?.catch(() => {});
      file.abort();
    });
  }

  write(bytes: Uint8Array, done: WriteDone): void {
    this.#channel.write(bytes, done);
  }

  end(): Promise<void> {
    this.#ending ??= this.#channel.end().then(() => this.#file.commit());
    return this.#ending;
  }

  destroy(): void {
    this.#channel.destroy();
    if (this.#ending !== undefined) {
      // Everything is written, and the disk is waited for: whoever drops it now does not want it.
      this.#file.abort();
    }
  }
}

/** The channel that writes a file from `offset` on; what is before that in a file that is there already stays. */
export const openOutputFile = async (peer: string, path: string, offset: number): Promise<ByteChannel> => {
  const file = OutputFile.open(path);
  try {
    if (offset > 0) {
      copyHead(path, file.descriptor, offset);
    }
    const channel = await openFile(peer, file.currentPath, 'write', offset);
    return joinHalves(peer, undefined, new CommittedOutput(file, channel));
  } catch (error) {
    file.abort();
    throw channelError(error, 'open', peer);
  }
};
