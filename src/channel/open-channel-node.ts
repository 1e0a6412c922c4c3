// Opens the channel that a URI names.

import fs from 'node:fs';
import net from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import type { ByteChannel } from './channel.js';
import { channelError } from './channel-error.js';
import { type Direction, descriptorChannel, openFile, stdioChannel } from './descriptor-channel-node.js';
import { openOutputFile } from './output-file-channel-node.js';
import { startCommand } from './process-channel-node.js';
import { ReaderFeed } from './reader-feed.js';
import { SOCKET_OPTIONS, SocketChannel } from './socket-channel-node.js';
import { SocketFileWatch } from './socket-file-watch-node.js';
import { formatUri, parseUri, usageError } from './uri.js';
import type { TcpEndpoint } from './uri-tcp.js';

export interface OpenOptions {
  /**
   * Which way the bytes shall go at least. Sockets always go both ways; files and pipes refuse `both`; `exec:` connects
   * exactly what is asked for.
   */
  readonly direction: Direction;
  /** Gives up while still connecting; what is open already is dropped with `destroy`. */
  readonly signal?: AbortSignal;
  /**
   * For how long `tcp:` and `unix:` try again while nobody accepts connections: a destination that is started together
   * with its source may listen a moment later. 0, the default, tries once.
   */
  readonly retryMs?: number;
  /** How long between two tries; default 50 ms. A socket file that appears is tried at once. */
  readonly retryPauseMs?: number;
}

const RETRY_PAUSE_MS = 50;

/** The address for `net.connect`. */
export const connectAddress = ({ host, port, family, keepAlive }: TcpEndpoint): net.TcpNetConnectOpts => ({
  host,
  port,
  ...(family !== undefined && { family }),
  ...(keepAlive === true && { keepAlive }),
});

/** What a peer that does not listen yet answers with: refused, or no socket file. */
const mayComeLater = (error: unknown): boolean =>
  ['ECONNREFUSED', 'ENOENT'].includes((error as NodeJS.ErrnoException).code ?? '');

const connectOnce = (
  peer: string,
  address: net.NetConnectOpts,
  signal: AbortSignal | undefined,
): Promise<ByteChannel> =>
  new Promise((resolve, reject) => {
    const feed = new ReaderFeed();
    // Paused before it is connected: nothing is read until somebody says where it shall go.
    const socket = net.connect({ ...SOCKET_OPTIONS, ...address, onread: feed.onread }).pause();
    const abort = (): void => {
      socket.destroy();
      reject(signal?.reason);
    };
    const settled = (): void => {
      socket.off('error', failed);
      signal?.removeEventListener('abort', abort);
    };
    const failed = (error: Error): void => {
      settled();
      reject(error);
    };
    socket.once('error', failed);
    socket.once('connect', () => {
      settled();
      resolve(new SocketChannel(peer, socket, feed));
    });
    signal?.addEventListener('abort', abort, { once: true });
  });

const connect = async (
  peer: string,
  address: net.TcpNetConnectOpts | net.IpcNetConnectOpts,
  options: OpenOptions,
): Promise<ByteChannel> => {
  const { signal, retryMs = 0, retryPauseMs = RETRY_PAUSE_MS } = options;
  const deadline = performance.now() + retryMs;
  const watch = retryMs > 0 && 'path' in address ? new SocketFileWatch(address.path) : undefined;
  try {
    for (;;) {
      try {
        return await connectOnce(peer, address, signal);
      } catch (error) {
        signal?.throwIfAborted();
        if (!mayComeLater(error) || performance.now() + retryPauseMs > deadline) {
          throw channelError(error, 'connect to', peer);
        }
      }
      await (watch?.pause(retryPauseMs) ?? delay(retryPauseMs));
      signal?.throwIfAborted();
    }
  } finally {
    watch?.close();
  }
};

/** A device or a pipe can only be written as it is. */
const isReplaceable = (path: string): boolean => fs.statSync(path, { throwIfNoEntry: false })?.isFile() ?? true;

/**
 * Opens `uri`. A file that is written has its name when the channel has ended, whole and on disk, and not before. Rejects with a `RamferryError` that names it, `usage` if the URI itself is wrong, or with the signal's
 * reason.
 */
export const openChannel = async (uri: string, options: OpenOptions): Promise<ByteChannel> => {
  const endpoint = parseUri(uri);
  options.signal?.throwIfAborted();
  const peer = formatUri(endpoint);
  switch (endpoint.kind) {
    case 'tcp':
      if (endpoint.lastPort !== undefined) {
        throw usageError(uri, 'to= is a choice of ports to listen on, and this one is to be connected to');
      }
      if (endpoint.host === '' || endpoint.port === 0) {
        throw usageError(uri, 'to connect, it needs a host and a port other than 0');
      }
      return connect(peer, connectAddress(endpoint), options);
    case 'unix':
      return connect(peer, { path: endpoint.path }, options);
    case 'file':
      return options.direction === 'write' && isReplaceable(endpoint.path)
        ? openOutputFile(peer, endpoint.path, endpoint.offset)
        : openFile(peer, endpoint.path, options.direction, endpoint.offset);
    case 'exec':
      return startCommand(peer, endpoint.command, options.direction);
    case 'fd':
      return descriptorChannel(peer, endpoint.descriptor, options.direction);
    case 'stdio':
      return stdioChannel(options.direction);
  }
};
