// The device's end of a virtio device, but for what it does: reset, features, queues, configuration space, interrupts, being
// broken. A device (balloon, memory) has one and calls it from its thread.

import type { RamferryError } from '../memory/index.js';
import { DeviceQueue } from './device-queue.js';
import type { GuestMemory } from './guest-memory.js';
import {
  configWords,
  DeviceStatus,
  Interrupt,
  interruptDriver,
  isLive,
  loadFeatures,
  loadLayout,
  QueueRegister,
  queueRegister,
  RESET_REQUESTED,
  Register,
  ringDoorbell,
  storeFeatures,
  type VirtioShared,
} from './registers.js';

export class VirtioDevice {
  readonly shared: VirtioShared;
  readonly memory: GuestMemory;
  /** The configuration space: the fields' little-endian words, stored with `Atomics` or in `updateConfig`. */
  readonly config: Int32Array;
  readonly #words: Int32Array;
  readonly #queues: (DeviceQueue | undefined)[] = [];
  readonly #onBreak: (reason: RamferryError) => void;
  #broken: RamferryError | undefined;

  /** `onBreak`: to tell somebody, since the driver only learns that a reset is needed. */
  constructor(shared: VirtioShared, memory: GuestMemory, onBreak: (reason: RamferryError) => void = () => {}) {
    this.#onBreak = onBreak;
    this.shared = shared;
    this.memory = memory;
    this.config = configWords(shared);
    this.#words = new Int32Array(shared.registers);
  }

  /** Why the device does nothing any more until it is reset. */
  get broken(): RamferryError | undefined {
    return this.#broken;
  }

  /** Whether the driver is ready, waits for no reset, and the device is not broken. */
  get isLive(): boolean {
    return isLive(this.#words);
  }

  /** What was negotiated. */
  get features(): bigint {
    return loadFeatures(this.#words, Register.driverFeatures);
  }

  hasFeature(mask: bigint): boolean {
    return (this.features & mask) !== 0n;
  }

  /** Whether the driver waits for a reset: the caller forgets what the driver told it, then calls `reset`. */
  get resetRequested(): boolean {
    return (this.#status() & RESET_REQUESTED) !== 0;
  }

  /** Back to the state before any driver. The configuration space is the caller's. */
  reset(): void {
    this.#queues.length = 0;
    this.#broken = undefined;
    for (const [index] of this.shared.queueSizes.entries()) {
      this.#words.fill(0, queueRegister(index, 0), queueRegister(index + 1, 0));
    }
    storeFeatures(this.#words, Register.driverFeatures, 0n);
    Atomics.store(this.#words, Register.interrupts, 0);
    Atomics.store(this.#words, Register.status, 0);
    Atomics.notify(this.#words, Register.status);
  }

  /**
   * Queue number `index`, or undefined if the device is not live or the driver has not set the queue up. A queue that is
   * not one breaks the device.
   */
  queue(index: number): DeviceQueue | undefined {
    if (!this.isLive || Atomics.load(this.#words, queueRegister(index, QueueRegister.ready)) === 0) {
      return undefined;
    }
    if (this.#queues[index] === undefined) {
      this.guard(() => {
        this.#queues[index] = new DeviceQueue(this.memory, loadLayout(this.#words, index), this.features);
      });
    }
    return this.#queues[index];
  }

  /** Runs what touches queues and buffers: what is wrong with them breaks the device. Returns whether all was well. */
  guard(work: () => void): boolean {
    try {
      work();
      return true;
    } catch (error) {
      if ((error as RamferryError).kind !== 'invalid') {
        throw error;
      }
      this.break(error as RamferryError);
      return false;
    }
  }

  /** The driver has to reset the device before it does anything again (virtio 1.2, 2.1.2). */
  break(reason: RamferryError): void {
    this.#broken = reason;
    Atomics.or(this.#words, Register.status, DeviceStatus.needsReset);
    this.interruptForConfig();
    this.#onBreak(reason);
  }

  /** Interrupts the driver if it wants to hear of what was pushed. */
  interruptForUsed(queue: DeviceQueue): void {
    if (queue.needsInterrupt()) {
      interruptDriver(this.#words, Interrupt.usedBuffer);
    }
  }

  /** After a change of the configuration space. */
  interruptForConfig(): void {
    interruptDriver(this.#words, Interrupt.configuration);
  }

  /**
   * Changes several words of the configuration space as one, for drivers that read with `VirtioDriver.readConfig`. One thread
   * at a time; `change` uses `Atomics`, so that nothing moves across the generation.
   */
  updateConfig(change: (config: Int32Array) => void): void {
    Atomics.add(this.#words, Register.configGeneration, 1);
    change(this.config);
    Atomics.add(this.#words, Register.configGeneration, 1);
    this.interruptForConfig();
  }

  /** To be read before looking for work, and given to `sleep` when there was none. */
  get doorbell(): number {
    return Atomics.load(this.#words, Register.doorbell);
  }

  /** Sleeps until the doorbell has moved on, at most so long. */
  sleep(doorbell: number, timeoutMs: number): void {
    Atomics.wait(this.#words, Register.doorbell, doorbell, timeoutMs);
  }

  /** Wakes the device's thread, from any thread. */
  ring(): void {
    ringDoorbell(this.#words);
  }

  #status(): number {
    return Atomics.load(this.#words, Register.status);
  }
}
