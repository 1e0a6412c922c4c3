// The listening end of a verb that is the destination of one migration.

import type { ByteChannel } from '../channel/channel.js';
import { listen } from '../channel/listen-node.js';
import type { Surroundings } from './read-memory-file.js';

/** Says where it listens, and resolves with the first connection; nobody listens there any more then. */
export const acceptOne = async (uri: string, { signal, progress }: Surroundings): Promise<ByteChannel> => {
  const listener = await listen(uri);
  const close = (): void => void listener.close();
  signal.addEventListener('abort', close);
  try {
    progress.note(`listening on ${listener.uri}`);
    return await listener.accept();
  } finally {
    signal.removeEventListener('abort', close);
    await listener.close();
  }
};
