// The stream that goes with mapped memory: a whole migration, except that of the mapped blocks no page is sent but those
// that have to become zero.

import fs from 'node:fs';
import { openFile } from '../channel/descriptor-channel-node.js';
import { openPath, openUnnamedFile, UNNAMED_FILE } from '../channel/unnamed-file-node.js';
import type { Snapshot } from '../format/snapshot.js';
import { SnapshotGuest, type SnapshotGuestOptions } from '../memory-file/snapshot-guest.js';
import { MigrationSource } from '../source/migration-source.js';
import { defaultParameters } from '../source/parameters.js';
import { StreamSink } from '../source/stream-sink.js';

/** Resolves with an unnamed file that holds the stream; `options` say which blocks are mapped, and the guest's state. */
export const writeRestoreStream = async (
  snapshot: Snapshot,
  file: string,
  options: Pick<SnapshotGuestOptions, 'held' | 'runState'>,
  signal?: AbortSignal,
): Promise<number> => {
  signal?.throwIfAborted();
  const descriptor = openUnnamedFile();
  try {
    await write(descriptor, snapshot, file, options, signal);
    return descriptor;
  } catch (error) {
    fs.closeSync(descriptor);
    throw error;
  }
};

const write = async (
  descriptor: number,
  snapshot: Snapshot,
  file: string,
  options: Pick<SnapshotGuestOptions, 'held' | 'runState'>,
  signal: AbortSignal | undefined,
): Promise<void> => {
  const channel = await openFile(UNNAMED_FILE, openPath(descriptor), 'write', 0);
  const source = new MigrationSource({
    guest: new SnapshotGuest(snapshot, file, options),
    sink: new StreamSink(channel, { returnPath: false }),
    parameters: { ...defaultParameters, maxBandwidth: 0 },
  });
  const cancel = (): void => {
    source.cancel();
  };
  signal?.addEventListener('abort', cancel);
  const { status } = await source.run();
  signal?.removeEventListener('abort', cancel);
  if (status !== 'completed') {
    throw source.error ?? signal?.reason;
  }
};
