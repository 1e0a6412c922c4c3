// The migration stream of a snapshot, put together from the clusters in which it lies.

import { invalid } from '../invalid.js';
import type { ReadAt } from '../snapshot.js';
import { type DiskSnapshot, type Qcow2Disk, readL1 } from './disk.js';

/** Bits 9 to 55 of an entry are the offset in the file. */
const OFFSET_HIGH_MASK = 0x00ff_ffff;
const OFFSET_LOW_MASK = 0xffff_fe00;
/** In the upper half of an L2 entry. */
const COMPRESSED = 0x4000_0000;
/** In the lower half: reads as zeros, whatever it points to. */
const ZERO = 1;

const SUBCLUSTERS = 32;

/** L2 tables that are kept, 8 MiB of them at most: a stream is read from front to back. */
const KEPT_BYTES = 8 * 1024 * 1024;

/** A run of the stream that lies in one piece; zeros where `offset` is undefined. */
interface Extent {
  readonly offset: number | undefined;
  readonly bytes: number;
}

export class VmState {
  readonly sizeBytes: number;
  readonly #readAt: ReadAt;
  readonly #fileBytes: number;
  readonly #disk: Qcow2Disk;
  readonly #l1: DataView<ArrayBuffer>;
  /** Where in the snapshot's address space the stream begins. */
  readonly #start: number;
  /** Bytes that an L2 table stands for. */
  readonly #tableSpan: number;
  readonly #tables = new Map<number, DataView<ArrayBuffer>>();

  /** @throws RamferryError `invalid` if the snapshot's table is damaged or too short for its stream */
  constructor(readAt: ReadAt, fileBytes: number, disk: Qcow2Disk, snapshot: DiskSnapshot) {
    this.sizeBytes = snapshot.vmStateBytes;
    this.#readAt = readAt;
    this.#fileBytes = fileBytes;
    this.#disk = disk;
    this.#l1 = readL1(readAt, fileBytes, snapshot);
    this.#tableSpan = (disk.clusterBytes / disk.l2EntryBytes) * disk.clusterBytes;
    this.#start = Math.ceil(snapshot.diskBytes / this.#tableSpan) * this.#tableSpan;
    if (!(this.#start + this.sizeBytes <= snapshot.l1Entries * this.#tableSpan)) {
      const statement = `The table of snapshot ${snapshot.tag} is too short for ${this.sizeBytes} bytes of memory`;
      throw invalid('QCOW2_TABLE', statement, snapshot.l1Offset, { value: snapshot.l1Entries });
    }
  }

  /** Fills `target` with the stream's bytes from `position` on. */
  readonly readAt: ReadAt = (position, target) => {
    for (let done = 0; done < target.length; ) {
      const { offset, bytes } = this.#locate(position + done, target.length - done);
      const piece = target.subarray(done, done + bytes);
      if (offset === undefined) {
        piece.fill(0);
      } else {
        // The file may end inside its last cluster.
        const inFile = Math.min(bytes, this.#fileBytes - offset);
        this.#readAt(offset, piece.subarray(0, inFile));
        piece.fill(0, inFile);
      }
      done += bytes;
    }
  };

  /** Where the next bytes are, at least one of them and at most `limit`. */
  #locate(position: number, limit: number): Extent {
    const first = this.#unit(position);
    let { bytes } = first;
    // Clusters that follow each other in the file are read at once.
    while (bytes < limit) {
      const next = this.#unit(position + bytes);
      const isNext = first.offset === undefined ? next.offset === undefined : next.offset === first.offset + bytes;
      if (!isNext) {
        break;
      }
      bytes += next.bytes;
    }
    return { offset: first.offset, bytes: Math.min(bytes, limit) };
  }

  /** The rest of the cluster, or subcluster, in which `position` lies. */
  #unit(position: number): Extent {
    const { clusterBytes, l2EntryBytes } = this.#disk;
    const address = this.#start + position;
    const inCluster = address % clusterBytes;
    const table = this.#table(Math.floor(address / this.#tableSpan));
    if (table === undefined) {
      return { offset: undefined, bytes: clusterBytes - inCluster };
    }
    const at = (Math.floor(address / clusterBytes) % (clusterBytes / l2EntryBytes)) * l2EntryBytes;
    const [upper, lower] = [table.getUint32(at), table.getUint32(at + 4)];
    if ((upper & COMPRESSED) !== 0) {
      throw this.#invalid('QCOW2_COMPRESSED', `The cluster of byte ${position} of the saved memory is compressed`, at);
    }
    const offset = offsetOf(upper, lower);
    if (offset !== 0 && (offset % clusterBytes !== 0 || offset >= this.#fileBytes)) {
      throw this.#invalid('QCOW2_TABLE', `A cluster of the saved memory lies at ${offset}, not in the file`, offset);
    }
    if (l2EntryBytes === 8) {
      const isZero = offset === 0 || (lower & ZERO) !== 0;
      return { offset: isZero ? undefined : offset + inCluster, bytes: clusterBytes - inCluster };
    }
    const subclusterBytes = clusterBytes / SUBCLUSTERS;
    const allocated = (table.getUint32(at + 12) >>> Math.floor(inCluster / subclusterBytes)) & 1;
    return {
      offset: allocated === 0 || offset === 0 ? undefined : offset + inCluster,
      bytes: subclusterBytes - (inCluster % subclusterBytes),
    };
  }

  #table(index: number): DataView<ArrayBuffer> | undefined {
    const offset = offsetOf(this.#l1.getUint32(8 * index), this.#l1.getUint32(8 * index + 4));
    if (offset === 0) {
      return undefined;
    }
    let table = this.#tables.get(offset);
    if (table === undefined) {
      const { clusterBytes } = this.#disk;
      if (offset % clusterBytes !== 0 || offset + clusterBytes > this.#fileBytes) {
        throw this.#invalid('QCOW2_TABLE', `A table of the saved memory lies at ${offset}, not in the file`, offset);
      }
      const bytes = new Uint8Array(clusterBytes);
      this.#readAt(offset, bytes);
      table = new DataView(bytes.buffer);
      if (this.#tables.size * clusterBytes >= KEPT_BYTES) {
        this.#tables.delete(this.#tables.keys().next().value!);
      }
      this.#tables.set(offset, table);
    }
    return table;
  }

  #invalid(code: string, statement: string, offset: number): Error {
    return invalid(code, statement, offset, { value: offset });
  }
}

const offsetOf = (upper: number, lower: number): number =>
  (upper & OFFSET_HIGH_MASK) * 0x1_0000_0000 + ((lower & OFFSET_LOW_MASK) >>> 0);
