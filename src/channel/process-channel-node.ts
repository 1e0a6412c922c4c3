// `exec:COMMAND`: the command's stdin and stdout are the channel, and its exit status decides whether all went well.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import type net from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { RamferryError } from '../memory/errors.js';
import type { ByteChannel, ChannelReader } from './channel.js';
import { channelError } from './channel-error.js';
import { joinHalves } from './channel-halves.js';
import type { Direction } from './descriptor-channel-node.js';
import { adoptSocket } from './socket-channel-node.js';

/** A command that closed its stdin is usually about to exit; its exit status says more than a broken pipe. */
const EXIT_STATUS_MS = 1000;

/** How long a dropped command may take to obey SIGTERM. */
const KILL_AFTER_MS = 2000;

/** Resolves with nothing once the command exited with status 0, else with the error to report. */
const exitOf = (child: ChildProcess, peer: string): Promise<RamferryError | undefined> =>
  new Promise((resolve) => {
    child.once('exit', (status, signal) => {
      const how = signal === null ? `exited with status ${status}` : `was killed by ${signal}`;
      resolve(
        status === 0
          ? undefined
          : new RamferryError('failed', 'COMMAND_FAILED', `The command of ${peer} ${how}.`, {
              file: peer,
              value: signal ?? status ?? 0,
              hint: 'what the command printed on stderr says more',
            }),
      );
    });
  });

/**
 * Runs `/bin/sh -c COMMAND`. With direction `read` its stdin is empty, with `write` its stdout goes to our stderr; its
 * stderr always does. A status other than 0 fails the reader in place of `ended`, or `end()` where nothing is read.
 */
export const startCommand = async (peer: string, command: string, direction: Direction): Promise<ByteChannel> => {
  const reads = direction !== 'write';
  const child = spawn('/bin/sh', ['-c', command], {
    stdio: [direction === 'read' ? 'ignore' : 'pipe', reads ? 'pipe' : 2, 2],
  });
  if (child.pid === undefined) {
    throw channelError((await once(child, 'error'))[0], 'start', peer);
  }
  const exit = exitOf(child, peer);
  const input =
    child.stdout === null
      ? undefined
      : adoptSocket(peer, child.stdout as net.Socket, { directions: { readable: true, writable: false } });
  const output =
    child.stdin === null
      ? undefined
      : adoptSocket(peer, child.stdin as net.Socket, { directions: { readable: false, writable: true } });

  let dropped = false;
  const explained = async (error: Error): Promise<Error> =>
    dropped ? error : ((await Promise.race([exit, delay(EXIT_STATUS_MS, undefined, { ref: false })])) ?? error);

  const pipes = joinHalves(peer, input, output);
  return {
    ...pipes,
    read: (reader: ChannelReader) =>
      pipes.read({
        buffer: () => reader.buffer(),
        received: (byteCount) => reader.received(byteCount),
        ended: () => void exit.then((failure) => (failure === undefined ? reader.ended() : reader.failed(failure))),
        failed: (error) => void explained(error).then((cause) => reader.failed(cause)),
      }),
    write: (bytes, done) =>
      pipes.write(bytes, (error) => {
        if (error === undefined) {
          done(undefined);
        } else {
          void explained(error).then(done);
        }
      }),
    end: async () => {
      try {
        await pipes.end();
      } catch (error) {
        throw await explained(error as Error);
      }
      const failure = reads ? undefined : await exit;
      if (failure !== undefined) {
        throw failure;
      }
    },
    destroy: () => {
      dropped = true;
      pipes.destroy();
      if (child.exitCode === null && child.signalCode === null) {
        child.kill('SIGTERM');
        const timer = setTimeout(() => child.kill('SIGKILL'), KILL_AFTER_MS);
        timer.unref();
        void exit.then(() => clearTimeout(timer));
      }
    },
    closed: Promise.all([pipes.closed, exit]).then(() => {}),
  };
};
