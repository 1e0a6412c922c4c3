// What of any virtio device goes with the guest when it migrates, besides its configuration space and what is its own. It is
// all in shared memory, so that any thread can save it while the guest is stopped.

import { guestAddress, RamferryError } from '../memory/index.js';
import type { GuestMemory } from './guest-memory.js';
import {
  loadFeatures,
  loadLayout,
  QueueRegister,
  queueRegister,
  RESET_REQUESTED,
  Register,
  ringDoorbell,
  storeFeatures,
  storeLayout,
  type VirtioShared,
} from './registers.js';
import type { QueueLayout } from './virtqueue.js';

export interface VirtioState {
  readonly status: number;
  /** Interrupt bits that the driver has not taken. */
  readonly interrupts: number;
  readonly features: bigint;
  /** By number; undefined if the driver has not set the queue up. */
  readonly queues: readonly (QueueState | undefined)[];
}

export interface QueueState {
  readonly layout: QueueLayout;
  /** Running index of the next element to pop. */
  readonly next: number;
}

/** With the guest stopped. A device that was asked for a reset and has not done it yet is saved as if it had. */
export const saveVirtio = (shared: VirtioShared, memory: GuestMemory): VirtioState => {
  const words = new Int32Array(shared.registers);
  const status = Atomics.load(words, Register.status);
  if ((status & RESET_REQUESTED) !== 0) {
    return { status: 0, interrupts: 0, features: 0n, queues: shared.queueSizes.map(() => undefined) };
  }
  return {
    status,
    interrupts: Atomics.load(words, Register.interrupts),
    features: loadFeatures(words, Register.driverFeatures),
    queues: shared.queueSizes.map((_, index) => {
      if (Atomics.load(words, queueRegister(index, QueueRegister.ready)) === 0) {
        return undefined;
      }
      const layout = loadLayout(words, index);
      return { layout, next: nextToPop(layout, memory) };
    }),
  };
};

/**
 * Before the guest runs and before the device's thread looks at it. Guest memory need not be there yet. Throws VIRTIO_FEATURES
 * and VIRTIO_QUEUES for the state of a device that can more than this one.
 */
export const loadVirtio = (shared: VirtioShared, state: VirtioState): void => {
  const words = new Int32Array(shared.registers);
  const excess = state.features & ~loadFeatures(words, Register.deviceFeatures);
  if (excess !== 0n) {
    throw stateInvalid(
      'VIRTIO_FEATURES',
      `The driver uses features 0x${excess.toString(16)}, which this device lacks`,
      excess,
    );
  }
  if (state.queues.some((queue, index) => queue !== undefined && index >= shared.queueSizes.length)) {
    const count = state.queues.length;
    throw stateInvalid(
      'VIRTIO_QUEUES',
      `The driver uses ${count} queues, this device has ${shared.queueSizes.length}`,
      count,
    );
  }
  storeFeatures(words, Register.driverFeatures, state.features);
  for (const [index] of shared.queueSizes.entries()) {
    const queue = state.queues[index];
    if (queue === undefined) {
      words.fill(0, queueRegister(index, 0), queueRegister(index + 1, 0));
    } else {
      storeLayout(words, index, queue.layout);
    }
  }
  Atomics.store(words, Register.interrupts, state.interrupts);
  Atomics.store(words, Register.status, state.status);
  // What the driver made available may have been announced at the other side only.
  ringDoorbell(words);
};

/** As DeviceQueue goes on; 0 for a queue that is none, which will break the device there as it does here. */
const nextToPop = (layout: QueueLayout, memory: GuestMemory): number => {
  const usedIndex = guestAddress(layout.usedRing + 2);
  return usedIndex % 2 === 0 && memory.contains(usedIndex, 2) ? memory.loadUint16(usedIndex) : 0;
};

const stateInvalid = (code: string, message: string, value: number | bigint): RamferryError =>
  new RamferryError('invalid', code, message, { value });
