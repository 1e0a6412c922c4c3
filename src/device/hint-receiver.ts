// The device's end of free page hints: takes elements from the hint queue, follows the start and end markers, and hands
// ranges on to the engine. Works in the device's thread and never waits: what cannot be done yet stays for the next call.

import { type RamBlock, RamferryError } from '../memory/index.js';
import { BalloonConfig, type BalloonShared } from './balloon.js';
import type { DeviceQueue, QueueElement } from './device-queue.js';
import { type GuestMemory, wholePages } from './guest-memory.js';
import { HINT_RING_ENTRIES, HINT_STOP, HintWord, hintEntry, isHintId } from './hint-exchange.js';
import { configWords } from './registers.js';

/** How long a full ring may keep the guest's elements before their hints are dropped: they are advice, and go stale. */
export const FULL_RING_MS = 100;

/** An element that the device has, with the position in the ring behind its last range. */
interface HeldElement {
  readonly element: QueueElement;
  readonly id: number;
  readonly end: number;
}

export class HintReceiver {
  readonly #memory: GuestMemory;
  readonly #words: Int32Array;
  readonly #config: Int32Array;
  readonly #now: () => number;
  /** The element at work, and what of its ranges did not fit the ring yet: block id, first page, page count, repeated. */
  #current: QueueElement | undefined;
  #currentId = 0;
  readonly #ranges: number[] = [];
  #nextRange = 0;
  #fullSince: number | undefined;
  /** In the order in which they were popped. */
  readonly #held: HeldElement[] = [];

  constructor(shared: BalloonShared, memory: GuestMemory, now: () => number = () => performance.now()) {
    this.#memory = memory;
    this.#words = new Int32Array(shared.hints);
    this.#config = configWords(shared.virtio);
    this.#now = now;
  }

