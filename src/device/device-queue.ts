// The device's side of a split virtqueue. The driver may be hostile: whatever it wrote is read once, checked, and every
// loop over it is bounded. An error means that the queue cannot go on (`VirtioDevice.break`).

import { type GuestAddress, guestAddress, RamferryError } from '../memory/index.js';
import type { GuestMemory } from './guest-memory.js';
import {
  DESCRIPTOR_BYTES,
  DescriptorFlag,
  indexDistance,
  NO_INTERRUPT,
  NO_NOTIFY,
  nextIndex,
  passesEvent,
  QueueAddresses,
  type QueueBuffer,
  type QueueLayout,
  VIRTQUEUE_SIZE_MAX,
  VirtioFeature,
} from './virtqueue.js';

/** One descriptor chain. That the buffers lie in memory is checked by who accesses them (GuestMemory). */
export interface QueueElement {
  /** Index of the first descriptor. */
  readonly head: number;
  /** What the device may read. */
  readonly readable: readonly QueueBuffer[];
  /** What the device may write. */
  readonly writable: readonly QueueBuffer[];
}

export class DeviceQueue {
  readonly layout: QueueLayout;
  readonly #memory: GuestMemory;
  readonly #at: QueueAddresses;
  readonly #eventIndex: boolean;
  readonly #indirect: boolean;
  /** Running index of the next element to pop. */
  #next: number;
  #used: number;
  /** The used index up to which the driver was interrupted, or did not want to be. Undefined: nobody knows. */
  #signalled: number | undefined;

  /**
   * `features`: what was negotiated. A queue goes on behind the last element that was returned, which is what guest memory
   * says: so a device that was migrated pops again what was popped but not returned, provided that elements are returned in
   * the order in which they were popped. Throws VIRTQUEUE_LAYOUT, GUEST_ADDRESS_INVALID.
   */
  constructor(memory: GuestMemory, layout: QueueLayout, features: bigint) {
    this.layout = layout;
    this.#memory = memory;
    this.#at = new QueueAddresses(layout);
    this.#eventIndex = (features & VirtioFeature.eventIndex) !== 0n;
    this.#indirect = (features & VirtioFeature.indirectDescriptors) !== 0n;
    this.#used = memory.loadUint16(this.#at.usedIndex);
    this.#next = this.#used;
  }

  /** The next element, if there is one. Throws VIRTQUEUE_INDEX, VIRTQUEUE_DESCRIPTOR, GUEST_ADDRESS_INVALID. */
  pop(): QueueElement | undefined {
    const waiting = indexDistance(this.#memory.loadUint16(this.#at.availableIndex), this.#next);
    if (waiting === 0) {
      return undefined;
    }
    if (waiting > this.layout.size) {
      throw invalid(
        'VIRTQUEUE_INDEX',
        `The driver made ${waiting} elements available in a virtqueue of ${this.layout.size}`,
        waiting,
      );
    }
    const head = this.#memory.loadUint16(this.#at.availableEntry(this.#next));
    const element = this.#chain(head);
    this.#next = nextIndex(this.#next);
    return element;
  }

  /** Returns an element to the driver. `written`: bytes of its writable buffers, from the first on, that were written. */
  push(element: QueueElement, written: number): void {
    const entry = this.#at.usedEntry(this.#used);
    this.#memory.writeUint32(entry, element.head);
    this.#memory.writeUint32(guestAddress(entry + 4), written);
    this.#used = nextIndex(this.#used);
    this.#memory.storeUint16(this.#at.usedIndex, this.#used);
  }

  /** Whether the driver wants to be interrupted for what was pushed since the last call. */
  needsInterrupt(): boolean {
    const before = this.#signalled;
    this.#signalled = this.#used;
    if (before === this.#used) {
      return false;
    }
    if (!this.#eventIndex) {
      return (this.#memory.loadUint16(this.#at.availableFlags) & NO_INTERRUPT) === 0;
    }
    return before === undefined || passesEvent(this.#memory.loadUint16(this.#at.usedEvent), this.#used, before);
  }

  /** Asks not to be notified: this thread is about to pop anyway. Only a request. */
  disableNotifications(): void {
    // With an event index, the event that has been passed is enough.
    if (!this.#eventIndex) {
      this.#memory.storeUint16(this.#at.usedFlags, NO_NOTIFY);
    }
  }

  /** Asks to be notified of the next element. Returns whether there is one already, which nobody will notify of. */
  enableNotifications(): boolean {
    if (this.#eventIndex) {
      this.#memory.storeUint16(this.#at.availableEvent, this.#next);
    } else {
      this.#memory.storeUint16(this.#at.usedFlags, 0);
    }
    return this.#memory.loadUint16(this.#at.availableIndex) !== this.#next;
  }

  #chain(head: number): QueueElement {
    const readable: QueueBuffer[] = [];
    const writable: QueueBuffer[] = [];
    let table: GuestAddress = this.layout.descriptorTable;
    let entries = this.layout.size;
    let isIndirect = false;
    let index = head;
    for (let steps = 1; ; steps += 1) {
      // Entries of one table never repeat in a chain, so a longer chain is a loop.
      if (index >= entries || steps > entries) {
        throw invalid('VIRTQUEUE_DESCRIPTOR', `Descriptor chain ${head} goes on at ${index} of ${entries}`, index);
      }
      const at = table + DESCRIPTOR_BYTES * index;
      const address = guestAddress(this.#memory.readUint64(guestAddress(at)));
      const length = this.#memory.readUint32(guestAddress(at + 8));
      const flags = this.#memory.loadUint16(guestAddress(at + 12));

      if ((flags & DescriptorFlag.indirect) !== 0) {
        // Also with `next`, which the specification forbids together with `indirect`.
        if (!this.#indirect || isIndirect || (flags & DescriptorFlag.next) !== 0) {
          throw invalid('VIRTQUEUE_DESCRIPTOR', `Descriptor ${index} of chain ${head} must not be indirect`, flags);
        }
        entries = length / DESCRIPTOR_BYTES;
        if (!Number.isInteger(entries) || entries < 1 || entries > VIRTQUEUE_SIZE_MAX) {
          throw invalid('VIRTQUEUE_DESCRIPTOR', `The indirect table of chain ${head} has ${length} bytes`, length);
        }
        table = address;
        isIndirect = true;
        index = 0;
        steps = 0;
        continue;
      }

      if ((flags & DescriptorFlag.write) !== 0) {
        writable.push({ address, length });
      } else if (writable.length > 0) {
        throw invalid('VIRTQUEUE_DESCRIPTOR', `Chain ${head} has a readable buffer after a writable one`, index);
      } else {
        readable.push({ address, length });
      }
      if ((flags & DescriptorFlag.next) === 0) {
        return { head, readable, writable };
      }
      index = this.#memory.loadUint16(guestAddress(at + 14));
    }
  }
}

const invalid = (code: string, message: string, value: number): RamferryError =>
  new RamferryError('invalid', code, message, { value });
