// The driver's side of a split virtqueue, for guests of our own. It does not trust the device with more than the content
// of buffers: a used entry that names no chain in flight is an error.

import { guestAddress, RamferryError } from '../memory/index.js';
import type { GuestMemory } from './guest-memory.js';
import {
  DESCRIPTOR_BYTES,
  DescriptorFlag,
  NO_INTERRUPT,
  NO_NOTIFY,
  nextIndex,
  passesEvent,
  QueueAddresses,
  type QueueBuffer,
  type QueueLayout,
  VirtioFeature,
} from './virtqueue.js';

/** What a driver knows besides guest memory; goes with the guest when it migrates. */
export interface DriverQueueState {
  /** Running index of the next used entry to take. */
  readonly nextUsed: number;
  /** Running available index up to which the device was notified, or did not want to be. */
  readonly notified: number;
  /** First descriptors of the chains that the device has. */
  readonly inFlight: readonly number[];
}

export interface UsedElement {
  /** What `add` returned. */
  readonly head: number;
  /** Bytes that the device wrote. */
  readonly written: number;
}

export class DriverQueue {
  readonly layout: QueueLayout;
  readonly #memory: GuestMemory;
  readonly #at: QueueAddresses;
  readonly #eventIndex: boolean;
  /** Free descriptors, a stack. */
  readonly #free: number[] = [];
  /** Descriptors of each chain in flight, by head. */
  readonly #inFlight = new Map<number, readonly number[]>();
  #available: number;
  #nextUsed: number;
  #notified: number;

