// The workload guest as the source engine sees it, in whatever thread that runs: stopping it takes two words of shared
// memory and no event loop.

import { BalloonHints, encodeBalloon, GuestMemory, saveBalloon } from '../../device/index.js';
import {
  areMissingPages,
  type DirtyLog,
  StoreBarrierLog,
  StoreBarrierProtector,
  type WriteProtector,
} from '../../dirty-log/index.js';
import { buildDeviceTail, type DeviceState, type DeviceTail } from '../../format/stream/index.js';
import { BALLOON_SECTION, VIRTIO_SECTION_VERSION } from '../../format/virtio/index.js';
import { RamBlockList, RamferryError } from '../../memory/index.js';
import type { HintSource, SourceGuest } from '../../source/guest.js';
import { driverRegisters } from './balloon-driver.js';
import { DRIVER_SECTION, DRIVER_VERSION, encodeDriver } from './balloon-section.js';
import { Control, RunHold, registersOf, type SharedBalloon, type WorkloadShared } from './control.js';
import { memoryRegions, WORKLOAD_MACHINE } from './machine.js';
import { encodeRegisters, REGISTERS_VERSION } from './registers.js';
import { RunWord } from './run-word.js';
import { VirtioMemMachine } from './virtio-mem-machine.js';

/** Section name of a writer's device state; the instance is the writer's number. */
export const WRITER_SECTION = 'workload';

/** By `BalloonThread`. */
const BALLOON_THREAD_NAMES = ['the balloon driver', 'the balloon device'];

/**
 * The guest in the calling thread. After a hot-plug, `blocks.update` tells it of the new block. `wantsHints`: whether its
 * balloon is asked for free pages, if it has one.
 */
export const attachWorkloadGuest = (shared: WorkloadShared, wantsHints = true): SourceGuest => {
  if (shared.barrier.loads !== undefined && areMissingPages(shared.barrier.loads)) {
    throw new RamferryError('failed', 'GUEST_INCOMPLETE', 'The guest cannot leave before all of its memory has come');
  }
  return new WorkloadSource(shared, RamBlockList.attach(shared.blocks), wantsHints);
};

export class WorkloadSource implements SourceGuest {
  readonly machine = WORKLOAD_MACHINE;
  readonly uuid = undefined;
  /** Device sections count from 2 (`buildDeviceTail`). */
  readonly ramSectionId = 1;
  readonly blocks: RamBlockList;
  readonly log: DirtyLog | undefined;
  readonly protector: WriteProtector | undefined;
  readonly hints?: HintSource;
  readonly #balloon: SharedBalloon | undefined;
  readonly #control: Int32Array;
  readonly #runWord: RunWord;
  /** Used for parking even where nothing is marked. */
  readonly #log: StoreBarrierLog;
  readonly #registers: readonly Float64Array[];
  readonly #virtioMem: VirtioMemMachine | undefined;

  /** `blocks`: the calling thread's list of the guest's blocks. */
  constructor(shared: WorkloadShared, blocks: RamBlockList, wantsHints = true) {
    this.blocks = blocks;
    this.#log = new StoreBarrierLog(shared.barrier, blocks);
    this.log = shared.barrierChoice === 'none' ? undefined : this.#log;
    const { protection } = shared.barrier;
    this.protector = protection && new StoreBarrierProtector({ ...shared.barrier, protection }, blocks);
    this.#balloon = shared.balloon;
    if (shared.balloon !== undefined && wantsHints) {
      this.hints = new BalloonHints(shared.balloon.device);
    }
    this.#control = new Int32Array(shared.control);
    this.#runWord = new RunWord(this.#control);
    this.#registers = Array.from({ length: shared.writerCount }, (_, i) => registersOf(shared.registers, i));
    this.#virtioMem = shared.virtioMem && new VirtioMemMachine(shared.virtioMem, blocks);
  }

