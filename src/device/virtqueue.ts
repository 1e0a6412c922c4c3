// What both sides of a split virtqueue know (virtio 1.2, section 2.7): three areas of guest memory, two indexes that
// run through 0..65535 and wrap, and how either side says when it wants to be woken.
//
//   descriptor table   size x { address u64, length u32, flags u16, next u16 }    written by the driver
//   available ring     flags u16, index u16, size x head u16, used_event u16      written by the driver
//   used ring          flags u16, index u16, size x { head u32, written u32 }, available_event u16    by the device
//
//   driver: descriptors, ring entry, ──▶ available index ──▶ device: pop ─ work ─ push: used entry, ──▶ used index ──▶ driver
//
// The indexes are stored and loaded with 16-bit atomics, which in JavaScript are sequentially consistent. So (1) who sees
// an index sees the entries and descriptors before it, which therefore are plain stores; and (2) to store one's index and
// then load the other's event, while the other stores its event and then loads the index, leaves no order in which both
// miss: whoever goes to sleep is woken, or sees that there is something to do.

import { type GuestAddress, guestAddress, RamferryError } from '../memory/index.js';

/** As in QEMU. A chain or an indirect table never has more entries either. */
export const VIRTQUEUE_SIZE_MAX = 1024;

export const DESCRIPTOR_BYTES = 16;

export const DescriptorFlag = { next: 1, write: 2, indirect: 4 } as const;

/** In the flags of the used ring: do not notify me of available buffers. */
export const NO_NOTIFY = 1;
/** In the flags of the available ring: do not interrupt me for used buffers. */
export const NO_INTERRUPT = 1;

/** Bits of the feature mask that concern every device. */
export const VirtioFeature = { indirectDescriptors: 1n << 28n, eventIndex: 1n << 29n, version1: 1n << 32n } as const;

/** Where a queue is. `size`, its number of descriptors, is a power of two up to VIRTQUEUE_SIZE_MAX. */
export interface QueueLayout {
  readonly size: number;
  /** A multiple of 16. */
  readonly descriptorTable: GuestAddress;
  /** A multiple of 2. */
  readonly availableRing: GuestAddress;
  /** A multiple of 4. */
  readonly usedRing: GuestAddress;
}

const availableRingBytes = (size: number): number => 6 + 2 * size;
const usedRingBytes = (size: number): number => 6 + 8 * size;

/** Bytes of a queue whose areas follow one another. */
export const queueBytes = (size: number): number =>
  DESCRIPTOR_BYTES * size + alignTo4(availableRingBytes(size)) + usedRingBytes(size);

/** That queue. `address` is a multiple of 16. */
export const layOutQueue = (address: GuestAddress, size: number): QueueLayout => {
  const availableRing = address + DESCRIPTOR_BYTES * size;
  return {
    size,
    descriptorTable: address,
    availableRing: guestAddress(availableRing),
    usedRing: guestAddress(availableRing + alignTo4(availableRingBytes(size))),
  };
};

const alignTo4 = (bytes: number): number => Math.ceil(bytes / 4) * 4;

/** Addresses in a queue. */
export class QueueAddresses {
  readonly availableFlags: GuestAddress;
  readonly availableIndex: GuestAddress;
  /** The driver wants an interrupt when the used index passes this. */
  readonly usedEvent: GuestAddress;
  readonly usedFlags: GuestAddress;
  readonly usedIndex: GuestAddress;
  /** The device wants a notification when the available index passes this. */
  readonly availableEvent: GuestAddress;
  readonly #layout: QueueLayout;

  /** Throws VIRTQUEUE_LAYOUT. */
  constructor(layout: QueueLayout) {
    const { size, descriptorTable, availableRing, usedRing } = layout;
    const sized = size >= 1 && size <= VIRTQUEUE_SIZE_MAX && Number.isInteger(Math.log2(size));
    if (!sized || descriptorTable % 16 !== 0 || availableRing % 2 !== 0 || usedRing % 4 !== 0) {
      throw new RamferryError(
        'invalid',
        'VIRTQUEUE_LAYOUT',
        `A virtqueue of ${size} descriptors at ${descriptorTable}, ${availableRing}, ${usedRing}: the size must be a ` +
          `power of two up to ${VIRTQUEUE_SIZE_MAX}, the addresses multiples of 16, 2 and 4`,
        { value: size },
      );
    }
    this.#layout = layout;
    this.availableFlags = availableRing;
    this.availableIndex = guestAddress(availableRing + 2);
    this.usedEvent = guestAddress(availableRing + 4 + 2 * size);
    this.usedFlags = usedRing;
    this.usedIndex = guestAddress(usedRing + 2);
    this.availableEvent = guestAddress(usedRing + 4 + 8 * size);
  }

  /** Of the entry that a running index refers to. */
  availableEntry(index: number): GuestAddress {
    return guestAddress(this.#layout.availableRing + 4 + 2 * (index % this.#layout.size));
  }

  usedEntry(index: number): GuestAddress {
    return guestAddress(this.#layout.usedRing + 4 + 8 * (index % this.#layout.size));
  }
}

/** Running indexes are 16 bits wide. */
export const nextIndex = (index: number): number => (index + 1) & 0xffff;

/** How far `index` is ahead of `other`. */
export const indexDistance = (index: number, other: number): number => (index - other) & 0xffff;

/** Whether an index that went from `before` to `now` passed `event`, so that the other side wants to hear of it. */
export const passesEvent = (event: number, now: number, before: number): boolean =>
  indexDistance(now, event + 1) < indexDistance(now, before);

/** A buffer in guest memory that a descriptor names. Nobody has checked that it is memory. */
export interface QueueBuffer {
  readonly address: GuestAddress;
  readonly length: number;
}
