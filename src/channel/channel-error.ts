// Turns what the operating system says ("EPIPE") into errors that say what it means for a migration.

import { RamferryError } from '../memory/errors.js';

interface Meaning {
  readonly code: string;
  readonly reason: string;
  readonly hint?: string;
}

const PEER_CLOSED: Meaning = {
  code: 'PEER_CLOSED',
  reason: 'the peer closed the connection',
  hint: 'the peer printed why, if it noticed a problem',
};
const UNREACHABLE: Meaning = { code: 'PEER_UNREACHABLE', reason: 'the peer cannot be reached' };
const PERMISSION_DENIED: Meaning = { code: 'PERMISSION_DENIED', reason: 'permission denied' };

const meanings: Readonly<Record<string, Meaning>> = {
  ECONNREFUSED: {
    code: 'CONNECT_REFUSED',
    reason: 'nobody accepts connections there',
    hint: 'start the destination first',
  },
  ECONNRESET: PEER_CLOSED,
  EPIPE: PEER_CLOSED,
  ETIMEDOUT: UNREACHABLE,
  EHOSTUNREACH: UNREACHABLE,
  ENETUNREACH: UNREACHABLE,
  ENOTFOUND: { code: 'HOST_NOT_FOUND', reason: 'the host name is not known' },
  EAI_AGAIN: { code: 'HOST_NOT_FOUND', reason: 'the host name could not be resolved' },
  EADDRINUSE: { code: 'ADDRESS_IN_USE', reason: 'somebody listens there already' },
  EADDRNOTAVAIL: { code: 'ADDRESS_NOT_AVAILABLE', reason: 'no interface of this machine has that address' },
  EACCES: PERMISSION_DENIED,
  EPERM: PERMISSION_DENIED,
  ENOENT: { code: 'NOT_FOUND', reason: 'there is no such file or directory' },
  EISDIR: { code: 'IS_DIRECTORY', reason: 'it is a directory' },
  ENOTDIR: { code: 'NOT_FOUND', reason: 'a part of the path is not a directory' },
  ENOTSOCK: { code: 'NOT_A_SOCKET', reason: 'it is not a socket' },
  EBADF: { code: 'NO_DESCRIPTOR', reason: 'the descriptor is not open, or not open for that' },
  ENOSPC: { code: 'NO_SPACE', reason: 'no space is left on the device' },
  EDQUOT: { code: 'NO_SPACE', reason: 'the disk quota is exhausted' },
  EFBIG: { code: 'NO_SPACE', reason: 'the file would be larger than the limit allows' },
  EIO: { code: 'IO_ERROR', reason: 'the device reports an input or output error' },
  ESPIPE: { code: 'NOT_SEEKABLE', reason: 'it cannot be written at positions', hint: 'give the path of a file' },
  EROFS: { code: 'READ_ONLY', reason: 'the file system is read-only' },
};

/**
 * The error for a failed system call. `activity` and `peer` fill the sentence "Cannot ACTIVITY PEER: …".
 * An error that is ours already passes unchanged.
 */
export const channelError = (error: unknown, activity: string, peer: string): RamferryError => {
  if (error instanceof RamferryError) {
    return error;
  }
  const systemCode = (error as NodeJS.ErrnoException | undefined)?.code ?? '';
  const meaning = meanings[systemCode];
  const reason = meaning?.reason ?? (error instanceof Error ? error.message : String(error));
  return new RamferryError('failed', meaning?.code ?? 'CHANNEL_FAILED', `Cannot ${activity} ${peer}: ${reason}.`, {
    file: peer,
    cause: error,
    ...(meaning?.hint === undefined ? {} : { hint: meaning.hint }),
  });
};

/** What a write gets that was still queued when its owner dropped the channel. */
export const channelDestroyed = (peer: string): RamferryError =>
  new RamferryError(
    'failed',
    'CHANNEL_DESTROYED',
    `The channel to ${peer} was dropped before everything was written.`,
    {
      file: peer,
    },
  );

/** The peer vanished without ending its direction first. */
export const peerClosed = (peer: string, activity: string): RamferryError =>
  channelError({ code: 'ECONNRESET' }, activity, peer);

/** A named pipe has nobody at its other end. */
export const pipeWithoutReader = (file: string, peer: string): RamferryError =>
  new RamferryError('failed', 'NO_READER', `Cannot write ${peer}: nobody reads this pipe.`, {
    file,
    hint: 'start its reader first',
  });
