// What `inspect` says about a memory file, by the names of DESIGN section 4, which `verify` and `receive` use as well.

import type { LibvirtFormat } from '../format/libvirt/save-image.js';
import type { DiskSnapshot } from '../format/qcow2/index.js';
import type { PageCounts } from '../format/snapshot.js';
import { Capability, STREAM_VERSION } from '../format/stream/constants.js';
import type { DeviceSection } from '../format/stream/device-sections.js';
import type { StreamSummary } from '../format/stream/stream-handler.js';
import { memoryDevices } from '../format/virtio/index.js';
import type { Wrapping } from '../memory-file/open-snapshot-file-node.js';
import type { MemoryFile } from './read-memory-file.js';

export interface BlockDocument extends PageCounts {
  readonly name: string;
  readonly usedLength: number;
  readonly pageSize: number;
  /** Set if the file leaves its content out: its absent pages are not zero. */
  readonly elsewhere?: true;
}

/** What the head of a libvirt save image says. */
export interface LibvirtDocument {
  readonly format: LibvirtFormat;
  readonly wasRunning: boolean;
  /** Where the stream, packed or not, begins in the file. */
  readonly dataOffset: number;
}

/** A snapshot in a disk image. */
export interface DiskSnapshotDocument {
  readonly id: string;
  readonly tag: string;
  /** Of the stream; 0 if the snapshot is of the disk alone. */
  readonly vmStateBytes: number;
  readonly diskBytes: number;
  /** When it was made. */
  readonly date: string;
  /** How long the guest had run. */
  readonly 'vm-clock-ms': number;
}

export const diskSnapshotDocument = (snapshot: DiskSnapshot): DiskSnapshotDocument => {
  const { id, tag, vmStateBytes, diskBytes, seconds, clockMs } = snapshot;
  return { id, tag, vmStateBytes, diskBytes, date: new Date(seconds * 1000).toISOString(), 'vm-clock-ms': clockMs };
};

export interface MemoryDocument {
  readonly file: string;
  readonly container: 'qemu' | 'libvirt' | 'qcow2';
  /** What the file as a whole is packed by. */
  readonly packed?: Wrapping | undefined;
  readonly format: 'stream' | 'mapped-ram';
  /** Of a libvirt save image. */
  readonly libvirt?: LibvirtDocument | undefined;
  /** Of a disk image. */
  readonly snapshot?: DiskSnapshotDocument | undefined;
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
  /** Of a guest with virtio-mem devices: how much of each region is plugged, in bytes. */
  readonly memoryDevices?: readonly MemoryDeviceDocument[] | undefined;
}

export interface MemoryDeviceDocument {
  readonly name: string;
  readonly regionSize: number;
  readonly blockSize: number;
  readonly pluggedSize: number;
}

/** Of a damaged file, what is there up to the damage. */
export const memoryDocument = ({
  file,
  libvirt,
  diskSnapshot,
  wrappings,
  soFar,
  snapshot,
  damage,
}: MemoryFile): MemoryDocument => {
  const { configuration, setup, counts } = soFar;
  const { machine, uuid, capabilities } = configuration!;
  const pageSize = setup?.targetPageSize;
  const memory = snapshot && memoryDeviceDocuments(snapshot.summary);
  const sum = (field: keyof PageCounts): number => counts.reduce((total, block) => total + block[field], 0);
  return {
    file,
    container: libvirt !== undefined ? 'libvirt' : diskSnapshot !== undefined ? 'qcow2' : 'qemu',
    packed: wrappings.find((name) => name === 'gzip' || name === 'zstd'),
    format: capabilities.includes(Capability.MAPPED_RAM) ? 'mapped-ram' : 'stream',
    libvirt: libvirt && {
      format: libvirt.format,
      wasRunning: libvirt.wasRunning,
      dataOffset: libvirt.dataOffset,
    },
    snapshot: diskSnapshot && diskSnapshotDocument(diskSnapshot),
    streamVersion: STREAM_VERSION,
    machine,
    uuid,
    targetPageSize: pageSize,
    capabilities,
    complete: damage === undefined && (snapshot?.summary.complete ?? false),
    warnings: [...(snapshot?.summary.warnings ?? []), ...(memory?.warnings ?? [])],
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
      ...(snapshot?.elsewhere.has(index) && { elsewhere: true as const }),
    })),
    devices: snapshot?.summary.devices ?? [],
    memoryDevices: memory?.devices,
  };
};

/** A state that makes no sense is a warning here: the file is whole all the same. */
const memoryDeviceDocuments = (
  summary: StreamSummary,
): { readonly devices: readonly MemoryDeviceDocument[] | undefined; readonly warnings: readonly string[] } => {
  try {
    const devices = memoryDevices(summary).map(({ name, regionSize, blockSize, pluggedSize }) => {
      return { name, regionSize, blockSize, pluggedSize };
    });
    return { devices: devices.length === 0 ? undefined : devices, warnings: [] };
  } catch (error) {
    return { devices: undefined, warnings: [(error as Error).message] };
  }
};
