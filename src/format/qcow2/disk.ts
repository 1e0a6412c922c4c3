// The snapshots of a qcow2 disk image: `savevm` keeps the guest's memory, as a migration stream, in the disk itself.
//
//   header ─▶ snapshot table ─▶ L1 table of the snapshot ─▶ L2 tables ─▶ clusters
//             | disk, as it was                            | unused | vmstate |
//             0                                            ▲ first entry of the L1 table that lies behind the disk
//
// Written for what hostile files can do: each table is within a limit and within the file before it is read, and there are
// two levels of tables, whatever they say, so nothing can go round in circles. Reference counts are not looked at.

import { be16, be32, be64, be64Exact } from '../bytes.js';
import { invalid } from '../invalid.js';
import type { ReadAt } from '../snapshot.js';

const MAGIC = 0x5146_49fb;
const HEADER_BYTES = 104;
/** Version 2 ends here. */
const SHORT_HEADER_BYTES = 72;

const SMALLEST_CLUSTER_BITS = 9;
/** 2 MiB: QEMU takes no larger ones. */
const LARGEST_CLUSTER_BITS = 21;
/** QEMU's limits of both tables. */
const SNAPSHOT_LIMIT = 65_536;
const L1_LIMIT_ENTRIES = (32 * 1024 * 1024) / 8;
const EXTRA_LIMIT_BYTES = 1024;
const SNAPSHOT_HEAD_BYTES = 40;

const EXTENDED_L2 = 4n;
/** Features that change how an image is read, and that are read here: dirty, corrupt, compression type, extended L2. */
const READABLE_FEATURES = 0b1_1011n;
const featureNames = ['dirty', 'corrupt', 'external data file', 'compression type', 'extended L2 entries'];
const EXTERNAL_DATA_FILE = 2n;
const encryptions = ['none', 'AES', 'LUKS'];

/** A snapshot inside a disk image. */
export interface DiskSnapshot {
  readonly id: string;
  /** The name that `savevm` was given. */
  readonly tag: string;
  /** Bytes of the migration stream; 0 of a snapshot of the disk alone. */
  readonly vmStateBytes: number;
  /** Size of the disk at that time. */
  readonly diskBytes: number;
  /** When it was made, in seconds since 1970. */
  readonly seconds: number;
  /** How long the guest had run, in milliseconds. */
  readonly clockMs: number;
  readonly l1Offset: number;
  readonly l1Entries: number;
}

export interface Qcow2Disk {
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  /** 8, or 16 with a bitmap of subclusters. */
  readonly l2EntryBytes: number;
  readonly snapshots: readonly DiskSnapshot[];
}

export const isQcow2 = (head: Uint8Array): boolean => head.length >= 4 && be32(head, 0) === MAGIC;

/**
 * Reads header and snapshot table.
 * @param sizeBytes of the file
 * @throws RamferryError `invalid`
 */
export const readQcow2Disk = (readAt: ReadAt, sizeBytes: number): Qcow2Disk => {
  if (sizeBytes < SHORT_HEADER_BYTES) {
    throw invalid('QCOW2_HEADER', 'The qcow2 image ends inside its header', sizeBytes);
  }
  const header = new Uint8Array(HEADER_BYTES);
  readAt(0, header.subarray(0, Math.min(HEADER_BYTES, sizeBytes)));
  const version = be32(header, 4);
  if (version !== 2 && version !== 3) {
    throw invalid('QCOW2_HEADER', `The qcow2 image has version ${version}, and 2 and 3 are known`, 4, {
      value: version,
    });
  }
  const clusterBits = be32(header, 20);
  if (clusterBits < SMALLEST_CLUSTER_BITS || clusterBits > LARGEST_CLUSTER_BITS) {
    throw invalid('QCOW2_HEADER', `The qcow2 image has clusters of 2^${clusterBits} bytes`, 20, { value: clusterBits });
  }
  refuseEncryption(be32(header, 32));
  const features = version === 2 ? 0n : be64Exact(header, 72);
  refuseFeatures(features);
  const disk = {
    sizeBytes: be64(header, 24),
    clusterBytes: 2 ** clusterBits,
    l2EntryBytes: (features >> EXTENDED_L2) & 1n ? 16 : 8,
  };
  const table = { offset: be64(header, 64), count: be32(header, 60) };
  return { ...disk, snapshots: readSnapshots(readAt, sizeBytes, table, disk.sizeBytes) };
};