  /**
   * Takes up to a queue full of elements. Returns whether there may be more at once. With `acknowledge`, elements return once
   * the engine has applied or dropped their ranges. Throws what is wrong with the queue, and BALLOON_HINT_ID.
   */
  service(queue: DeviceQueue, acknowledge: boolean): boolean {
    Atomics.store(this.#words, HintWord.waiting, 0);
    queue.disableNotifications();
    for (let taken = 0; this.#handOn(); taken += 1) {
      if (taken === queue.layout.size) {
        this.#returnHeld(queue, acknowledge);
        return true;
      }
      const element = queue.pop();
      if (element === undefined) {
        break;
      }
      this.#take(element);
    }
    Atomics.store(this.#words, HintWord.waiting, 1);
    // After that: what the engine did before it could know of somebody waiting.
    const isReady = this.#handOn();
    this.#returnHeld(queue, acknowledge);
    if (this.#held.length === 0 && isReady) {
      Atomics.store(this.#words, HintWord.waiting, 0);
    }
    return queue.enableNotifications() && isReady;
  }

  /**
   * Ends hinting for a reset: the guest takes its pages back as soon as it is done. False as long as the engine is applying a
   * range (microseconds); to be called again then (FH-24).
   */
  cancel(): boolean {
    const words = this.#words;
    const id = Atomics.load(words, HintWord.requested);
    Atomics.store(words, HintWord.cancelled, id);
    this.#current = undefined;
    this.#ranges.length = this.#nextRange = 0;
    this.#held.length = 0;
    for (let shown = HINT_STOP + 1; shown !== HINT_STOP; ) {
      shown = Atomics.load(this.#config, BalloonConfig.commandId);
      Atomics.compareExchange(this.#config, BalloonConfig.commandId, shown, HINT_STOP);
    }
    return (
      !isHintId(id) ||
      Atomics.load(words, HintWord.taken) === Atomics.load(words, HintWord.applied) ||
      Atomics.load(words, HintWord.requested) !== id
    );
  }

  #take(element: QueueElement): void {
    if (element.readable.length > 0) {
      this.#marker(this.#readId(element));
    }
    const id = Atomics.load(this.#words, HintWord.requested);
    this.#current = element;
    this.#currentId = id;
    if (element.writable.length === 0) {
      return;
    }
    if (!this.#isStarted(id)) {
      Atomics.add(this.#words, HintWord.stale, 1);
      return;
    }
    for (const { address, length } of element.writable) {
      const covered = this.#memory.forEachRange(address, length, this.#addRange);
      if (covered < length) {
        Atomics.add(this.#words, HintWord.outside, 1);
      }
    }
  }

  readonly #addRange = (block: RamBlock, offset: number, bytes: number): void => {
    const { firstPage, pageCount } = wholePages(offset, bytes);
    if (pageCount > 0) {
      this.#ranges.push(block.id, firstPage, pageCount);
    }
  };

  /** The guest answered the request for `id`, and has not ended it. */
  #isStarted(id: number): boolean {
    return (
      isHintId(id) &&
      Atomics.load(this.#words, HintWord.started) === id &&
      Atomics.load(this.#config, BalloonConfig.commandId) === id
    );
  }

  #marker(id: number): void {
    const requested = Atomics.load(this.#words, HintWord.requested);
    if (this.#isStarted(requested)) {
      // Whatever it is, it ends what was started (FH-9: before the start, an end marker does nothing).
      Atomics.compareExchange(this.#config, BalloonConfig.commandId, requested, HINT_STOP);
    } else if (isHintId(id) && id === requested) {
      // If it was ended or cancelled before, it is no longer shown, and this starts nothing.
      Atomics.store(this.#words, HintWord.started, id);
    } else if (isHintId(id)) {
      Atomics.add(this.#words, HintWord.stale, 1);
    }
  }

  #readId({ readable }: QueueElement): number {
    const length = readable.reduce((sum, buffer) => sum + buffer.length, 0);
    if (length !== 4) {
      throw new RamferryError('invalid', 'BALLOON_HINT_ID', `A command id has 4 bytes, the driver sent ${length}`, {
        value: length,
      });
    }
    const bytes = readable.flatMap((buffer) => [...this.#memory.read(buffer.address, buffer.length)]);
    return new DataView(Uint8Array.from(bytes).buffer).getInt32(0, true);
  }

  /** Puts ranges of the element at work into the ring; true when all are there, or need not be. */
  #handOn(): boolean {
    if (this.#current === undefined) {
      return true;
    }
    const words = this.#words;
    const id = this.#currentId;
    let tail = words[HintWord.tail]!;
    for (; this.#nextRange < this.#ranges.length; this.#nextRange += 3) {
      const left = (this.#ranges.length - this.#nextRange) / 3;
      if (Atomics.load(words, HintWord.requested) !== id) {
        Atomics.add(words, HintWord.stale, left);
        break;
      }
      if (((tail - Atomics.load(words, HintWord.applied)) | 0) >= HINT_RING_ENTRIES) {
        this.#fullSince ??= this.#now();
        if (this.#now() - this.#fullSince < FULL_RING_MS) {
          return false;
        }
        Atomics.add(words, HintWord.dropped, left);
        break;
      }
      const entry = hintEntry(tail);
      words[entry] = id;
      words[entry + 1] = this.#ranges[this.#nextRange]!;
      words[entry + 2] = this.#ranges[this.#nextRange + 1]!;
      words[entry + 3] = this.#ranges[this.#nextRange + 2]!;
      tail = (tail + 1) | 0;
      Atomics.store(words, HintWord.tail, tail);
      this.#fullSince = undefined;
    }
    this.#ranges.length = this.#nextRange = 0;
    this.#held.push({ element: this.#current, id, end: tail });
    this.#current = undefined;
    return true;
  }

  #returnHeld(queue: DeviceQueue, acknowledge: boolean): void {
    const count = acknowledge ? this.#held.findIndex((held) => !this.#isSettled(held)) : -1;
    for (const { element } of this.#held.splice(0, count < 0 ? this.#held.length : count)) {
      queue.push(element, 0);
    }
  }

  /** The engine has applied or dropped the ranges of the element, or never will apply them. */
  #isSettled({ id, end }: HeldElement): boolean {
    return (
      !isHintId(id) ||
      ((Atomics.load(this.#words, HintWord.applied) - end) | 0) >= 0 ||
      Atomics.load(this.#words, HintWord.requested) !== id
    );
  }
}
