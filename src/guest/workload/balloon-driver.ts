// The balloon driver of the workload guest: reports free pages while a migration asks for them, as Linux's driver does.
//
//   idle ──new command id: start marker──▶ reporting ──nothing left, or another id: end marker──▶ idle
//                                             └ take a free block of the highest order, queue it, hold it
//
// What was reported stays held, over further ids too, until the device says that the migration is over, or until memory is
// short (PageAllocator.takeBack). Blocks are reported from low addresses up: the migration counts on pages that the
// sweep has passed to be in use.
//
// All state is in registers, in guest RAM and in the device, so that the driver can be stopped between any two steps and
// go on elsewhere.

import { GUEST_PAGE_SIZE } from '../../../kernels/kernels.js';
import {
  BalloonConfig,
  BalloonFeature,
  BalloonQueue,
  type DriverQueue,
  type GuestMemory,
  HINT_DONE,
  HINT_STOP,
  isHintId,
  layOutQueue,
  type QueueBuffer,
  type QueueLayout,
  VirtioDriver,
  VirtioFeature,
  type VirtioShared,
} from '../../device/index.js';
import { guestAddress } from '../../memory/index.js';
import { MAX_ORDER, MAX_ORDER_PAGES, type PageAllocator } from './page-allocator.js';
import { POISON_VALUE } from './page-content.js';

/** Index of each register of the driver; whole numbers. */
export const DriverRegister = {
  /** Sum of the guest's `WorkloadOption` bits. */
  options: 0,
  /** 1 once the device knows the driver. */
  attached: 1,
  phase: 2,
  /** The command id that was last answered. */
  commandId: 3,
  /** The allocator that is searched. */
  zone: 4,
  /** Running index of the next used element of the hint queue. */
  nextUsed: 5,
  /** Where the next id is put that the device reads. */
  nextId: 6,
  /** Blocks that were reported, ever. */
  reported: 7,
  /** Free pages that did not hold the poison any more. */
  bad: 8,
} as const;
export const DRIVER_REGISTER_COUNT = 9;

export const allocateDriverRegisters = (): SharedArrayBuffer => new SharedArrayBuffer(DRIVER_REGISTER_COUNT * 8);
export const driverRegisters = (driver: SharedArrayBuffer): Float64Array => new Float64Array(driver);

const DriverPhase = { idle: 0, reporting: 1, releasing: 2 } as const;

/** Whether the driver has done what the device's configuration space asks for. */
export const isIdle = (registers: Float64Array, config: Int32Array): boolean => {
  const command = Atomics.load(config, BalloonConfig.commandId) >>> 0;
  return (
    registers[DriverRegister.phase] === DriverPhase.idle &&
    (command === HINT_STOP || command === registers[DriverRegister.commandId])
  );
};

const QUEUE_SIZE = 1024;
const BLOCK_BYTES = MAX_ORDER_PAGES * GUEST_PAGE_SIZE;
/** Of an entry of the descriptor table, which begins with the address of a buffer. */
const DESCRIPTOR_BYTES = 16;

/** Where ids are put, behind the queue in the kernel's memory: each stays until the device has read it. */
const IDS_OFFSET = 64 * 1024;
const ID_SLOTS = 4096;

/** One allocator with the guest-physical address of its data page 0. */
export interface BalloonZone {
  readonly allocator: PageAllocator;
  readonly address: number;
  readonly pages: number;
}

export interface BalloonDriverOptions {
  readonly device: VirtioShared;
  readonly registers: Float64Array;
  readonly memory: GuestMemory;
  /** Where the kernel's own memory is. */
  readonly kernelAddress: number;
  /** In the order of their addresses. */
  readonly zones: readonly BalloonZone[];
  /** Whether free pages are poisoned. */
  readonly pagePoison: boolean;
}

export class BalloonDriver {
  readonly virtio: VirtioDriver;
  readonly #options: BalloonDriverOptions;
  readonly #registers: Float64Array;
  readonly #queue: DriverQueue;
  readonly #acknowledges: boolean;

