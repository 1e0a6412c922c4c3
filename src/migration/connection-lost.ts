import { RamferryError } from '../memory/errors.js';

/** The error of a guest whose memory cannot come any more: what it was to come over is gone. */
export const connectionLost = (uri: string, cause?: Error): RamferryError =>
  new RamferryError('failed', 'PEER_CLOSED', `The connection to ${uri} broke before all memory was there.`, {
    file: uri,
    cause,
  });
