// The listening end of a verb that is the destination of one migration.

import type { ByteChannel } from '../channel/channel.js';
import { IncomingConnections } from '../channel/incoming-connections.js';
import { listen } from '../channel/listen-node.js';
import { beginsStream } from '../destination/first-words.js';
import type { Surroundings } from './read-memory-file.js';
import { Strangers } from './strangers.js';

/**
 * Says where it listens, and resolves with the first connection that begins a migration; nobody listens there any more
 * then. Whoever connects and leaves, says nothing or something else is named and keeps the source from nothing. A silent one is listened to as
 * long as it likes: the first words of a QEMU that has much memory and no return path come when its setup is done.
 */
export const acceptOne = async (uri: string, { signal, progress }: Surroundings): Promise<ByteChannel> => {
  const listener = await listen(uri);
  const strangers = new Strangers((text) => progress.note(text));
  const connections = new IncomingConnections(() => listener.accept(), {
    isPatient: true,
    onStranger: (stranger) => strangers.add(stranger),
  });
  try {
    progress.note(`listening on ${listener.uri}`);
    return await connections.find(beginsStream, signal);
  } finally {
    connections.close();
    await listener.close();
  }
};
