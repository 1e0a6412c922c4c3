// The virtio balloon device, in its own thread: consumes the queues while the engine and the guest run.
//
//   inflate, deflate   page numbers that the guest gives away and takes back
//   statistics         one buffer that stays with the device until somebody wants new figures
//   free page hint     HintReceiver

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { guestAddress, RamferryError } from '../memory/index.js';
import { BalloonFeature, BalloonQueue, type BalloonShared, StatisticsWord, statisticsValues } from './balloon.js';
import type { DeviceQueue, QueueElement } from './device-queue.js';
import type { GuestMemory } from './guest-memory.js';
import { HintReceiver } from './hint-receiver.js';
import { VirtioDevice } from './virtio-device.js';
import type { QueueBuffer } from './virtqueue.js';

/** Page numbers in one element. Linux sends 256; each costs time, and the guest cannot be stopped meanwhile. */
const PAGE_NUMBERS_MAX = 16384;

/** Each is a tag (16 bits) and a value (64 bits), packed. */
const STATISTIC_BYTES = 10;
const STATISTICS_BYTES_MAX = 64 * STATISTIC_BYTES;

export interface BalloonDeviceOptions {
  /** Called when the driver did something wrong, and the device does nothing any more until it is reset. */
  readonly onBreak?: (reason: RamferryError) => void;
  /** Milliseconds; tests replace it. */
  readonly now?: () => number;
}

export class BalloonDevice {
  readonly virtio: VirtioDevice;
  readonly #memory: GuestMemory;
  readonly #hints: HintReceiver;
  readonly #words: Int32Array;
  readonly #values: Float64Array;
  #statisticsElement: QueueElement | undefined;

  constructor(shared: BalloonShared, memory: GuestMemory, options: BalloonDeviceOptions = {}) {
    this.virtio = new VirtioDevice(shared.virtio, memory, options.onBreak);
    this.#memory = memory;
    this.#hints = new HintReceiver(shared, memory, options.now);
    this.#words = new Int32Array(shared.statistics);
    this.#values = statisticsValues(shared);
  }

  /**
   * Does what there is to do, but no more than a queue full of each kind, so that the thread gets to its safepoints. Only while
   * the guest runs. Returns whether to call again at once; otherwise something may still wait for the engine: sleep on the
   * doorbell, no longer than FULL_RING_MS.
   */
  service(): boolean {
    const { virtio } = this;
    if (virtio.resetRequested) {
      if (!this.#hints.cancel()) {
        return true;
      }
      this.#statisticsElement = undefined;
      virtio.reset();
      return false;
    }
    const acknowledge = virtio.hasFeature(BalloonFeature.acknowledgeHints);
    const more = [
      this.#serve(BalloonQueue.inflate, (queue) => this.#drain(queue, (element) => this.#inflate(element))),
      this.#serve(BalloonQueue.deflate, (queue) => this.#drain(queue, () => {})),
      this.#serve(BalloonQueue.statistics, (queue) => this.#serveStatistics(queue)),
      virtio.hasFeature(BalloonFeature.freePageHint) &&
        this.#serve(BalloonQueue.freePageHint, (queue) => this.#hints.service(queue, acknowledge)),
    ];
    return more.includes(true);
  }

  #serve(index: number, work: (queue: DeviceQueue) => boolean): boolean {
    const queue = this.virtio.queue(index);
    if (queue === undefined) {
      return false;
    }
    let again = false;
    const isWell = this.virtio.guard(() => {
      again = work(queue);
    });
    if (isWell) {
      this.virtio.interruptForUsed(queue);
    }
    return isWell && again;
  }

  #drain(queue: DeviceQueue, consume: (element: QueueElement) => void): boolean {
    queue.disableNotifications();
    for (let count = 0; count < queue.layout.size; count += 1) {
      const element = queue.pop();
      if (element === undefined) {
        return queue.enableNotifications();
      }
      consume(element);
      queue.push(element, 0);
    }
    return true;
  }

  /** What was given away reads as zero from now on, and so costs a migration next to nothing. */
  #inflate({ readable }: QueueElement): void {
    const numbers = this.#gather(readable, 4 * PAGE_NUMBERS_MAX);
    for (let at = 0; at + 4 <= numbers.byteLength; at += 4) {
      const address = guestAddress(numbers.getUint32(at, true) * GUEST_PAGE_SIZE);
      // QEMU ignores page numbers of no page too.
      if (this.#memory.contains(address, GUEST_PAGE_SIZE)) {
        this.#memory.zeroPage(address);
      }
    }
  }

  #serveStatistics(queue: DeviceQueue): boolean {
    const giveBack = (): void => {
      if (this.#statisticsElement !== undefined) {
        queue.push(this.#statisticsElement, 0);
        this.#statisticsElement = undefined;
      }
    };
    if (this.#statisticsElement !== undefined && Atomics.exchange(this.#words, StatisticsWord.wanted, 0) !== 0) {
      giveBack();
    }
    for (let count = 0; count < queue.layout.size; count += 1) {
      const element = queue.pop();
      if (element === undefined) {
        return queue.enableNotifications();
      }
      // The driver is to have one buffer here; of more, the last one stays.
      giveBack();
      this.#statisticsElement = element;
      this.#report(this.#gather(element.readable, STATISTICS_BYTES_MAX));
    }
    return true;
  }

  #report(bytes: DataView): void {
    this.#values.fill(Number.NaN);
    for (let at = 0; at + STATISTIC_BYTES <= bytes.byteLength; at += STATISTIC_BYTES) {
      const tag = bytes.getUint16(at, true);
      if (tag < this.#values.length) {
        this.#values[tag] = Number(bytes.getBigUint64(at + 2, true));
      }
    }
    Atomics.add(this.#words, StatisticsWord.reports, 1);
  }

  /** A copy of what the driver sent. Throws BALLOON_ELEMENT if that is more than `limit` bytes. */
  #gather(buffers: readonly QueueBuffer[], limit: number): DataView {
    const length = buffers.reduce((sum, buffer) => sum + buffer.length, 0);
    if (length > limit) {
      throw new RamferryError(
        'invalid',
        'BALLOON_ELEMENT',
        `The balloon driver sent an element of ${length} bytes, more than ${limit}`,
        { value: length },
      );
    }
    const bytes = new Uint8Array(length);
    let at = 0;
    for (const { address, length: count } of buffers) {
      bytes.set(this.#memory.read(address, count), at);
      at += count;
    }
    return new DataView(bytes.buffer);
  }
}
