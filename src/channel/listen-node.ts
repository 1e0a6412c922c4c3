// Listens at a `tcp:` or `unix:` address.

import { lookup } from 'node:dns/promises';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { RamferryError } from '../memory/errors.js';
import type { ByteChannel, ChannelListener } from './channel.js';
import { channelError } from './channel-error.js';
import { adoptSocket, SOCKET_OPTIONS } from './socket-channel-node.js';
import { socketOwner } from './socket-owner-node.js';
import { type Endpoint, formatUri, parseUri, usageError } from './uri.js';
import type { TcpEndpoint } from './uri-tcp.js';

/** Connections that wait for an `accept`: more than the 255 channels multifd can ask for, and still bounded. */
const MAX_WAITING = 512;

const systemCode = (error: unknown): string | undefined => (error as NodeJS.ErrnoException).code;

const bind = (server: net.Server, address: net.ListenOptions): Promise<void> =>
  new Promise((resolve, reject) => {
    const failed = (error: Error): void => {
      server.off('listening', bound);
      reject(error);
    };
    const bound = (): void => {
      server.off('error', failed);
      resolve();
    };
    // The server is used for the next port where this one is taken: neither may stay.
    server.once('error', failed).once('listening', bound);
    server.listen(address);
  });

/** True if `path` is a socket that nobody listens at: a listener died and left it. */
const isStale = async (path: string): Promise<boolean> => {
  if (!fs.lstatSync(path, { throwIfNoEntry: false })?.isSocket()) {
    return false;
  }
  return new Promise((resolve) => {
    const probe = net.connect({ path });
    probe.once('connect', () => {
      probe.destroy();
      resolve(false);
    });
    probe.once('error', (error) => resolve(systemCode(error) === 'ECONNREFUSED'));
  });
};

const bindUnix = async (server: net.Server, path: string): Promise<void> => {
  try {
    await bind(server, { path });
  } catch (error) {
    refuseMissingFolder(path);
    if (systemCode(error) !== 'EADDRINUSE') {
      throw error;
    }
    if (await isStale(path)) {
      fs.unlinkSync(path);
      await bind(server, { path });
    } else if (fs.lstatSync(path).isSocket()) {
      throw error;
    } else {
      throw new RamferryError('failed', 'FILE_EXISTS', `Cannot listen on unix:${path}: there is a file of that name.`, {
        file: path,
        hint: 'choose another path; the file was left as it is',
      });
    }
  }
};

/** Node reports a folder that is not there as one that may not be entered. */
const refuseMissingFolder = (socket: string): void => {
  const folder = path.dirname(socket);
  if (fs.statSync(folder, { throwIfNoEntry: false }) === undefined) {
    throw new RamferryError('failed', 'NOT_FOUND', `Cannot listen on unix:${socket}: there is no folder ${folder}.`, {
      file: socket,
    });
  }
};

/** Binds the first port that is free of those asked for. */
const bindTcp = async (server: net.Server, { host, port, family, lastPort = port }: TcpEndpoint): Promise<void> => {
  const every = family === 4 ? '0.0.0.0' : family === 6 ? '::' : undefined;
  const address = host === '' || family === undefined ? host || every : (await lookup(host, { family })).address;
  for (let next = port; ; next += 1) {
    try {
      return await bind(server, { host: address, port: next, ipv6Only: family === 6 });
    } catch (error) {
      if (systemCode(error) !== 'EADDRINUSE' || next >= lastPort) {
        throw error;
      }
    }
  }
};

/** An IPv4 address that a socket of both versions shows as one of IPv6, as people write it. */
const plainAddress = (address: string): string => address.replace(/^::ffff:(?=\d+\.\d+\.\d+\.\d+$)/, '');

/** An IPv4 address is one, however the listener is bound. A connection that is gone already has none. */
const originOf = (connection: net.Socket): string | undefined => {
  const { remoteAddress } = connection;
  if (remoteAddress !== undefined) {
    return `host ${plainAddress(remoteAddress)}`;
  }
  const owner = socketOwner((connection as unknown as { _handle: { fd?: number } | null })._handle?.fd ?? -1);
  return owner === undefined ? undefined : `user ${owner}`;
};

class SocketListener implements ChannelListener {
  readonly uri: string;
  readonly #server: net.Server;
  readonly #connected: ByteChannel[] = [];
  readonly #waiting: { resolve(channel: ByteChannel): void; reject(error: Error): void }[] = [];
  #closing: Promise<void> | undefined;

  constructor(server: net.Server, endpoint: Endpoint) {
    this.#server = server;
    this.uri = formatUri(endpoint);
    server.on('connection', (connection) => this.#connection(connection));
    // No descriptor was free for a connection, for example: the listener itself stays.
    server.on('error', (error) => this.#rejectWaiting(channelError(error, 'accept a connection on', this.uri)));
  }

  #connection(connection: net.Socket): void {
    if (this.#connected.length >= MAX_WAITING) {
      connection.destroy();
      return;
    }
    const { remoteAddress: host, remotePort: port } = connection;
    const peer =
      host === undefined || port === undefined ? this.uri : formatUri({ kind: 'tcp', host: plainAddress(host), port });
    const channel = adoptSocket(peer, connection, { origin: originOf(connection) });
    const next = this.#waiting.shift();
    if (next === undefined) {
      this.#connected.push(channel);
    } else {
      next.resolve(channel);
    }
  }

  accept(): Promise<ByteChannel> {
    return new Promise((resolve, reject) => {
      const channel = this.#connected.shift();
      if (channel !== undefined) {
        resolve(channel);
      } else if (this.#closing !== undefined) {
        reject(this.#closedError());
      } else {
        this.#waiting.push({ resolve, reject });
      }
    });
  }

  close(): Promise<void> {
    this.#closing ??= new Promise((resolve) => {
      // Removes the socket file, too.
      this.#server.close(() => resolve());
      this.#rejectWaiting(this.#closedError());
      for (const channel of this.#connected.splice(0)) {
        channel.destroy();
      }
    });
    return this.#closing;
  }

  #rejectWaiting(error: Error): void {
    for (const { reject } of this.#waiting.splice(0)) {
      reject(error);
    }
  }

  #closedError(): RamferryError {
    return new RamferryError('failed', 'LISTENER_CLOSED', `Nobody listens on ${this.uri} any more.`, {
      file: this.uri,
    });
  }
}

/**
 * Starts to listen at a `tcp:` or `unix:` URI. A socket file that a dead listener left is replaced; any other file is
 * not touched. Rejects with a `RamferryError`.
 */
export const listen = async (uri: string): Promise<ChannelListener> => {
  const endpoint = parseUri(uri);
  const server = net.createServer({
    ...SOCKET_OPTIONS,
    keepAlive: endpoint.kind === 'tcp' && endpoint.keepAlive === true,
    pauseOnConnect: true,
  });
  try {
    if (endpoint.kind === 'unix') {
      await bindUnix(server, endpoint.path);
      return new SocketListener(server, endpoint);
    }
    if (endpoint.kind === 'tcp') {
      await bindTcp(server, endpoint);
      // Where it is bound in truth: a name may stand for several addresses, and no address for all.
      const { address, port } = server.address() as net.AddressInfo;
      return new SocketListener(server, { kind: 'tcp', host: address, port });
    }
  } catch (error) {
    throw channelError(error, 'listen on', uri);
  }
  throw usageError(uri, 'only tcp: and unix: can be listened on');
};
