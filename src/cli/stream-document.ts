// What `inspect` says about a stream file, by the names of DESIGN section 4, which `verify` and `receive` use as well.

import { Capability, STREAM_VERSION } from '../format/stream/constants.js';
import type { DeviceSection } from '../format/stream/device-sections.js';
import type { PageCounts } from '../format/stream/record-index.js';
import type { StreamFile } from './read-stream-file.js';

export interface BlockDocument extends PageCounts {
  readonly name: string;
  readonly usedLength: number;
  readonly pageSize: number;
}

export interface StreamDocument {
  readonly file: string;
  readonly container: 'qemu';
  readonly format: 'stream' | 'mapped-ram';
  readonly streamVersion: number;
  readonly machine: string;
  readonly uuid?: string | undefined;
  readonly targetPageSize?: number | undefined;
  readonly capabilities: readonly string[];
  readonly complete: boolean;
  readonly warnings: readonly string[];
  readonly ram?: (PageCounts & { readonly totalBytes: number; readonly pageSize: number }) | undefined;
  readonly blocks: readonly BlockDocument[];
  readonly devices: readonly DeviceSection[];
}

/** Of a damaged file, what is there up to the damage. */
export const streamDocument = ({ file, soFar, snapshot }: StreamFile): StreamDocument => {
  const { configuration, setup, counts } = soFar;
  const { machine, uuid, capabilities } = configuration!;
  const pageSize = setup?.targetPageSize;
  const sum = (field: keyof PageCounts): number => counts.reduce((total, block) => total + block[field], 0);
  return {
    file,
    container: 'qemu',
    format: capabilities.includes(Capability.MAPPED_RAM) ? 'mapped-ram' : 'stream',
    streamVersion: STREAM_VERSION,
    machine,
    uuid,
    targetPageSize: pageSize,
    capabilities,
    complete: snapshot?.summary.complete ?? false,
    warnings: snapshot?.summary.warnings ?? [],
    ram: setup && {
      totalBytes: setup.totalBytes,
      pageSize: setup.targetPageSize,
      presentPages: sum('presentPages'),
      zeroPages: sum('zeroPages'),
      absentPages: sum('absentPages'),
    },
    blocks: (setup?.blocks ?? []).map(({ name, usedLength, index }) => ({
      name,
      usedLength,
      pageSize: setup!.targetPageSize,
      ...counts[index]!,
    })),
    devices: snapshot?.summary.devices ?? [],
  };
};
