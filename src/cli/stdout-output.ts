// An output that is stdout: `-`, or any of its paths. What a verb reports goes to stderr then.

import fs from 'node:fs';
import { isatty } from 'node:tty';
import type { ByteChannel, WriteDone } from '../channel/channel.js';
import { channelDestroyed, channelError } from '../channel/channel-error.js';
import { joinHalves, type OutputHalf } from '../channel/channel-halves.js';
import { RamferryError } from '../memory/errors.js';

const NAME = 'stdout';
const STDOUT_DESCRIPTOR = 1;
/** How stdout is called, which is `-` on the command line. */
export const STDOUT = '/dev/stdout';
const PATHS: ReadonlySet<string> = new Set(['-', STDOUT, '/dev/fd/1', '/proc/self/fd/1']);

/** Whether an output operand is stdout. A pipe is, by whatever path; a file that it is redirected to is a file of its own. */
export const isStdout = (out: string): boolean => {
  if (PATHS.has(out)) {
    return true;
  }
  try {
    const stat = fs.statSync(out);
    const own = fs.fstatSync(STDOUT_DESCRIPTOR);
    return stat.isFIFO() && stat.dev === own.dev && stat.ino === own.ino;
  } catch {
    return false;
  }
};

/** Refuses a format whose parts are not written in order. */
export const refuseUnorderedStdout = (out: string, format: string, hint: string): void => {
  if (isStdout(out)) {
    throw new RamferryError('usage', 'NOT_SEEKABLE', `Format ${format} cannot be written to stdout.`, {
      file: out,
      hint,
    });
  }
};

/**
 * A channel that writes to stdout. It is not closed in the end: nothing else may get its number.
 * @throws RamferryError `IS_TERMINAL`
 */
export const openStdout = (): ByteChannel => {
  if (isatty(STDOUT_DESCRIPTOR)) {
    throw new RamferryError('usage', 'IS_TERMINAL', 'Stdout is a terminal; guest memory is not for reading aloud.', {
      hint: 'redirect it to a file or a pipe',
    });
  }
  return joinHalves(NAME, undefined, new StdoutHalf());
};

/** Through the stream that Node has for it, which knows how to write to whatever it is. */
class StdoutHalf implements OutputHalf {
  readonly closed: Promise<void>;
  #resolveClosed = (): void => {};
  #failure: Error | undefined;

  constructor() {
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
  }

  write(bytes: Uint8Array, done: WriteDone): void {
    if (this.#failure !== undefined) {
      process.nextTick(done, this.#failure);
      return;
    }
    process.stdout.write(bytes, (error) => {
      if (error) {
        this.#failure ??= writeError(error);
      }
      done(this.#failure);
    });
  }

  /** Writes of nothing come after all others. */
  async end(): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.write(new Uint8Array(), (error) => (error === undefined ? resolve() : reject(error)));
    });
    this.#resolveClosed();
  }

  destroy(): void {
    this.#failure ??= channelDestroyed(NAME);
    this.#resolveClosed();
  }
}

const writeError = (error: Error): RamferryError =>
  (error as NodeJS.ErrnoException).code === 'EPIPE'
    ? new RamferryError('failed', 'PEER_CLOSED', 'Cannot write to stdout: whoever read it is gone.', { cause: error })
    : channelError(error, 'write to', NAME);
