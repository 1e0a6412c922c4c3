// Device state of a virtio device as QEMU lays it out (hw/virtio/virtio.c: virtio_save; read from real streams). What the
// transport has to say comes first; its length nothing tells:
//
//   transport   status u8  interrupts u8  queue_sel u16  features u32 (low half)  config_len u32  config
//               queue_count u32  { size u32  descriptor_table u64  next u16  transport's } x queue_count
//               fields of the device   subsections
//
//   PCI:        version u32 = 2  configuration space, 256 or 4096 bytes  4 interrupt lines u32
//               with MSI-X: table, pending bits, config_vector u16; and in every queue its vector u16
//   none:       nothing, for guests of our own
//
//   subsection  05  name str8  version u32  fields       virtio/64bit_features: features u64
//                                                        virtio/virtqueues: 1024 x { available u64  used u64 }
// All numbers are big-endian, except in the PCI configuration space.

import { type GuestAddress, guestAddress } from '../../memory/units.js';
import { ByteWriter } from '../byte-writer.js';
import { be16, be32, be64, be64Exact, latin1 } from '../bytes.js';
import { invalid } from '../invalid.js';

/** Queues that `virtio/virtqueues` has entries for, whether the device has them or not. */
const QUEUE_ENTRIES = 1024;

const SUBSECTION = 5;
const FEATURES_SUBSECTION = 'virtio/64bit_features';
const QUEUES_SUBSECTION = 'virtio/virtqueues';

/** Section version of every virtio device. */
export const VIRTIO_SECTION_VERSION = 1;

/** Status, interrupt bits and feature mask are those of virtio 1.2. */
export interface VirtioState {
  readonly status: number;
  readonly interrupts: number;
  readonly features: bigint;
  /** Undefined for a queue that the driver has not set up. */
  readonly queues: readonly (VirtioQueueState | undefined)[];
}

export interface VirtioQueueState {
  readonly layout: {
    /** Descriptors. */
    readonly size: number;
    readonly descriptorTable: GuestAddress;
    readonly availableRing: GuestAddress;
    readonly usedRing: GuestAddress;
  };
  /** Running index of the next element that the device takes. */
  readonly next: number;
}

export type Transport = 'none' | 'pci';

export interface SavedVirtioDevice {
  /** As the transport wrote it. */
  readonly transport: Uint8Array;
  readonly state: VirtioState;
  /** Descriptors of each queue, set up or not. */
  readonly queueSizes: readonly number[];
  /** Configuration space. */
  readonly config: Uint8Array;
  /** The device's own fields. */
  readonly fields: Uint8Array;
  /** Subsections besides the two above. */
  readonly others: Uint8Array;
}

/** The body of a section of a device without a transport. */
export const encodeVirtioState = ({
  state,
  queueSizes,
  config,
  fields,
}: Pick<SavedVirtioDevice, 'state' | 'queueSizes' | 'config' | 'fields'>): Uint8Array => {
  const out = new ByteWriter(32 * 1024);
  out
    .u8(state.status)
    .u8(state.interrupts)
    .be16(0)
    .be32(Number(BigInt.asUintN(32, state.features)));
  out.be32(config.length).bytes(config).be32(queueSizes.length);
  queueSizes.forEach((size, index) => {
    const queue = state.queues[index];
    out
      .be32(queue?.layout.size ?? size)
      .be64(queue?.layout.descriptorTable ?? 0)
      .be16(queue?.next ?? 0);
  });
  out.bytes(fields);
  out.u8(SUBSECTION).str8(FEATURES_SUBSECTION).be32(1);
  out.be32(Number(state.features >> 32n)).be32(Number(BigInt.asUintN(32, state.features)));
  out.u8(SUBSECTION).str8(QUEUES_SUBSECTION).be32(1);
  for (let index = 0; index < QUEUE_ENTRIES; index += 1) {
    const layout = state.queues[index]?.layout;
    out.be64(layout?.availableRing ?? 0).be64(layout?.usedRing ?? 0);
  }
  return out.copy();
};

/**
 * Takes such a body apart. `fieldBytes`: of the device's own fields, which may depend on what stands there.
 * @throws RamferryError `invalid`, VIRTIO_STATE, if it is not one of that transport
 */