  /**
   * `features`: what was negotiated. Without `state` the queue is new and its memory is initialised; with it, it goes on
   * where another driver stopped.
   */
  constructor(memory: GuestMemory, layout: QueueLayout, features: bigint, state?: DriverQueueState) {
    this.layout = layout;
    this.#memory = memory;
    this.#at = new QueueAddresses(layout);
    this.#eventIndex = (features & VirtioFeature.eventIndex) !== 0n;
    if (state === undefined) {
      for (const address of [this.#at.availableFlags, this.#at.availableIndex, this.#at.usedEvent]) {
        memory.storeUint16(address, 0);
      }
      for (const address of [this.#at.usedFlags, this.#at.usedIndex, this.#at.availableEvent]) {
        memory.storeUint16(address, 0);
      }
    }
    this.#available = memory.loadUint16(this.#at.availableIndex);
    this.#notified = state?.notified ?? 0;
    this.#nextUsed = state?.nextUsed ?? 0;
    const taken = new Set<number>();
    for (const head of state?.inFlight ?? []) {
      const chain = this.#readChain(head);
      this.#inFlight.set(head, chain);
      for (const index of chain) {
        taken.add(index);
      }
    }
    for (let index = layout.size - 1; index >= 0; index -= 1) {
      if (!taken.has(index)) {
        this.#free.push(index);
      }
    }
  }

  get freeDescriptors(): number {
    return this.#free.length;
  }

  get inFlight(): number {
    return this.#inFlight.size;
  }

  save(): DriverQueueState {
    return { nextUsed: this.#nextUsed, notified: this.#notified, inFlight: [...this.#inFlight.keys()] };
  }

  /**
   * Makes a chain available: buffers that the device may read, then buffers that it may write. Returns its name until it is
   * used, or undefined if there are too few free descriptors.
   */
  add(readable: readonly QueueBuffer[], writable: readonly QueueBuffer[]): number | undefined {
    const count = readable.length + writable.length;
    if (count === 0) {
      throw new RangeError('A descriptor chain has at least one buffer');
    }
    if (count > this.#free.length) {
      return undefined;
    }
    const chain = this.#free.splice(this.#free.length - count).reverse();
    this.#writeChain(this.layout.descriptorTable, chain, readable, writable);
    return this.#publish(chain);
  }

  /**
   * The same with one descriptor of the queue: the chain is written to `table`, a multiple of 16 with 16 bytes for each buffer,
   * which stays the device's as long as the buffers. Only if indirect descriptors were negotiated.
   */
  addIndirect(
    table: QueueBuffer['address'],
    readable: readonly QueueBuffer[],
    writable: readonly QueueBuffer[],
  ): number | undefined {
    const count = readable.length + writable.length;
    const index = this.#free.pop();
    if (index === undefined) {
      return undefined;
    }
    this.#writeChain(
      table,
      Array.from({ length: count }, (_, entry) => entry),
      readable,
      writable,
    );
    this.#writeDescriptor(
      this.layout.descriptorTable,
      index,
      { address: table, length: count * DESCRIPTOR_BYTES },
      DescriptorFlag.indirect,
      0,
    );
    return this.#publish([index]);
  }

  /** Whether the device wants to be notified of what was added since the last call. */
  needsNotification(): boolean {
    const before = this.#notified;
    this.#notified = this.#available;
    if (before === this.#available) {
      return false;
    }
    return this.#eventIndex
      ? passesEvent(this.#memory.loadUint16(this.#at.availableEvent), this.#available, before)
      : (this.#memory.loadUint16(this.#at.usedFlags) & NO_NOTIFY) === 0;
  }

  /** The next chain that the device has returned; its descriptors are free again. Throws VIRTQUEUE_USED. */
  takeUsed(): UsedElement | undefined {
    if (this.#memory.loadUint16(this.#at.usedIndex) === this.#nextUsed) {
      return undefined;
    }
    const entry = this.#at.usedEntry(this.#nextUsed);
    const head = this.#memory.readUint32(entry);
    const written = this.#memory.readUint32(guestAddress(entry + 4));
    const chain = this.#inFlight.get(head);
    if (chain === undefined) {
      throw new RamferryError(
        'invalid',
        'VIRTQUEUE_USED',
        `The device returned chain ${head}, which it does not have`,
        {
          value: head,
        },
      );
    }
    this.#inFlight.delete(head);
    this.#free.push(...chain);
    this.#nextUsed = nextIndex(this.#nextUsed);
    return { head, written };
  }

  /** Asks not to be interrupted. Only a request. */
  disableInterrupts(): void {
    if (!this.#eventIndex) {
      this.#memory.storeUint16(this.#at.availableFlags, NO_INTERRUPT);
    }
  }

  /** Asks to be interrupted for the next used chain. Returns whether there is one already, for which nobody will. */
  enableInterrupts(): boolean {
    if (this.#eventIndex) {
      this.#memory.storeUint16(this.#at.usedEvent, this.#nextUsed);
    } else {
      this.#memory.storeUint16(this.#at.availableFlags, 0);
    }
    return this.#memory.loadUint16(this.#at.usedIndex) !== this.#nextUsed;
  }

  #publish(chain: readonly number[]): number {
    const head = chain[0]!;
    this.#inFlight.set(head, chain);
    this.#memory.storeUint16(this.#at.availableEntry(this.#available), head);
    this.#available = nextIndex(this.#available);
    this.#memory.storeUint16(this.#at.availableIndex, this.#available);
    return head;
  }

  #writeChain(
    table: QueueBuffer['address'],
    chain: readonly number[],
    readable: readonly QueueBuffer[],
    writable: readonly QueueBuffer[],
  ): void {
    for (const [position, index] of chain.entries()) {
      const isWritable = position >= readable.length;
      const buffer = isWritable ? writable[position - readable.length]! : readable[position]!;
      const next = chain[position + 1];
      const flags = (isWritable ? DescriptorFlag.write : 0) + (next === undefined ? 0 : DescriptorFlag.next);
      this.#writeDescriptor(table, index, buffer, flags, next ?? 0);
    }
  }

  #writeDescriptor(
    table: QueueBuffer['address'],
    index: number,
    { address, length }: QueueBuffer,
    flags: number,
    next: number,
  ): void {
    const at = table + DESCRIPTOR_BYTES * index;
    this.#memory.writeUint64(guestAddress(at), address);
    this.#memory.writeUint32(guestAddress(at + 8), length);
    this.#memory.storeUint16(guestAddress(at + 12), flags);
    this.#memory.storeUint16(guestAddress(at + 14), next);
  }

  #readChain(head: number): number[] {
    const chain = [head];
    for (let index = head; chain.length <= this.layout.size; chain.push(index)) {
      const at = this.layout.descriptorTable + DESCRIPTOR_BYTES * index;
      if ((this.#memory.loadUint16(guestAddress(at + 12)) & DescriptorFlag.next) === 0) {
        return chain;
      }
      index = this.#memory.loadUint16(guestAddress(at + 14));
    }
    throw new RamferryError('invalid', 'VIRTQUEUE_DESCRIPTOR', `Descriptor chain ${head} in flight has no end`, {
      value: head,
    });
  }
}