  get earlySections(): Uint8Array {
    return buildDeviceTail([], this.#earlyDevices()).early;
  }

  isRunning(): boolean {
    return this.#runWord.isRunning;
  }

  /** Blocks the calling thread until all writers are parked. Throws GUEST_THREAD_DIED, GUEST_NOT_RESPONDING. */
  async stop(): Promise<void> {
    this.#hold(RunHold.migration);
  }

  async resume(): Promise<void> {
    this.checkAlive();
    this.#runWord.change(0, RunHold.migration);
  }

  leave(hasMoved: boolean): void {
    this.#runWord.change(hasMoved ? RunHold.moved : RunHold.owner, RunHold.migration);
  }

  /** For the guest's owner: keeps it from running until `unpause`, whatever a migration does. Throws as `stop`. */
  async pause(): Promise<void> {
    this.#hold(RunHold.owner);
  }

  /**
   * Takes back `pause`. While a migration has stopped the guest, this makes it run on if that fails.
   * @throws RamferryError `GUEST_MOVED` if it runs at the destination of a migration
   */
  async unpause(): Promise<void> {
    this.checkAlive();
    if ((this.#runWord.value & RunHold.moved) !== 0) {
      throw new RamferryError('usage', 'GUEST_MOVED', 'The guest has moved: it runs at the destination.', {
        hint: 'Only if it is known not to run there any more, call takeBack first.',
      });
    }
    this.#runWord.change(0, RunHold.owner);
  }

  /** Makes a guest that has moved one that its owner has paused. */
  takeBack(): void {
    if ((this.#runWord.value & RunHold.moved) !== 0) {
      this.#runWord.change(RunHold.owner, RunHold.moved);
    }
  }

  #hold(by: number): void {
    this.#runWord.change(by, 0);
    this.#log.awaitParked();
    this.checkAlive();
  }

  throttle(percentage: number): void {
    Atomics.store(this.#control, Control.throttle, percentage);
  }

  saveDevices(): DeviceTail {
    this.checkAlive();
    const writers = this.#registers.map((registers, instance) => ({
      name: WRITER_SECTION,
      instance,
      version: REGISTERS_VERSION,
      body: encodeRegisters(registers),
    }));
    const balloon = this.#balloon === undefined ? [] : this.#saveBalloon(this.#balloon);
    return buildDeviceTail([...writers, ...balloon, ...(this.#virtioMem?.save() ?? [])], this.#earlyDevices());
  }

  #earlyDevices(): DeviceState[] {
    return this.#virtioMem === undefined ? [] : [this.#virtioMem.saveEarly()];
  }

  #saveBalloon({ device, driver }: SharedBalloon): DeviceState[] {
    const memory = new GuestMemory(memoryRegions(this.blocks), { markRange: () => {} });
    const registers = encodeDriver(driverRegisters(driver));
    return [
      {
        name: BALLOON_SECTION,
        instance: 0,
        version: VIRTIO_SECTION_VERSION,
        body: encodeBalloon(saveBalloon(device, memory)),
      },
      { name: DRIVER_SECTION, instance: 0, version: DRIVER_VERSION, body: registers },
    ];
  }

  /** Throws GUEST_THREAD_DIED if one of the guest's threads ended by itself. `cause`: what it threw, known to the guest's owner. */
  checkAlive(cause?: Error): void {
    const died = Atomics.load(this.#control, Control.died) - 1;
    if (died >= 0) {
      const writers = this.#registers.length;
      const others = [...(this.#balloon === undefined ? [] : BALLOON_THREAD_NAMES), 'the virtio-mem driver'];
      const which = died < writers ? `workload writer ${died}` : others[died - writers];
      const reason = cause === undefined ? '' : `: ${cause.message}`;
      throw new RamferryError('failed', 'GUEST_THREAD_DIED', `The thread of ${which} died${reason}`, {
        value: died,
        ...(cause !== undefined && { cause }),
      });
    }
  }
}