export const decodeVirtioState = (
  body: Uint8Array,
  {
    transport,
    fieldBytes,
  }: { readonly transport: Transport; readonly fieldBytes: number | ((rest: Uint8Array) => number) },
): SavedVirtioDevice => {
  const at = transport === 'none' ? { at: 0, hasVectors: false } : pciTransport(body);
  const reader = new Reader(body, at.at);
  const status = reader.u8();
  const interrupts = reader.u8();
  reader.take(2 + 4);
  const config = reader.take(reader.be32());
  const queueCount = reader.be32();
  if (queueCount > QUEUE_ENTRIES) {
    throw broken(`${queueCount} queues`, reader.at - 4, queueCount);
  }
  const queues = Array.from({ length: queueCount }, () => {
    const size = reader.be32();
    const descriptorTable = reader.be64();
    const next = reader.be16();
    reader.take(at.hasVectors ? 2 : 0);
    return { size, descriptorTable, next };
  });
  const fields = reader.take(typeof fieldBytes === 'number' ? fieldBytes : fieldBytes(body.subarray(reader.at)));
  reader.subsection(FEATURES_SUBSECTION);
  const features = be64Exact(reader.take(8), 0);
  reader.subsection(QUEUES_SUBSECTION);
  const rings = reader.take(QUEUE_ENTRIES * 16);
  return {
    transport: body.slice(0, at.at),
    state: {
      status,
      interrupts,
      features,
      queues: queues.map(({ size, descriptorTable, next }, index): VirtioQueueState | undefined =>
        descriptorTable === 0
          ? undefined
          : {
              layout: {
                size,
                descriptorTable: guestAddress(descriptorTable),
                availableRing: guestAddress(be64(rings, index * 16)),
                usedRing: guestAddress(be64(rings, index * 16 + 8)),
              },
              next,
            },
      ),
    },
    queueSizes: queues.map(({ size }) => size),
    config,
    fields,
    others: reader.take(body.length - reader.at),
  };
};

class Reader {
  readonly #bytes: Uint8Array;
  at: number;

  constructor(bytes: Uint8Array, at: number) {
    this.#bytes = bytes;
    this.at = at;
  }

  take(count: number): Uint8Array {
    if (count > this.#bytes.length - this.at) {
      throw broken(`${count} bytes more than it has`, this.at, count);
    }
    this.at += count;
    return this.#bytes.slice(this.at - count, this.at);
  }

  u8(): number {
    return this.take(1)[0]!;
  }

  be16(): number {
    return be16(this.take(2), 0);
  }

  be32(): number {
    return be32(this.take(4), 0);
  }

  be64(): number {
    return be64(this.take(8), 0);
  }

  subsection(name: string): void {
    const start = this.at;
    const head = this.take(1 + 1 + name.length + 4);
    if (head[0] !== SUBSECTION || head[1] !== name.length || latin1(head, 2, 2 + name.length) !== name) {
      throw broken(`no subsection "${name}"`, start, head[0]!);
    }
  }
}

const PCI_STATUS = 0x06;
const PCI_STATUS_CAPABILITIES = 0x10;
const PCI_FIRST_CAPABILITY = 0x34;
const PCI_CAPABILITY_MSIX = 0x11;

/** Where the PCI transport ends, and whether queues have vectors. */
const pciTransport = (body: Uint8Array): { at: number; hasVectors: boolean } => {
  // Conventional, then Express: the first one that leads to a plausible virtio state.
  for (const configBytes of [256, 4096]) {
    const entries = msixEntries(body.subarray(4, 4 + configBytes));
    const msixBytes = entries === 0 ? 0 : entries * 16 + Math.ceil(entries / 8) + 2;
    const at = 4 + configBytes + 4 * 4 + msixBytes;
    const configLength = at + 12 <= body.length ? be32(body, at + 8) : Number.NaN;
    if (be32(body, 0) === 2 && body[at + 2] === 0 && configLength <= 4096) {
      const queueCount = be32(body, at + 12 + configLength);
      if (queueCount <= QUEUE_ENTRIES) {
        return { at, hasVectors: entries > 0 };
      }
    }
  }
  throw broken('no PCI transport', 0, body.length);
};

/** Entries of the MSI-X table, from the capability list; 0 without one. */
const msixEntries = (config: Uint8Array): number => {
  let at = (config[PCI_STATUS]! & PCI_STATUS_CAPABILITIES) === 0 ? 0 : config[PCI_FIRST_CAPABILITY]!;
  // 48 capabilities of 4 bytes fit: a longer list is a loop.
  for (let count = 0; at >= 64 && at <= 252 && count < 48; count += 1) {
    if (config[at] === PCI_CAPABILITY_MSIX) {
      return ((config[at + 2]! | (config[at + 3]! << 8)) & 0x7ff) + 1;
    }
    at = config[at + 1]!;
  }
  return 0;
};

const broken = (what: string, at: number, value: number): Error =>
  invalid('VIRTIO_STATE', `The state of a virtio device has ${what}`, at, { value });
