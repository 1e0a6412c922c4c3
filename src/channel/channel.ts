// What the engines need of a byte channel, whatever it is made of: a socket, a file, a child process, stdio.

/** Consumer of incoming bytes: says where the next ones go, so that they land in guest memory's staging without a copy. */
export interface ChannelReader {
  /** Space for the next bytes, at least one byte long. Asked anew before every read. */
  buffer(): Uint8Array;
  /** `byteCount` bytes were written to the start of the last buffer. */
  received(byteCount: number): void;
  /** The peer ended its direction; nothing follows. */
  ended(): void;
  /** The channel broke; nothing follows. */
  failed(error: Error): void;
}

/** Called once the bytes of a write were handed to the system, or could not be. */
export type WriteDone = (error: Error | undefined) => void;

/** Pieces of one memory in the order in which they are to be written. */
export interface WriteVector {
  readonly memory: Uint8Array;
  /** Address of `memory` in the process, as `addressOf` gave it. */
  readonly base: number;
  /** Address and length of each piece, 64-bit little-endian (the system's `struct iovec`). The channel may change them. */
  readonly entries: Uint8Array;
  /** Sum of all lengths. */
  readonly byteCount: number;
}

/** A connected, bidirectional (or one-way, as a file is) byte channel. */
export interface ByteChannel {
  /** How messages name the other end: `unix:/tmp/x`, `tcp:127.0.0.1:4444`, `file:/tmp/x`. */
  readonly peer: string;

  /** Who is there, as far as the system says: `host 10.0.0.7`, `user 1000`. Of accepted connections only. */
  readonly origin?: string | undefined;

  /**
   * Queues bytes. The memory behind `bytes` belongs to the channel until `done` is called: nothing copies it before
   * the system call that writes it. `done` gets the error if the bytes could not be written; it is called exactly
   * once, in order, never synchronously.
   */
  write(bytes: Uint8Array, done: WriteDone): void;

  /** The address of `memory` in the process if `writeVector` can be used, else undefined. */
  addressOf?(memory: Uint8Array): number | undefined;

  /** As `write`, of pieces that stay where they are: the system reads them some time before `done`. */
  writeVector?(vector: WriteVector, done: WriteDone): void;

  /** Starts reading into `reader`. Once per channel, unless `pause` was called. */
  read(reader: ChannelReader): void;

  /** Stops asking the reader for buffers until `resume`; one read already under way may still arrive. */
  pause(): void;
  resume(): void;

  /** Flushes, then ends our direction; resolves when everything was handed to the system. */
  end(): Promise<void>;

  /** Drops the channel at once, with whatever is queued. Safe to call at any time and repeatedly. */
  destroy(): void;

  /** Resolves when both directions are gone; never rejects. */
  readonly closed: Promise<void>;
}

/** A listening end: yields one channel for each accepted connection. */
export interface ChannelListener {
  /** The bound address, as a URI a peer can connect to (a port 0 is replaced by the real one). */
  readonly uri: string;
  /** Resolves with the next connection; rejects when the listener is closed. */
  accept(): Promise<ByteChannel>;
  close(): Promise<void>;
}
