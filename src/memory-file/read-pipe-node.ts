// A pipe has no positions: what comes out of it is copied first. That is stdin of `zstd -dc guest.mig.zst | ramferry inspect -`,
// `<(ssh host2 cat guest.mig)` of a shell, or a named pipe.

import fs from 'node:fs';
import { Socket } from 'node:net';
import { isatty } from 'node:tty';
import { channelError } from '../channel/channel-error.js';
import { RamferryError } from '../memory/errors.js';
import { shellCommand } from '../memory/shell-command.js';
import type { FileReader } from './file-reader-node.js';
import { type CopyOptions, unnamedCopy } from './unnamed-copy-node.js';

/** The number in a path that names a descriptor of this process. */
const ownDescriptor = (file: string): number | undefined => {
  const match = /^\/(?:dev\/(?:(stdin)|fd\/(\d+))|proc\/self\/fd\/(\d+))$/.exec(file);
  return match === null ? undefined : Number(match[1] === undefined ? (match[2] ?? match[3]) : 0);
};

/**
 * All that comes out of a pipe. Resolves with undefined where `file` is none.
 * @throws RamferryError
 */
export const readPipe = async (file: string, options: CopyOptions): Promise<FileReader | undefined> => {
  const descriptor = ownDescriptor(file);
  let stat: fs.Stats | undefined;
  try {
    stat = descriptor === undefined ? fs.statSync(file) : fs.fstatSync(descriptor);
  } catch (error) {
    throw channelError(error, 'open', file);
  }
  if (descriptor !== undefined && isTerminal(stat, descriptor)) {
    throw new RamferryError('usage', 'IS_TERMINAL', `${file} is a terminal, and no memory file comes from there.`, {
      file,
      hint: `Give the name of a file, or feed one into it, as in: ${shellCommand`ramferry inspect - < guest.mig`}`,
    });
  }
  if (!stat.isFIFO() && !(stat.isSocket() && descriptor !== undefined)) {
    return undefined;
  }
  let opened: number;
  try {
    // A pipe that is open already is read where it is open: opened anew, it would wait for a writer that has left. A named
    // one must not keep this thread from everything else until somebody writes into it.
    opened = descriptor ?? fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
  } catch (error) {
    throw channelError(error, 'open', file);
  }
  const source = new Socket({ fd: opened, readable: true, writable: false });
  try {
    return await unnamedCopy(file, source, [], options);
  } catch (error) {
    options.signal?.throwIfAborted();
    throw channelError(error, 'read', file);
  } finally {
    source.destroy();
  }
};

const isTerminal = (stat: fs.Stats, descriptor: number): boolean => stat.isCharacterDevice() && isatty(descriptor);
