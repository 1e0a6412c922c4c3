// Sockets and pipes. Received bytes land in the reader's own buffers (`onread`), sent bytes leave from the caller's
// memory; neither is copied in this process (spec/node-performance.md section 3).

import net from 'node:net';
import type { ByteChannel, ChannelReader, WriteDone, WriteVector } from './channel.js';
import { channelDestroyed, channelError, peerClosed } from './channel-error.js';
import { addressInProcess, writeEntries } from './gather-node.js';
import { ReaderFeed } from './reader-feed.js';
import type { VectorCursor } from './vector-cursor.js';
import { byteLength, WriteQueue } from './write-queue.js';

export class SocketChannel implements ByteChannel {
  readonly peer: string;
  readonly origin: string | undefined;
  readonly closed: Promise<void>;
  readonly #socket: net.Socket;
  readonly #feed: ReaderFeed;
  readonly #queue = new WriteQueue();
  #busy = false;
  #failure: Error | undefined;
  #dropped = false;
  #inputEnded = false;
  #isClosed = false;
  /** Set once our direction shall end: called when the queue is empty. */
  #flushed: (() => void) | undefined;
  #ending: Promise<void> | undefined;

  /** `socket` is connected, was created with `feed.onread`, and is paused. */
  constructor(peer: string, socket: net.Socket, feed: ReaderFeed, origin?: string) {
    this.peer = peer;
    this.origin = origin;
    this.#socket = socket;
    this.#feed = feed;
    feed.onFault = (error) => {
      this.#failure ??= error instanceof Error ? error : new Error(String(error));
      socket.destroy();
    };
    socket.on('error', (error) => {
      this.#failure ??= channelError(error, this.#queue.length > 0 ? 'write to' : 'read from', peer);
    });
    socket.on('end', () => {
      this.#inputEnded = true;
      if (!this.#dropped) {
        feed.reader?.ended();
      }
    });
    this.closed = new Promise((resolve) => {
      socket.once('close', () => {
        this.#isClosed = true;
        this.#queue.fail(this.#error());
        this.#tellReader();
        resolve();
      });
    });
  }

  write(bytes: Uint8Array, done: WriteDone): void {
    this.#queue.push(bytes, done);
    this.#start();
  }

  addressOf(memory: Uint8Array): number | undefined {
    return this.#descriptor < 0 ? undefined : addressInProcess(memory);
  }

  writeVector(vector: WriteVector, done: WriteDone): void {
    this.#queue.pushVector(vector, done);
    this.#start();
  }

  /** -1 if there is none, as after the end. */
  get #descriptor(): number {
    return (this.#socket as unknown as { _handle: { fd?: number } | null })._handle?.fd ?? -1;
  }

  #start(): void {
    if (this.#isClosed) {
      process.nextTick(() => this.#queue.fail(this.#error()));
    } else {
      this.#writeNext();
    }
  }

