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

/** A connected, bidirectional (or one-way, as a file is) byte channel. */
export interface ByteChannel {
  /** How messages name the other end: `unix:/tmp/x`, `tcp:127.0.0.1:4444`, `file:/tmp/x`. */
  readonly peer: string;

  /**
   * Queues bytes. The memory behind `bytes` belongs to the channel until `done` is called: nothing copies it before
   * the system call that writes it. `done` gets the error if the bytes could not be written; it is called exactly
   * once, in order, never synchronously.
   */
  write(bytes: Uint8Array, done: (error: Error | undefined) => void): void;

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
