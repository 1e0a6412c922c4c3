// The migration engine's end of free page hints: asks the guest for them, takes them, ends them. To be used in the engine's
// thread, which owns the send bitmap; no call waits for the guest or the device (FH-22). See hint-exchange.ts.

import { BalloonConfig, BalloonFeature, type BalloonShared } from './balloon.js';
import { HINT_DONE, HINT_STOP, HintWord, hintEntry, isHintId, nextHintId } from './hint-exchange.js';
import {
  configWords,
  DeviceStatus,
  Interrupt,
  interruptDriver,
  isLive,
  loadFeatures,
  Register,
  ringDoorbell,
} from './registers.js';

export class BalloonHints {
  readonly #words: Int32Array;
  readonly #registers: Int32Array;
  readonly #config: Int32Array;
  /** REQUESTED as this thread stored it. */
  #requested: number;

  constructor({ virtio, hints }: BalloonShared) {
    this.#words = new Int32Array(hints);
    this.#registers = new Int32Array(virtio.registers);
    this.#config = configWords(virtio);
    this.#requested = Atomics.load(this.#words, HintWord.requested);
  }

  /** Whether the guest leaves the pages of a hint alone until it was acknowledged. */
  get acknowledged(): boolean {
    return this.#negotiated(BalloonFeature.acknowledgeHints);
  }

  get status(): 'stop' | 'requested' | 'start' | 'done' {
    if (!isHintId(this.#requested)) {
      return this.#requested === HINT_DONE ? 'done' : 'stop';
    }
    if (Atomics.load(this.#config, BalloonConfig.commandId) !== this.#requested) {
      return 'stop';
    }
    return Atomics.load(this.#words, HintWord.started) === this.#requested ? 'start' : 'requested';
  }

  /** Markers and ranges ignored because nobody had asked for them, or not any more (FH-5, FH-6). */
  get stale(): number {
    return Atomics.load(this.#words, HintWord.stale);
  }

  /** Hints ignored, or the rest of them, because no memory is there (FH-4). */
  get outside(): number {
    return Atomics.load(this.#words, HintWord.outside);
  }

  /** Whether the driver broke the protocol and has not reset the device since. */
  get isBroken(): boolean {
    return (Atomics.load(this.#registers, Register.status) & DeviceStatus.needsReset) !== 0;
  }

  /** Ranges ignored because the engine was too far behind. */
  get dropped(): number {
    return Atomics.load(this.#words, HintWord.dropped);
  }

  /** Asks for hints under a new id (FH-11). Status stays `stop` if there is no driver that gives them. */
  request(): void {
    if (!isLive(this.#registers) || !this.#negotiated(BalloonFeature.freePageHint)) {
      if (this.#requested !== HINT_STOP) {
        this.#change(HINT_STOP);
      }
      return;
    }
    const id = nextHintId(Atomics.load(this.#words, HintWord.lastId));
    Atomics.store(this.#words, HintWord.lastId, id);
    this.#change(id);
  }

  /** No hint passes `next` any more until the next request (FH-7). */
  stop(): void {
    if (isHintId(this.#requested)) {
      this.#change(HINT_STOP);
      this.#drop();
    }
  }

  /** The guest may use its pages again (FH-12, FH-13). */
  done(): void {
    // Also where the driver that was asked is gone meanwhile: its hints are void from here on.
    if (isHintId(this.#requested) || this.#negotiated(BalloonFeature.freePageHint)) {
      this.#change(HINT_DONE);
      this.#drop();
    }
  }

  /** Puts the next hint given under the current id into `range`; false if there is none at the moment. */
  next(range: { blockId: number; firstPage: number; pageCount: number }): boolean {
    const words = this.#words;
    for (;;) {
      const position = words[HintWord.taken]!;
      if (position === Atomics.load(words, HintWord.tail)) {
        return false;
      }
      const entry = hintEntry(position);
      Atomics.store(words, HintWord.taken, position + 1);
      const id = words[entry]!;
      if (id === this.#requested && id !== Atomics.load(words, HintWord.cancelled)) {
        range.blockId = words[entry + 1]!;
        range.firstPage = words[entry + 2]!;
        range.pageCount = words[entry + 3]!;
        return true;
      }
      Atomics.add(words, HintWord.stale, 1);
      if (words[HintWord.applied] === position) {
        this.#applied(position + 1);
      }
    }
  }

  /** All ranges taken so far were applied: their elements may go back to the guest. */
  acknowledge(): void {
    this.#applied(this.#words[HintWord.taken]!);
  }

  #applied(position: number): void {
    Atomics.store(this.#words, HintWord.applied, position | 0);
    if (Atomics.load(this.#words, HintWord.waiting) !== 0) {
      ringDoorbell(this.#registers);
    }
  }

  /** Drops what is in the ring, so that it is counted now. What the device still adds is dropped by `next`. */
  #drop(): void {
    const tail = Atomics.load(this.#words, HintWord.tail);
    Atomics.add(this.#words, HintWord.stale, (tail - this.#words[HintWord.taken]!) | 0);
    Atomics.store(this.#words, HintWord.taken, tail);
    this.#applied(tail);
  }

  #change(requested: number): void {
    // The guest must not see an id before the device knows it.
    this.#requested = requested;
    Atomics.store(this.#words, HintWord.requested, requested);
    if (Atomics.exchange(this.#config, BalloonConfig.commandId, requested) !== requested) {
      interruptDriver(this.#registers, Interrupt.configuration);
    }
    // Elements of the last id may be waiting for the engine.
    ringDoorbell(this.#registers);
  }

  #negotiated(feature: bigint): boolean {
    return (loadFeatures(this.#registers, Register.driverFeatures) & feature) !== 0n;
  }
}
