// Channels over descriptors that are open already: `file:`, `fd:N`, `-`. What the descriptor is decides how to do it.

import fs from 'node:fs';
import { isatty } from 'node:tty';
import { RamferryError } from '../memory/errors.js';
import type { ByteChannel } from './channel.js';
import { channelError, pipeWithoutReader } from './channel-error.js';
import { joinHalves } from './channel-halves.js';
import { FileInput, FileOutput } from './file-channel-node.js';
import { descriptorSocketChannel } from './socket-channel-node.js';

export type Direction = 'read' | 'write' | 'both';

/**
 * A channel over `descriptor`, which it owns from now on. A socket is a channel both ways whatever the `direction`;
 * files and pipes go one way only. `position` is the offset in a regular file, null to go on where the descriptor
 * stands.
 */
export const descriptorChannel = (
  peer: string,
  descriptor: number,
  direction: Direction,
  position: number | null = null,
): ByteChannel => {
  let stat: fs.Stats;
  try {
    stat = fs.fstatSync(descriptor);
  } catch (error) {
    throw channelError(error, 'use', peer);
  }
  // Where stdio is sockets, they are used like the pipes they stand for.
  if (stat.isSocket() && descriptor > 2) {
    return descriptorSocketChannel(peer, descriptor, { readable: true, writable: true });
  }
  if (direction === 'both') {
    throw oneWay(peer);
  }
  if (isatty(descriptor)) {
    throw new RamferryError('usage', 'IS_TERMINAL', `${peer} is a terminal; guest memory is not for reading aloud.`, {
      file: peer,
      hint: 'redirect it to a file or a pipe',
    });
  }
  const reads = direction === 'read';
  if (stat.isFIFO() || stat.isSocket()) {
    return descriptorSocketChannel(peer, descriptor, { readable: reads, writable: !reads });
  }
  if (stat.isDirectory()) {
    throw channelError({ code: 'EISDIR' }, 'use', peer);
  }
  return reads
    ? joinHalves(peer, new FileInput(peer, descriptor, position))
    : joinHalves(peer, undefined, new FileOutput(peer, descriptor, position));
};

/** Opens a file as QEMU does: created if missing, and cut off at the offset, so that what lies before it stays. */
export const openFile = async (
  peer: string,
  path: string,
  direction: Direction,
  offset: number,
): Promise<ByteChannel> => {
  if (direction === 'both') {
    // Before an empty file is left there.
    throw oneWay(peer);
  }
  const { O_RDONLY, O_WRONLY, O_CREAT, O_NONBLOCK } = fs.constants;
  // Opened as others are, a named pipe whose other end nobody has would keep its thread, and this process, for ever.
  const isPipe = fs.statSync(path, { throwIfNoEntry: false })?.isFIFO() === true;
  let descriptor: number | undefined;
  try {
    descriptor = await new Promise<number>((resolve, reject) => {
      // 0600: guest memory holds the guest's secrets.
      const flags = (direction === 'read' ? O_RDONLY : O_WRONLY | O_CREAT) | (isPipe ? O_NONBLOCK : 0);
      fs.open(path, flags, 0o600, (error, opened) => (error ? reject(error) : resolve(opened)));
    });
    const isRegular = fs.fstatSync(descriptor).isFile();
    if (isRegular && direction === 'write') {
      fs.ftruncateSync(descriptor, offset);
    }
    return descriptorChannel(peer, descriptor, direction, isRegular ? offset : null);
  } catch (error) {
    if (descriptor !== undefined) {
      fs.closeSync(descriptor);
    }
    throw isPipe && (error as NodeJS.ErrnoException).code === 'ENXIO'
      ? pipeWithoutReader(path, peer)
      : channelError(error, 'open', peer);
  }
};

/** stdin and stdout, as far as the direction needs them. */
export const stdioChannel = (direction: Direction): ByteChannel =>
  joinHalves(
    '-',
    direction === 'write' ? undefined : descriptorChannel('stdin', 0, 'read'),
    direction === 'read' ? undefined : descriptorChannel('stdout', 1, 'write'),
  );

const oneWay = (peer: string): RamferryError =>
  new RamferryError('usage', 'ONE_WAY', `${peer} goes one way only, and both are needed.`, {
    file: peer,
    hint: 'use a socket, or do without the return path',
  });
