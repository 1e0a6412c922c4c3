// A stream to mapped-ram: its pages go to their places while it is read. One that comes again replaces itself, so one pass is
// enough, and no index.

import { openPositionedFile } from '../../channel/positioned-file-node.js';
import { MappedRamTarget } from '../../destination/mapped-ram-target.js';
import type { StreamConfiguration } from '../../format/stream/configuration.js';
import { StreamFileReader } from '../../format/stream/stream-file-reader.js';
import type { RamSetup, StreamHandler, StreamSummary } from '../../format/stream/stream-handler.js';
import type { OpenedContainer } from '../../memory-file/open-snapshot-file-node.js';
import { damageAtOnce, type FileOptions, inSlices, type Surroundings } from '../read-memory-file.js';
import { type Converted, nameAndLength, sidecarOf } from './conversion.js';

/** Keeps what a stream holds besides pages. */
class StreamTarget extends MappedRamTarget implements StreamHandler {
  read: StreamConfiguration | undefined;
  setup: RamSetup | undefined;
  summary: StreamSummary | undefined;

  override configuration(configuration: StreamConfiguration): void {
    super.configuration(configuration);
    this.read = configuration;
  }

  override ramSetup(setup: RamSetup): void {
    super.ramSetup(setup);
    this.setup = setup;
  }

  end(summary: StreamSummary): void {
    this.summary = summary;
  }
}

export const placePages = async (
  container: OpenedContainer,
  out: string,
  { digest, pageSize }: FileOptions & { readonly digest: boolean },
  surroundings: Surroundings,
): Promise<Converted> => {
  const { readAt, sizeBytes, file, startOffset } = container;
  const damage = damageAtOnce(container);
  if (damage !== undefined) {
    throw damage;
  }
  const output = await openPositionedFile(out, { channels: 1 });
  try {
    const target = new StreamTarget(output, { digests: digest });
    const reader = new StreamFileReader(target, readAt, sizeBytes, {
      file,
      startOffset,
      ...(pageSize !== undefined && { targetPageSize: pageSize }),
    });
    await inSlices(surroundings, 'converting', sizeBytes - startOffset, () => reader.advance());
    reader.finish();
    await target.finish();
    const configuration = target.read!;
    const setup = target.setup!;
    const { tail } = target.summary!;
    target.writeDevices(tail);
    surroundings.progress.update({ phase: 'syncing the file' });
    await output.commit();
    const sidecar = await sidecarOf(out, { configuration, tail }, target);
    const blocks = setup.blocks.map(nameAndLength);
    return { configuration, setup, written: { blocks, fileBytes: target.fileBytes, ...sidecar } };
  } finally {
    output.abort();
  }
};
