// The driver's end of a virtio device, for guests of our own. A driver uses it in this order (virtio 1.2, 3.1.1):
//
//   requestReset ─ until isReset ─▶ negotiate ─▶ setUpQueue … ─▶ start ─▶ add to queues, notify, takeInterrupts

import { DriverQueue, type DriverQueueState } from './driver-queue.js';
import type { GuestMemory } from './guest-memory.js';
import {
  configWords,
  DeviceStatus,
  loadFeatures,
  RESET_REQUESTED,
  Register,
  ringDoorbell,
  storeFeatures,
  storeLayout,
  type VirtioShared,
} from './registers.js';
import type { QueueLayout } from './virtqueue.js';

export class VirtioDriver {
  readonly shared: VirtioShared;
  readonly memory: GuestMemory;
  /** The configuration space: little-endian words; single ones with `Atomics`, several that belong together with `readConfig`. */
  readonly config: Int32Array;
  readonly #words: Int32Array;

  /** Nothing happens to the device: the driver of a guest that was migrated simply goes on. */
  constructor(shared: VirtioShared, memory: GuestMemory) {
    this.shared = shared;
    this.memory = memory;
    this.config = configWords(shared);
    this.#words = new Int32Array(shared.registers);
  }

  /** Asks the device to forget everything. Its thread does so when the guest runs; look for `isReset`. */
  requestReset(): void {
    Atomics.or(this.#words, Register.status, RESET_REQUESTED);
    ringDoorbell(this.#words);
  }

  get isReset(): boolean {
    return Atomics.load(this.#words, Register.status) === 0;
  }

  /** Whether the device cannot go on: a reset is needed. */
  get isBroken(): boolean {
    return (Atomics.load(this.#words, Register.status) & DeviceStatus.needsReset) !== 0;
  }

  /** Takes those of the wanted features that the device offers; returns them. */
  negotiate(wanted: bigint): bigint {
    const features = loadFeatures(this.#words, Register.deviceFeatures) & wanted;
    Atomics.or(this.#words, Register.status, DeviceStatus.acknowledge | DeviceStatus.driver);
    storeFeatures(this.#words, Register.driverFeatures, features);
    Atomics.or(this.#words, Register.status, DeviceStatus.featuresOk);
    return features;
  }

  /** What was negotiated. */
  get features(): bigint {
    return loadFeatures(this.#words, Register.driverFeatures);
  }

  /** A new queue at `layout`, of no more descriptors than the device allows. With `state`, the one of the guest that was migrated. */
  setUpQueue(index: number, layout: QueueLayout, state?: DriverQueueState): DriverQueue {
    const queue = new DriverQueue(this.memory, layout, this.features, state);
    storeLayout(this.#words, index, layout);
    return queue;
  }

  /** From here on the device works. */
  start(): void {
    Atomics.or(this.#words, Register.status, DeviceStatus.driverOk);
    ringDoorbell(this.#words);
  }

  /** Wakes the device if it wants to hear of what was added. */
  notify(queue: DriverQueue): void {
    if (queue.needsNotification()) {
      ringDoorbell(this.#words);
    }
  }

  /** Wakes the device after a change of the configuration space. */
  notifyConfig(): void {
    ringDoorbell(this.#words);
  }

  /** The `Interrupt` bits since the last call. */
  takeInterrupts(): number {
    return Atomics.exchange(this.#words, Register.interrupts, 0);
  }

  /** Sleeps until there is an interrupt, at most so long. */
  sleep(timeoutMs: number): void {
    Atomics.wait(this.#words, Register.interrupts, 0, timeoutMs);
  }

  /** What `read`, which uses `Atomics`, makes of a configuration space that did not change meanwhile. */
  readConfig<Value>(read: (config: Int32Array) => Value): Value {
    for (;;) {
      const before = Atomics.load(this.#words, Register.configGeneration);
      const value = read(this.config);
      if (before % 2 === 0 && Atomics.load(this.#words, Register.configGeneration) === before) {
        return value;
      }
    }
  }
}
