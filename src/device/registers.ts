// How driver and device of a virtio device meet: registers in shared memory, in the way of virtio over MMIO (virtio 1.2, section
// 4.2), but without traps. Either side stores its words, then wakes the other.
//
//   driver's thread                                       device's thread (and others that change its configuration)
//   status, features, queues ──▶ doorbell counts up ─────▶ VirtioDevice.service
//   takeInterrupts           ◀── interrupt bits      ◀──── used buffers, configuration changes

import { type GuestAddress, guestAddress } from '../memory/index.js';
import type { QueueLayout } from './virtqueue.js';

/** Of device status (virtio 1.2, 2.1). */
export const DeviceStatus = {
  acknowledge: 1,
  driver: 2,
  driverOk: 4,
  featuresOk: 8,
  needsReset: 64,
} as const;

export const Interrupt = { usedBuffer: 1, configuration: 2 } as const;

/**
 * A status that only the driver stores: the device shall reset and store 0. A driver that stored 0 itself and went on could
 * hide from the device that there was a reset.
 */
export const RESET_REQUESTED = 0x100;

/** Word indexes. */
export const Register = {
  status: 0,
  /** Interrupt bits that the driver has not taken. */
  interrupts: 1,
  /** Counts what the device's thread might have to look at. */
  doorbell: 2,
  /** Counts up before and after a change of several configuration words: odd means that one is under way. */
  configGeneration: 3,
  deviceFeatures: 4, // 2 words
  driverFeatures: 6, // 2 words
  queues: 8,
} as const;

/** Word indexes in the registers of one queue. */
export const QueueRegister = {
  size: 0,
  /** Whether the driver has set the queue up. */
  ready: 1,
  descriptorTable: 2, // 2 words each, low one first
  availableRing: 4,
  usedRing: 6,
  words: 8,
} as const;

/** Structured-cloneable: what both ends are attached to. */
export interface VirtioShared {
  /** Device type (virtio 1.2, section 5): 5 for a balloon, 24 for a memory device. */
  readonly deviceId: number;
  /** The most descriptors of each queue. */
  readonly queueSizes: readonly number[];
  readonly configBytes: number;
  readonly registers: SharedArrayBuffer;
}

export interface VirtioDescription {
  readonly deviceId: number;
  /** What the device offers. */
  readonly features: bigint;
  readonly queueSizes: readonly number[];
  readonly configBytes: number;
}

/** The registers of a new device: reset, configuration zero. */
export const allocateVirtio = ({ deviceId, features, queueSizes, configBytes }: VirtioDescription): VirtioShared => {
  const configWords = Math.ceil(configBytes / 4);
  const words = Register.queues + queueSizes.length * QueueRegister.words + configWords;
  const registers = new SharedArrayBuffer(words * 4);
  storeFeatures(new Int32Array(registers), Register.deviceFeatures, features);
  return { deviceId, queueSizes, configBytes, registers };
};

export const queueRegister = (queue: number, register: number): number =>
  Register.queues + queue * QueueRegister.words + register;

/** The configuration space, as little-endian words. */
export const configWords = ({ registers, queueSizes, configBytes }: VirtioShared): Int32Array =>
  new Int32Array(registers, 4 * queueRegister(queueSizes.length, 0), Math.ceil(configBytes / 4));

/** Whether the driver is ready, waits for no reset, and the device is not broken. */
export const isLive = (words: Int32Array): boolean =>
  (Atomics.load(words, Register.status) & (DeviceStatus.driverOk | DeviceStatus.needsReset | RESET_REQUESTED)) ===
  DeviceStatus.driverOk;

export const storeFeatures = (words: Int32Array, at: number, features: bigint): void => {
  words[at] = Number(BigInt.asIntN(32, features));
  words[at + 1] = Number(BigInt.asIntN(32, features >> 32n));
};

export const loadFeatures = (words: Int32Array, at: number): bigint =>
  (BigInt(words[at + 1]! >>> 0) << 32n) + BigInt(words[at]! >>> 0);

/** Says where queue number `queue` is, and that it is ready. */
export const storeLayout = (words: Int32Array, queue: number, layout: QueueLayout): void => {
  words[queueRegister(queue, QueueRegister.size)] = layout.size;
  storeAddress(words, queueRegister(queue, QueueRegister.descriptorTable), layout.descriptorTable);
  storeAddress(words, queueRegister(queue, QueueRegister.availableRing), layout.availableRing);
  storeAddress(words, queueRegister(queue, QueueRegister.usedRing), layout.usedRing);
  Atomics.store(words, queueRegister(queue, QueueRegister.ready), 1);
};

const storeAddress = (words: Int32Array, at: number, address: number): void => {
  words[at] = address % 2 ** 32;
  words[at + 1] = Math.floor(address / 2 ** 32);
};

export const loadLayout = (words: Int32Array, queue: number): QueueLayout => ({
  size: words[queueRegister(queue, QueueRegister.size)]!,
  descriptorTable: loadAddress(words, queueRegister(queue, QueueRegister.descriptorTable)),
  availableRing: loadAddress(words, queueRegister(queue, QueueRegister.availableRing)),
  usedRing: loadAddress(words, queueRegister(queue, QueueRegister.usedRing)),
});

const loadAddress = (words: Int32Array, at: number): GuestAddress =>
  guestAddress((words[at]! >>> 0) + (words[at + 1]! >>> 0) * 2 ** 32);

/** Wakes the device's thread, from any thread. */
export const ringDoorbell = (words: Int32Array): void => {
  Atomics.add(words, Register.doorbell, 1);
  Atomics.notify(words, Register.doorbell);
};

/** Interrupts the driver, from any thread. */
export const interruptDriver = (words: Int32Array, bit: number): void => {
  Atomics.or(words, Register.interrupts, bit);
  Atomics.notify(words, Register.interrupts);
};
