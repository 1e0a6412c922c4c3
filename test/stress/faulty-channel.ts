// A connection that breaks after some bytes, or from which nothing is read any more.

import type { ByteChannel, ChannelReader } from '../../src/channel/channel.js';

export interface ChannelFault {
  /** Break when so many bytes were read, or written. */
  readonly cutAfterRead?: number;
  readonly cutAfterWritten?: number;
  /** Stop reading when so many bytes were read. */
  readonly deafAfter?: number;
  /** Called when so many bytes were read. */
  readonly hookAfter?: { readonly bytes: number; readonly run: (channel: ByteChannel) => void };
}

/** A channel that can be broken from outside, as a link breaks: its reader is told, which a `destroy` of its own does not. */
export interface BreakableChannel extends ByteChannel {
  break(): void;
}

/** The channel with its fault. */
export const faulty = (channel: ByteChannel, fault: ChannelFault = {}, onFault = (): void => {}): BreakableChannel => {
  const { cutAfterRead = Number.POSITIVE_INFINITY, cutAfterWritten = Number.POSITIVE_INFINITY, hookAfter } = fault;
  const { deafAfter = Number.POSITIVE_INFINITY } = fault;
  let read = 0;
  let written = 0;
  let isHooked = false;
  let isBroken = false;
  let failed = (_error: Error): void => {};
  const cut = (): void => {
    onFault();
    if (!isBroken) {
      isBroken = true;
      channel.destroy();
      setImmediate(() => failed(new Error('the test cut the link')));
    }
  };
  return {
    peer: channel.peer,
    closed: channel.closed,
    write: (bytes, done) => {
      written += bytes.length;
      const isLast = written >= cutAfterWritten;
      channel.write(bytes, (error) => {
        done(error);
        if (isLast) {
          cut();
        }
      });
    },
    read: (reader: ChannelReader) => {
      let isOver = false;
      const over = (tell: () => void): void => {
        if (!isOver) {
          isOver = true;
          tell();
        }
      };
      failed = (error) => over(() => reader.failed(error));
      channel.read({
        buffer: () => {
          const buffer = reader.buffer();
          // Not a byte more than what gets through.
          return buffer.subarray(0, Math.max(1, Math.min(buffer.length, cutAfterRead - read)));
        },
        received: (byteCount) => {
          if (isOver) {
            return;
          }
          read += byteCount;
          reader.received(byteCount);
          if (hookAfter !== undefined && !isHooked && read >= hookAfter.bytes) {
            isHooked = true;
            hookAfter.run(channel);
          }
          if (read >= cutAfterRead) {
            cut();
          } else if (read >= deafAfter) {
            onFault();
            channel.pause();
          }
        },
        ended: () => over(() => reader.ended()),
        failed: (error) => over(() => reader.failed(error)),
      });
    },
    break: cut,
    pause: () => channel.pause(),
    resume: () => channel.resume(),
    end: () => channel.end(),
    destroy: () => channel.destroy(),
  };
};
