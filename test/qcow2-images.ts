// A qcow2 disk image with snapshots, as far as its reader looks: header, snapshot table, tables and clusters.

export interface TestSnapshot {
  readonly id: string;
  readonly tag: string;
  /** The stream; empty for a snapshot of the disk alone. */
  readonly vmState: Uint8Array;
}

export interface Qcow2Options {
  readonly version?: 2 | 3;
  readonly clusterBits?: number;
  readonly diskBytes?: number;
  readonly features?: bigint;
  readonly encryption?: number;
  /** Clusters of the stream lie from the last to the first. */
  readonly backwards?: boolean;
}

/** Clusters that are all zeros are not there, as QEMU leaves them; entries have subclusters where the features say so. */
export const qcow2Image = (
  snapshots: readonly TestSnapshot[],
  {
    version = 3,
    clusterBits = 12,
    diskBytes = 3 * 2 ** 20 + 512,
    features = 0n,
    encryption = 0,
    backwards,
  }: Qcow2Options = {},
): Buffer => {
  const clusterBytes = 2 ** clusterBits;
  const entryBytes = features & 16n ? 16 : 8;
  const span = (clusterBytes / entryBytes) * clusterBytes;
  const clusters: Buffer[] = [Buffer.alloc(clusterBytes)];
  const add = (bytes: Uint8Array): number => {
    const count = Math.ceil(bytes.length / clusterBytes);
    const offset = clusters.length * clusterBytes;
    for (let index = 0; index < count; index += 1) {
      const cluster = Buffer.alloc(clusterBytes);
      cluster.set(bytes.subarray(index * clusterBytes, (index + 1) * clusterBytes));
      clusters.push(cluster);
    }
    return offset;
  };
  const heads = snapshots.map(({ id, tag, vmState }) => {
    const start = Math.ceil(diskBytes / span);
    const tables = Math.ceil(vmState.length / span);
    const l1 = Buffer.alloc(8 * (start + tables));
    const pieces = Array.from({ length: Math.ceil(vmState.length / clusterBytes) }, (_, index) =>
      vmState.subarray(index * clusterBytes, (index + 1) * clusterBytes),
    );
    const offsets = new Map<number, number>();
    for (const index of backwards ? [...pieces.keys()].reverse() : pieces.keys()) {
      if (pieces[index]!.some((byte) => byte !== 0)) {
        offsets.set(index, add(pieces[index]!));
      }
    }
    for (let table = 0; table < tables; table += 1) {
      const l2 = Buffer.alloc(clusterBytes);
      for (let entry = 0; entry < clusterBytes / entryBytes; entry += 1) {
        const offset = offsets.get((table * clusterBytes) / entryBytes + entry);
        if (offset !== undefined) {
          l2.writeBigUInt64BE(BigInt(offset) | (1n << 63n), entry * entryBytes);
          if (entryBytes === 16) {
            l2.writeBigUInt64BE(0xffff_ffffn, entry * entryBytes + 8);
          }
        }
      }
      l1.writeBigUInt64BE(BigInt(add(l2)) | (1n << 63n), 8 * (start + table));
    }
    const name = Buffer.from(id + tag);
    const head = Buffer.alloc(Math.ceil((40 + 16 + name.length) / 8) * 8);
    head.writeBigUInt64BE(BigInt(add(l1)), 0);
    head.writeUInt32BE(l1.length / 8, 8);
    head.writeUInt16BE(Buffer.byteLength(id), 12);
    head.writeUInt16BE(Buffer.byteLength(tag), 14);
    head.writeUInt32BE(1_700_000_000, 16);
    head.writeBigUInt64BE(12_000_000_000n, 24);
    head.writeUInt32BE(16, 36);
    head.writeBigUInt64BE(BigInt(vmState.length), 40);
    head.writeBigUInt64BE(BigInt(diskBytes), 48);
    name.copy(head, 56);
    return head;
  });
  const header = clusters[0]!;
  header.writeUInt32BE(0x5146_49fb, 0);
  header.writeUInt32BE(version, 4);
  header.writeUInt32BE(clusterBits, 20);
  header.writeBigUInt64BE(BigInt(diskBytes), 24);
  header.writeUInt32BE(encryption, 32);
  header.writeUInt32BE(snapshots.length, 60);
  header.writeBigUInt64BE(BigInt(add(Buffer.concat(heads))), 64);
  if (version === 3) {
    header.writeBigUInt64BE(features, 72);
  }
  return Buffer.concat(clusters);
};
