// Who is at the other end of a unix socket, as the system knows it: SO_PEERCRED, which Node has no call for.

import { systemFunction } from '../memory/system-library-node.js';

const SOL_SOCKET = 1;
const SO_PEERCRED = 17;

/** pid, uid, gid. */
const CREDENTIALS_WORDS = 3;

/** The user that connected; undefined where the system does not say. */
export const socketOwner = (descriptor: number): number | undefined => {
  const getsockopt = systemFunction('int getsockopt(int fd, int level, int name, void *value, void *length)');
  const credentials = new Int32Array(CREDENTIALS_WORDS);
  const length = Int32Array.of(credentials.byteLength);
  const bytes = (words: Int32Array): Uint8Array => new Uint8Array(words.buffer);
  const isKnown =
    getsockopt !== undefined &&
    descriptor >= 0 &&
    getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, bytes(credentials), bytes(length)) === 0 &&
    length[0] === credentials.byteLength;
  // Of a TCP connection that is gone already the system says -1.
  return isKnown && credentials[1] !== -1 ? credentials[1]! >>> 0 : undefined;
};