  /** With the guest running. A driver of a guest that was migrated goes on where it was. */
  constructor(options: BalloonDriverOptions) {
    this.#options = options;
    this.#registers = options.registers;
    const { registers, memory, device, kernelAddress, pagePoison } = options;
    this.virtio = new VirtioDriver(device, memory);
    const layout = layOutQueue(guestAddress(kernelAddress), QUEUE_SIZE);
    const isNew = registers[DriverRegister.attached] === 0;
    if (isNew) {
      this.virtio.negotiate(
        VirtioFeature.version1 |
          VirtioFeature.eventIndex |
          BalloonFeature.freePageHint |
          BalloonFeature.acknowledgeHints |
          (pagePoison ? BalloonFeature.pagePoison : 0n),
      );
      if (pagePoison) {
        Atomics.store(this.virtio.config, BalloonConfig.poisonValue, POISON_VALUE | 0);
      }
    }
    this.#acknowledges = (this.virtio.features & BalloonFeature.acknowledgeHints) !== 0n;
    this.#queue = this.virtio.setUpQueue(
      BalloonQueue.freePageHint,
      layout,
      isNew
        ? undefined
        : {
            nextUsed: registers[DriverRegister.nextUsed]!,
            // The device of a migrated guest looks at what is available before it sleeps for the first time.
            notified: memory.loadUint16(guestAddress(layout.availableRing + 2)),
            inFlight: chainsInFlight(memory, layout, registers[DriverRegister.nextUsed]!),
          },
    );
    if (isNew) {
      this.virtio.start();
      registers[DriverRegister.attached] = 1;
    }
  }

  /** Does one step. False if there is nothing to do before the next interrupt. */
  service(): boolean {
    // First: what happens while we look is another interrupt.
    this.virtio.takeInterrupts();
    if (this.virtio.isBroken) {
      return false;
    }
    this.#takeReturned();
    const more = this.#step(Atomics.load(this.virtio.config, BalloonConfig.commandId) >>> 0);
    return more || (this.#queue.inFlight > 0 && this.#queue.enableInterrupts());
  }

  #step(command: number): boolean {
    const registers = this.#registers;
    switch (registers[DriverRegister.phase]) {
      case DriverPhase.releasing:
        if (!this.#options.zones.some(({ allocator }) => allocator.takeBack())) {
          registers[DriverRegister.phase] = DriverPhase.idle;
        }
        return true;
      case DriverPhase.reporting:
        if (command !== registers[DriverRegister.commandId]) {
          this.#endReport();
          return true;
        }
        // An element is kept for the end marker.
        return this.#queue.freeDescriptors > 1 && this.#report();
      default:
        if (command === registers[DriverRegister.commandId]) {
          return false;
        }
        if (command === HINT_DONE) {
          registers[DriverRegister.commandId] = command;
          registers[DriverRegister.phase] = DriverPhase.releasing;
          for (const { allocator } of this.#options.zones) {
            allocator.landAll();
          }
          return true;
        }
        // What the device has yet to return may be a block that has been taken back since.
        if (!isHintId(command) || (this.#acknowledges && this.#queue.inFlight > 0)) {
          return false;
        }
        this.#sendId(command);
        registers[DriverRegister.commandId] = command;
        registers[DriverRegister.zone] = 0;
        registers[DriverRegister.phase] = DriverPhase.reporting;
        return true;
    }
  }

  /** Reports one block, or that there is none left. */
  #report(): true {
    const registers = this.#registers;
    const { zones } = this.#options;
    for (; registers[DriverRegister.zone]! < zones.length; registers[DriverRegister.zone]! += 1) {
      const { allocator, address } = zones[registers[DriverRegister.zone]!]!;
      const page = allocator.allocate(MAX_ORDER);
      registers[DriverRegister.bad]! += allocator.spoiled;
      allocator.spoiled = 0;
      if (page !== undefined) {
        this.#add([], [{ address: guestAddress(address + page * GUEST_PAGE_SIZE), length: BLOCK_BYTES }]);
        allocator.hold(page, this.#acknowledges);
        registers[DriverRegister.reported]! += 1;
        return true;
      }
    }
    this.#endReport();
    return true;
  }

  #endReport(): void {
    this.#sendId(HINT_STOP);
    this.#registers[DriverRegister.phase] = DriverPhase.idle;
  }

  #sendId(id: number): void {
    const slot = this.#registers[DriverRegister.nextId]!;
    const address = guestAddress(this.#options.kernelAddress + IDS_OFFSET + 4 * slot);
    this.#options.memory.writeUint32(address, id);
    this.#add([{ address, length: 4 }], []);
    this.#registers[DriverRegister.nextId] = (slot + 1) % ID_SLOTS;
  }

  #add(readable: readonly QueueBuffer[], writable: readonly QueueBuffer[]): void {
    this.#queue.add(readable, writable);
    this.virtio.notify(this.#queue);
  }

  /** Takes what the device has returned; who waits for that may have these blocks back now. */
  #takeReturned(): void {
    const { memory, zones } = this.#options;
    for (let used = this.#queue.takeUsed(); used !== undefined; used = this.#queue.takeUsed()) {
      this.#registers[DriverRegister.nextUsed] = (this.#registers[DriverRegister.nextUsed]! + 1) % 2 ** 16;
      if (this.#acknowledges) {
        const descriptor = this.#queue.layout.descriptorTable + DESCRIPTOR_BYTES * used.head;
        const block = memory.readUint64(guestAddress(descriptor));
        const zone = zones.find(({ address, pages }) => block >= address && block < address + pages * GUEST_PAGE_SIZE);
        zone?.allocator.landed((block - zone.address) / GUEST_PAGE_SIZE);
      }
    }
  }
}

/** First descriptors of what the device of a migrated guest has: it returns elements in the order in which it got them. */
const chainsInFlight = (memory: GuestMemory, { size, availableRing }: QueueLayout, nextUsed: number): number[] => {
  const available = memory.loadUint16(guestAddress(availableRing + 2));
  return Array.from({ length: (available - nextUsed) & 0xffff }, (_, index) =>
    memory.loadUint16(guestAddress(availableRing + 4 + 2 * ((nextUsed + index) % size))),
  );
};
