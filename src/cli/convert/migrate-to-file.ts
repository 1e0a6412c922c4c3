// Any memory file to one that QEMU loads: through the engine, as any other guest.

import type { ByteChannel } from '../../channel/channel.js';
import { openFile } from '../../channel/descriptor-channel-node.js';
import { OutputFile } from '../../channel/output-file-node.js';
import { openPositionedFile } from '../../channel/positioned-file-node.js';
import { RamDigest } from '../../format/ram-digest.js';
import type { StreamConfiguration } from '../../format/stream/configuration.js';
import type { DeviceTail } from '../../format/stream/device-tail.js';
import { SnapshotGuest, type SnapshotGuestOptions } from '../../memory-file/snapshot-guest.js';
import { MappedRamSink } from '../../source/mapped-ram-sink.js';
import { MigrationSource } from '../../source/migration-source.js';
import type { PageSink } from '../../source/page-sink.js';
import { defaultParameters } from '../../source/parameters.js';
import { StreamSink } from '../../source/stream-sink.js';
import { progressOf } from '../migration-report.js';
import { isStdout, openStdout } from '../stdout-output.js';
import { type Conversion, nameAndLength, sidecarOf, type Written } from './conversion.js';

const migrate = async (
  { snapshot, file, surroundings }: Conversion,
  sink: PageSink,
  options: SnapshotGuestOptions = {},
): Promise<Written> => {
  const { signal, progress } = surroundings;
  const source = new MigrationSource({
    guest: new SnapshotGuest(snapshot, file, options),
    sink,
    parameters: { ...defaultParameters, maxBandwidth: 0 },
    onProgress: (report) => progress.update({ ...progressOf(report), phase: 'converting', iteration: undefined }),
  });
  const cancel = (): void => {
    source.cancel();
  };
  signal.addEventListener('abort', cancel);
  const { status } = await source.run();
  signal.removeEventListener('abort', cancel);
  if (status !== 'completed') {
    throw source.error ?? signal.reason;
  }
  return { blocks: snapshot.setup.blocks.map(nameAndLength), fileBytes: sink.transferred };
};

/** @param head what stands in front of the stream, in the file of another program */
export const writeStream = async (conversion: Conversion, head: Uint8Array = new Uint8Array()): Promise<Written> => {
  const migrateBehindHead = async (channel: ByteChannel, digest?: RamDigest): Promise<Written> => {
    if (head.length > 0) {
      await new Promise<void>((resolve, reject) => {
        channel.write(head, (error) => (error === undefined ? resolve() : reject(error)));
      });
    }
    const sink = new StreamSink(channel, { returnPath: false, isSaved: true });
    const written = await migrate(conversion, sink, { digest });
    return { ...written, fileBytes: head.length + written.fileBytes };
  };
  if (isStdout(conversion.out)) {
    return migrateBehindHead(openStdout());
  }
  const output = OutputFile.open(conversion.out);
  try {
    const channel = await openFile(conversion.out, output.currentPath, 'write', 0);
    const digest = conversion.digests ? new RamDigest(conversion.snapshot.setup.blocks) : undefined;
    const written = await migrateBehindHead(channel, digest);
    conversion.surroundings.progress.update({ phase: 'syncing the file' });
    await output.commit();
    return { ...written, ...(await sidecarOf(conversion.out, savedState(conversion), { digest })) };
  } finally {
    output.abort();
  }
};

/** What the engine has carried over, byte for byte. */
const savedState = ({
  snapshot,
}: Conversion): { readonly configuration: StreamConfiguration; readonly tail: DeviceTail } => ({
  configuration: snapshot.configuration,
  tail: snapshot.summary.tail,
});

/** The sink itself commits the file. */
export const writeMappedRam = async (conversion: Conversion): Promise<Written> => {
  // A thread that writes, and so much room that reading goes on meanwhile: a third less time than one after the other.
  const file = await openPositionedFile(conversion.out, { channels: 1 });
  try {
    const sink = new MappedRamSink(file, { digests: conversion.digests });
    const written = await migrate(conversion, sink, { windows: 8 });
    return { ...written, ...(await sidecarOf(conversion.out, savedState(conversion), sink)) };
  } finally {
    file.abort();
  }
};