const refuseEncryption = (method: number): void => {
  if (method !== 0) {
    const name = encryptions[method] ?? `method ${method}`;
    throw invalid('QCOW2_ENCRYPTED', `The qcow2 image is encrypted (${name})`, 32, {
      value: method,
      hint: 'QEMU decrypts it: start it with the disk and -loadvm, then save with migrate.',
    });
  }
};

const refuseFeatures = (features: bigint): void => {
  if ((features >> EXTERNAL_DATA_FILE) & 1n) {
    throw invalid('QCOW2_DATA_FILE', 'The qcow2 image keeps its data in another file', 72, {
      value: features,
      hint: 'Only QEMU knows where: start it with the disk and -loadvm, then save with migrate.',
    });
  }
  const unknown = features & ~READABLE_FEATURES;
  if (unknown !== 0n) {
    const bit = unknown.toString(2).length - 1;
    throw invalid('QCOW2_FEATURE', `The qcow2 image has feature ${featureNames[bit] ?? `bit ${bit}`}`, 72, {
      value: features,
    });
  }
};

const readSnapshots = (
  readAt: ReadAt,
  sizeBytes: number,
  { offset, count }: { readonly offset: number; readonly count: number },
  diskBytes: number,
): DiskSnapshot[] => {
  if (count > SNAPSHOT_LIMIT) {
    throw invalid('QCOW2_SNAPSHOTS', `The qcow2 image has ${count} snapshots`, 60, { value: count });
  }
  const snapshots: DiskSnapshot[] = [];
  let at = offset;
  const take = (bytes: number): Uint8Array => {
    if (!(at + bytes <= sizeBytes)) {
      const statement = `Snapshot ${snapshots.length + 1} of ${count} of the qcow2 image lies outside of the file`;
      throw invalid('QCOW2_SNAPSHOTS', statement, at, { value: at });
    }
    const taken = new Uint8Array(bytes);
    readAt(at, taken);
    at += bytes;
    return taken;
  };
  while (snapshots.length < count) {
    const start = at;
    const head = take(SNAPSHOT_HEAD_BYTES);
    const extraBytes = be32(head, 36);
    if (extraBytes > EXTRA_LIMIT_BYTES) {
      const statement = `A snapshot of the qcow2 image has ${extraBytes} bytes of extra data`;
      throw invalid('QCOW2_SNAPSHOTS', statement, start + 36, { value: extraBytes });
    }
    const extra = take(extraBytes);
    const id = take(be16(head, 12));
    const tag = take(be16(head, 14));
    snapshots.push({
      id: new TextDecoder().decode(id),
      tag: new TextDecoder().decode(tag),
      vmStateBytes: extraBytes >= 8 ? be64(extra, 0) : be32(head, 32),
      diskBytes: extraBytes >= 16 ? be64(extra, 8) : diskBytes,
      seconds: be32(head, 16),
      clockMs: Number(be64Exact(head, 24) / 1_000_000n),
      l1Offset: be64(head, 0),
      l1Entries: be32(head, 8),
    });
    // Each begins at a multiple of 8.
    at += (8 - ((at - offset) % 8)) % 8;
  }
  return snapshots;
};

/** The L1 table of a snapshot, checked against the limits and the file. */
export const readL1 = (
  readAt: ReadAt,
  sizeBytes: number,
  { tag, l1Offset, l1Entries }: DiskSnapshot,
): DataView<ArrayBuffer> => {
  if (l1Entries > L1_LIMIT_ENTRIES || !(l1Offset + 8 * l1Entries <= sizeBytes)) {
    const statement = `The table of snapshot ${tag}, of ${l1Entries} entries, lies outside of the file`;
    throw invalid('QCOW2_TABLE', statement, l1Offset, { value: l1Entries });
  }
  const bytes = new Uint8Array(8 * l1Entries);
  readAt(l1Offset, bytes);
  return new DataView(bytes.buffer);
};