  #writeNext(): void {
    if (this.#busy || this.#queue.length === 0 || this.#socket.destroyed) {
      return;
    }
    this.#busy = true;
    const { vector } = this.#queue;
    if (vector === undefined) {
      this.#writeBatch();
    } else {
      this.#writeVector(vector);
    }
  }

  /**
   * As much of the vector as the system takes at once; then the piece at which it stopped, or the last one, goes through
   * the event loop, which waits for room, tells of errors, and calls back.
   *
   *   writev ─▶ ███████▒░░░░░░░░   █ written  ▒ what is left of one piece: socket.write ─▶ room again: writev ─▶ …
   */
  #writeVector(vector: VectorCursor): void {
    if (vector.count > 1) {
      vector.advance(Math.max(0, writeEntries(this.#descriptor, vector.entries, vector.count - 1)));
    }
    const piece = vector.piece!;
    this.#socket.write(piece, (error) => {
      if (error || this.#socket.destroyed) {
        return;
      }
      vector.advance(piece.length);
      if (vector.count > 0) {
        this.#writeVector(vector);
      } else {
        this.#queue.vectorCompleted();
        this.#next();
      }
    });
  }

  /**
   * One batch at a time is given to the socket. Given everything, Node would gather all of it into one write and call
   * back when its last byte is written. A write that was under way when the socket was destroyed is called a success
   * by Node; so callbacks count only while the socket lives, and `close` settles the rest.
   */
  #writeBatch(): void {
    const pieces = this.#queue.batch();
    const last = pieces.length - 1;
    this.#socket.cork();
    for (const [index, piece] of pieces.entries()) {
      this.#socket.write(piece, index < last ? undefined : (error) => this.#written(pieces, error));
    }
    this.#socket.uncork();
  }

  #written(pieces: Uint8Array[], error: Error | null | undefined): void {
    if (error || this.#socket.destroyed) {
      return;
    }
    this.#queue.completed(byteLength(pieces));
    this.#next();
  }

  #next(): void {
    this.#busy = false;
    if (this.#queue.length > 0) {
      this.#writeNext();
    } else {
      this.#flushed?.();
    }
  }

  #error(): Error {
    return this.#failure ?? (this.#dropped ? channelDestroyed(this.peer) : peerClosed(this.peer, 'write to'));
  }

  #tellReader(): void {
    if (!this.#inputEnded && !this.#dropped) {
      this.#feed.reader?.failed(this.#failure ?? peerClosed(this.peer, 'read from'));
    }
  }

  read(reader: ChannelReader): void {
    this.#feed.start(reader);
    if (this.#isClosed) {
      process.nextTick(() => this.#tellReader());
    } else {
      this.resume();
    }
  }

  pause(): void {
    this.#feed.pause();
    this.#socket.pause();
  }

  resume(): void {
    if (this.#feed.resume() && !this.#socket.destroyed) {
      this.#socket.resume();
    }
  }

  end(): Promise<void> {
    this.#ending ??= new Promise((resolve, reject) => {
      this.#socket.once('finish', resolve);
      this.#flushed = () => this.#socket.end();
      if (this.#queue.length === 0) {
        this.#flushed();
      }
      void this.closed.then(() => reject(this.#error()));
    });
    return this.#ending;
  }

  destroy(): void {
    this.#dropped = true;
    this.#socket.destroy();
  }
}

/** Both directions stay open until each is ended for itself; small messages of the return path leave at once. */
export const SOCKET_OPTIONS = { allowHalfOpen: true, noDelay: true } as const;

export interface Directions {
  readonly readable: boolean;
  readonly writable: boolean;
}

const BOTH: Directions = { readable: true, writable: true };

/** A channel over an open descriptor of a socket or pipe, which it then owns. */
export const descriptorSocketChannel = (peer: string, descriptor: number, directions: Directions): SocketChannel => {
  const feed = new ReaderFeed();
  // The types lack `onread` here; the documentation of `new net.Socket` has it.
  const options = { ...SOCKET_OPTIONS, ...directions, fd: descriptor, onread: feed.onread };
  return new SocketChannel(peer, new net.Socket(options).pause(), feed);
};

/**
 * A channel over a socket that Node made without our `onread`: an accepted connection, a child's stdio.
 *
 * There is no option for those, so the native handle moves to a new socket. It has one owner at any time (the other
 * known way, a second socket over the same descriptor number, leaves two handles that both close it).
 */
export const adoptSocket = (
  peer: string,
  accepted: net.Socket,
  { directions = BOTH, origin }: { readonly directions?: Directions; readonly origin?: string | undefined } = {},
): SocketChannel => {
  const feed = new ReaderFeed();
  const owner = accepted as unknown as { _handle: { readStop(): void } | null };
  // A child's stdout is being read from the start; nothing has arrived yet within this turn of the event loop.
  owner._handle?.readStop();
  const options = {
    ...SOCKET_OPTIONS,
    ...directions,
    handle: owner._handle,
    onread: feed.onread,
  };
  owner._handle = null;
  const socket = new net.Socket(options as net.SocketConstructorOpts).pause();
  // Without a handle this only releases the server's count of connections.
  accepted.destroy();
  return new SocketChannel(peer, socket, feed, origin);
};
