// The guest that all schedules are played on, what its owner wants of it, and what nobody may have left behind on it.

import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { HintWord, isHintId } from '../../src/device/hint-exchange.js';
import { ProtectControl } from '../../src/dirty-log/write-protect.js';
import { WorkloadGuest, type WorkloadOptions } from '../../src/guest/index.js';
import { Control, RunHold } from '../../src/guest/workload/control.js';
import { RunWord } from '../../src/guest/workload/run-word.js';

const MIB = 2 ** 20;
const KIB = 2 ** 10;

/** Far more than a guest thread needs to get on. */
const PROGRESS_MS = 10_000;

const common = { writers: 2, memoryBytes: 2 * MIB, segmentBytes: 16 * MIB, rate: 8 * MIB } as const;

/** The kinds of guest: a plain one, one that reports free pages, one with a memory device. */
export const guestKinds: readonly WorkloadOptions[] = [
  { ...common, barrier: 'unconditional', workingSetBytes: 1.5 * MIB },
  {
    ...common,
    barrier: 'filtered',
    memoryBytes: 12 * MIB,
    workingSetBytes: 2 * MIB,
    freePageHints: true,
    garbage: true,
  },
  {
    ...common,
    barrier: 'filtered',
    virtioMem: { regionBytes: 8 * MIB, blockBytes: MIB, requestedBytes: 2 * MIB, rate: 4 * MIB },
  },
];

export class StressGuest {
  readonly options: WorkloadOptions;
  guest: WorkloadGuest;
  isPausedByOwner = false;
  /** Memory modules that were plugged, each of which the workload uses for good. */
  modules = 0;

  private constructor(options: WorkloadOptions, guest: WorkloadGuest) {
    this.options = options;
    this.guest = guest;
  }

  static async start(kind: number, seed: number): Promise<StressGuest> {
    const options = { ...guestKinds[kind]!, seed: 1 + (seed % 1_000_000) };
    const guest = WorkloadGuest.create(options);
    if (options.freePageHints !== true) {
      // Firmware tables and the like: nobody stores to it, its size changes at times. A balloon needs to know where it lies.
      guest.blocks.add({ name: 'tables', usedLength: 64 * KIB, maxLength: 256 * KIB });
    }
    await guest.start();
    return new StressGuest(options, guest);
  }

  /** Whether it runs elsewhere, or may, as its owner is told. */
  get hasMoved(): boolean {
    return (new RunWord(this.#words.control).value & RunHold.moved) !== 0;
  }

  async pause(): Promise<void> {
    await this.guest.stop();
    this.isPausedByOwner = true;
  }

  async resume(): Promise<void> {
    await this.guest.resume();
    this.isPausedByOwner = false;
  }

  /** The other one goes on in its place. */
  async replaceBy(guest: WorkloadGuest): Promise<void> {
    const former = this.guest;
    this.guest = guest;
    await former.shutdown();
  }

  get #words(): {
    readonly control: Int32Array;
    readonly recording: Int32Array;
    readonly protection: Int32Array | undefined;
  } {
    const { control, barrier } = this.guest.share();
    return {
      control: new Int32Array(control),
      recording: new Int32Array(barrier.recording),
      protection: barrier.protection && new Int32Array(barrier.protection.control),
    };
  }

  /** Whatever somebody left behind on it, in words. */
  leftovers(): readonly string[] {
    const { control, recording, protection } = this.#words;
    const { guest } = this;
    const { blocks, dirty } = guest.blocks;
    const { balloon } = guest.share();
    const requested =
      balloon === undefined ? 0 : Atomics.load(new Int32Array(balloon.device.hints), HintWord.requested);
    const frozen = blocks.filter(({ discardManager }) => discardManager?.isFrozen).map(({ name }) => name);
    const found: readonly (readonly [string, boolean])[] = [
      ['is throttled', Atomics.load(control, Control.throttle) !== 0],
      ['is logged', Atomics.load(recording, 0) !== 0],
      ['is tracked', dirty.migrationTracking],
      ['has protected pages', protection !== undefined && Atomics.load(protection, ProtectControl.active) !== 0],
      ['is asked for hints', isHintId(requested)],
      [`has frozen discards in ${frozen.join(', ')}`, frozen.length > 0],
      [`is claimed for ${guest.blocks.claimedFor}`, guest.blocks.claimedFor !== undefined],
    ];
    return found.filter(([, isSo]) => isSo).map(([what]) => `the guest ${what}`);
  }

  /** It does what its owner wants, all of it, and nothing in it is wrong. `isWhole`: look at all of its memory. */
  async assertWell(isWhole: boolean): Promise<void> {
    const { guest } = this;
    assert.deepEqual(this.leftovers(), []);
    assert.equal(guest.source.isRunning(), !this.isPausedByOwner, 'the guest does not do what its owner wants');
    if (!this.isPausedByOwner) {
      await this.#assertProgress();
    }
    assert.equal(guest.counters().bad, 0, 'the guest found pages wrong');
    if (isWhole) {
      await guest.stop();
      const { bad, badPages, staleTables } = guest.verify();
      assert.deepEqual({ bad, badPages, staleTables }, { bad: 0, badPages: [], staleTables: [] });
      assert.equal(guest.virtioMem?.bad ?? 0, 0);
      if (!this.isPausedByOwner) {
        await guest.resume();
      }
    }
  }

  async #assertProgress(): Promise<void> {
    const { guest } = this;
    const deadline = performance.now() + PROGRESS_MS;
    const before = guest.counters().pagesWritten;
    while (guest.counters().pagesWritten === before) {
      assert.ok(performance.now() < deadline, 'the guest is said to run, and does nothing');
      await sleep(1);
    }
  }
}
