// The embedded guest: guest RAM written by worker threads through a store barrier, with content that verifies itself. This
// is its owner, who starts and ends the threads; the engine sees it through workload-source.ts.
//
//   owner's thread               engine's thread                writer threads       balloon driver, balloon device
//   WorkloadGuest ── share() ──▶ attachWorkloadGuest            runWriter            balloon-loops.ts
//        │                            │ stop, sync, clear            │ store, mark        │ store, mark
//        └────────────┬───────────────┴──────────────────────────────┴────────────────────┘
//            control block, registers, store barrier, guest RAM and bitmaps: all shared memory

import { setTimeout as sleep } from 'node:timers/promises';
import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads';
import { GUEST_PAGE_SIZE } from '../../../kernels/kernels.js';
import { allocateBalloon, decodeBalloon, Interrupt, loadBalloon } from '../../device/index.js';
import { configWords, interruptDriver, ringDoorbell } from '../../device/registers.js';
import {
  allocateLoadBarrier,
  allocateStoreBarrier,
  allocateWriteProtect,
  areMissingPages,
  LoadBarrier,
  type MissingPages,
  releaseWriter,
} from '../../dirty-log/index.js';
import { UserfaultfdMissingPages } from '../../dirty-log/missing-pages-userfaultfd-node.js';
import type { DeviceState } from '../../format/stream/index.js';
import { BALLOON_SECTION } from '../../format/virtio/index.js';
import { adviseHugePages, confineHugePages } from '../../memory/huge-pages-node.js';
import { type RamBlock, RamBlockList, RamferryError } from '../../memory/index.js';
import { releaseMemory } from '../../memory/release-memory-node.js';
import { digestBlocks } from '../digest-node.js';
import { allocateDriverRegisters, DriverRegister, driverRegisters, isIdle } from './balloon-driver.js';
import { DRIVER_SECTION, decodeDriver } from './balloon-section.js';
import type { BalloonThreadData } from './balloon-thread-node.js';
import {
  allocateControl,
  allocateRegisters,
  BALLOON_THREADS,
  BalloonThread,
  type BarrierChoice,
  Control,
  registersOf,
  type WorkloadShared,
} from './control.js';
import { digestPagesInUse } from './digest-in-use-node.js';
import { addBlocks, KERNEL_BLOCK, plugBlock, writableBlocks } from './machine.js';
import { decodeRegisters, REGISTERS_VERSION, Register, WorkloadKind, WorkloadOption } from './registers.js';
import { RunState, RunWord } from './run-word.js';
import { type Verification, verifyMemory } from './verify.js';
import {
  addVirtioMemBlocks,
  allocateVirtioMemMachine,
  isVirtioMemState,
  VirtioMemMachine,
  type VirtioMemMachineOptions,
} from './virtio-mem-machine.js';
import { VirtioMemRegister } from './virtio-mem-registers.js';
import type { VirtioMemThreadData } from './virtio-mem-thread-node.js';
import { WorkloadSource, WRITER_SECTION } from './workload-source.js';
import type { WriterThreadData } from './writer-thread-node.js';

export interface WorkloadOptions {
  /** Bytes of `pc.ram`; further, small blocks are always there. */
  readonly memoryBytes: number;
  /** Writer threads. Default 2. */
  readonly writers?: number;
  /** Default `churn`. */
  readonly workload?: WorkloadKind;
  /** Bytes that all writers together write per second; 0 (default) for as fast as possible. */
  readonly rate?: number;
  /** Bytes that the workload works on; default all. Memory that is plugged later is used in the same proportion. */
  readonly workingSetBytes?: number;
  /** Free memory is full of garbage, as in a guest that has run for long; otherwise it was never touched. Default false. */
  readonly garbage?: boolean;
  /** Pages are zeroed when they are taken, as most Linux distributions do. Default false. */
  readonly initOnAlloc?: boolean;
  /** Free pages hold a poison (0xaa); what was free and does not any more counts as bad. Default false. */
  readonly pagePoison?: boolean;
  /** A balloon, whose driver tells a migration which pages are free. Default false. */
  readonly freePageHints?: boolean;
  /** Its driver waits for the device before it uses reported pages again, where the device offers that. Default true. */
  readonly acknowledgeHints?: boolean;
  /** Default `unconditional`: nothing has to wait for a writer then, and next to filling a page a mark costs nothing. */
  readonly barrier?: BarrierChoice;
  /** Makes runs differ; the same seed gives each writer the same steps. Default 1. */
  readonly seed?: number;
  /** Steps after which each writer halts. Default: never. */
  readonly steps?: number;
  /** Guest RAM per segment; tests make it small. */
  readonly segmentBytes?: number;
  /** A virtio-mem device, with a vCPU of its own that drives it and works on what is plugged. */
  readonly virtioMem?: VirtioMemMachineOptions;
}

export interface RestoreOptions {
  /** As in `WorkloadOptions`; it is no part of the guest's state. */
  readonly barrier?: BarrierChoice;
}

export interface IncomingOptions extends RestoreOptions {
  /** As in `WorkloadOptions`. */
  readonly writers?: number;
}

/** Sums over all writers since the guest was created, migrations included. */
export interface WorkloadCounters {
  readonly pagesWritten: number;
  readonly pagesChecked: number;
  /** Checks that found a page wrong. */
  readonly bad: number;
  /** Blocks of 4 MiB that the balloon driver reported as free. */
  readonly blocksReported: number;
  /** Blocks of 4 MiB that the balloon held and had to give back because memory was short. */
  readonly blocksTakenBack: number;
}

/** The most writers: each has a share of every block, and a block may be small. */
const WRITERS_MAX = 64;

/** How often the owner looks whether the writers have got somewhere. */
const POLL_MS = 1;

/** Of a virtio-mem device and the vCPU that drives it. */
export interface VirtioMemFigures {
  readonly block: RamBlock;
  readonly requestedBytes: number;
  readonly pluggedBytes: number;
  readonly pagesWritten: number;
  readonly pagesChecked: number;
  readonly bad: number;
  /** What the device answered the driver. */
  readonly answers: { readonly ack: number; readonly nack: number; readonly busy: number; readonly error: number };
}

/** Who makes guest threads wait for pages: they themselves, or the kernel. */
export type MissingPagesKind = 'load-barrier' | 'userfaultfd';

interface GuestThread {
  /** Of a writer: brings it new block lists. */
  readonly port?: MessagePort;
  /** Resolves when the thread waits to be run, or is gone. */
  readonly parked: Promise<void>;
  readonly exited: Promise<void>;
}

export class WorkloadGuest {
  readonly blocks: RamBlockList;
  /** The guest as an engine in this thread would use it. */
  readonly source: WorkloadSource;
  readonly #control: Int32Array;
  readonly #runWord: RunWord;
  readonly #registers: readonly Float64Array[];
  readonly #shared: Omit<WorkloadShared, 'blocks'>;
  readonly #virtioMem: VirtioMemMachine | undefined;
  #threads: GuestThread[] = [];
  #missingPages: MissingPages | undefined;
  /** What the first thread that ended by itself threw. */
  #deathCause: Error | undefined;

  private constructor(blocks: RamBlockList, barrier: BarrierChoice, writerCount: number, acknowledgeHints = true) {
    const hasBalloon = blocks.find(KERNEL_BLOCK) !== undefined;
    const virtioMem = allocateVirtioMemMachine(blocks);
    const threads = writerCount + (hasBalloon ? BALLOON_THREADS : 0) + (virtioMem === undefined ? 0 : 1);
    this.blocks = blocks;
    this.#shared = {
      barrierChoice: barrier,
      barrier:
        barrier === 'none'
          ? allocateStoreBarrier('unconditional', threads)
          : allocateStoreBarrier(barrier, threads, allocateWriteProtect(threads), allocateLoadBarrier(threads)),
      control: allocateControl(writerCount),
      registers: allocateRegisters(writerCount),
      writerCount,
      balloon: hasBalloon
        ? { device: allocateBalloon({ acknowledgeHints }), driver: allocateDriverRegisters() }
        : undefined,
      virtioMem,
    };
    this.#control = new Int32Array(this.#shared.control);
    this.#runWord = new RunWord(this.#control);
    this.#registers = Array.from({ length: writerCount }, (_, i) => registersOf(this.#shared.registers, i));
    this.#virtioMem =
      virtioMem &&
      new VirtioMemMachine(virtioMem, blocks, {
        release: (offset, length) => releaseMemory(this.#virtioMem!.region, offset, length),
      });
    if (this.#virtioMem !== undefined) {
      this.#virtioMem.device.initialize();
      confineHugePages(this.#virtioMem.region);
    }
    this.source = new WorkloadSource(this.share(), blocks);
  }

  /** A new guest, stopped. Throws WORKLOAD_OPTIONS, and what adding a block of that size throws. */
  static create(options: WorkloadOptions): WorkloadGuest {
    const {
      memoryBytes,
      writers = 2,
      workload = 'churn',
      rate = 0,
      seed = 1,
      steps = Number.POSITIVE_INFINITY,
    } = options;
    const workingSetBytes = Math.min(options.workingSetBytes ?? memoryBytes, memoryBytes);
    checkOption('writers', writers, writers >= 1 && writers <= WRITERS_MAX && Number.isInteger(writers));
    checkOption('rate', rate, Number.isSafeInteger(rate) && rate >= 0);
    checkOption('workingSetBytes', workingSetBytes, workingSetBytes >= GUEST_PAGE_SIZE);
    checkOption('steps', steps, steps >= 0);

    const blocks = RamBlockList.create({
      onSegment: adviseHugePages,
      ...(options.segmentBytes !== undefined && { segmentBytes: options.segmentBytes }),
    });
    addBlocks(blocks, memoryBytes, options.freePageHints);
    if (options.virtioMem !== undefined) {
      addVirtioMemBlocks(blocks, options.virtioMem);
    }
    const guest = new WorkloadGuest(blocks, options.barrier ?? 'unconditional', writers, options.acknowledgeHints);
    const optionBits = (Object.keys(WorkloadOption) as (keyof typeof WorkloadOption)[]).reduce(
      (sum, option) => sum + (options[option] === true ? WorkloadOption[option] : 0),
      0,
    );
    if (guest.#driver !== undefined) {
      guest.#driver[DriverRegister.options] = optionBits;
    }
    for (const [writer, registers] of guest.#registers.entries()) {
      registers[Register.kind] = WorkloadKind[workload];
      registers[Register.rate] = rate;
      registers[Register.workingFraction] = workingSetBytes / memoryBytes;
      registers[Register.stepsLeft] = steps;
      registers[Register.options] = optionBits;
      // An xorshift state is never 0.
      registers[Register.random] = (Math.imul(seed, 0x9e3779b1) ^ Math.imul(writer + 1, 0x85ebca6b)) >>> 0 || 1;
    }
    if (guest.#virtioMem !== undefined) {
      guest.#virtioMem.registers[VirtioMemRegister.random] = Math.imul(seed, 0x9e3779b1) >>> 0 || 1;
      guest.#virtioMem.registers[VirtioMemRegister.rate] = options.virtioMem?.rate ?? 0;
      guest.requestVirtioMem(options.virtioMem?.requestedBytes ?? 0);
    }
    return guest;
  }

  /**
   * A guest that is about to be migrated here, stopped: `boot` it while its memory comes in, then `load` its devices. It must
   * have as many writers as its source, as a QEMU needs the same `-smp`.
   */
  static incoming(blocks: RamBlockList, options: IncomingOptions = {}): WorkloadGuest {
    return new WorkloadGuest(blocks, options.barrier ?? 'unconditional', options.writers ?? 2);
  }

  /** The guest that `devices` and the loaded `blocks` describe, stopped where its source stopped. Throws WORKLOAD_STATE_INVALID. */
  static restore(blocks: RamBlockList, devices: readonly DeviceState[], options: RestoreOptions = {}): WorkloadGuest {
    const guest = WorkloadGuest.incoming(blocks, { ...options, writers: writerStates(devices).length });
    guest.load(devices);
    return guest;
  }

  /** Takes over the state of the devices. The memory must be there. Throws WORKLOAD_STATE_INVALID. */
  load(devices: readonly DeviceState[]): void {
    const states = writerStates(devices);
    if (states.length !== this.#registers.length) {
      throw stateInvalid(
        `The source has ${states.length} workload writers, this guest ${this.#registers.length}`,
        states.length,
      );
    }
    if (this.#virtioMem === undefined && devices.some(isVirtioMemState)) {
      throw stateInvalid('The source has a virtio-mem device, this guest has none', 0);
    }
    this.#virtioMem?.load(devices);
    const blockCount = writableBlocks(this.blocks).length;
    for (const [writer, { instance, version, body }] of states.entries()) {
      if (instance !== writer || version !== REGISTERS_VERSION) {
        throw stateInvalid(`Workload writer ${writer} has instance ${instance}, version ${version}`, instance);
      }
      const registers = this.#registers[writer]!;
      decodeRegisters(body, registers);
      if (
        registers[Register.kind]! >= Object.keys(WorkloadKind).length ||
        registers[Register.blockCount]! > blockCount
      ) {
        throw stateInvalid(`Workload writer ${writer} is not of this machine`, writer);
      }
    }
    this.#loadBalloon(devices);
  }

  #loadBalloon(devices: readonly DeviceState[]): void {
    const { balloon } = this.#shared;
    const sections = [BALLOON_SECTION, DRIVER_SECTION].map((wanted) => devices.find(({ name }) => name === wanted));
    const [device, driver] = sections;
    if (sections.some((section) => (section !== undefined) !== (balloon !== undefined))) {
      throw stateInvalid('Only one of source and destination has a balloon', devices.length);
    }
    if (balloon !== undefined && device !== undefined && driver !== undefined) {
      loadBalloon(balloon.device, decodeBalloon(device.body));
      decodeDriver(driver.body, driverRegisters(balloon.driver));
    }
  }

  /** The balloon driver's registers; undefined without one. */
  get #driver(): Float64Array | undefined {
    return this.#shared.balloon && driverRegisters(this.#shared.balloon.driver);
  }

  /** Applies a device section that comes before RAM (`MigrationDestinationOptions.earlySection`). Throws to refuse it. */
  loadEarly(section: Pick<DeviceState, 'name' | 'version'>, body: Uint8Array): void {
    if (this.#virtioMem === undefined) {
      throw new RamferryError(
        'invalid',
        'WORKLOAD_STATE_INVALID',
        `This guest has no device for section ${section.name}`,
        {
          value: section.name,
        },
      );
    }
    this.#virtioMem.loadEarly(section, body);
  }

  /** What `attachWorkloadGuest` needs, as of now; structured-cloneable. */
  share(): WorkloadShared {
    return { ...this.#shared, blocks: this.blocks.share() };
  }

  /** What makes the guest's threads wait for pages that postcopy has not brought. Default: what a guest of its kind can do. */
  missingPages(kind?: MissingPagesKind): MissingPages {
    const { barrier } = this.#shared;
    const { loads } = barrier;
    if (loads !== undefined && kind !== 'userfaultfd') {
      this.#missingPages = new LoadBarrier({ ...barrier, loads }, this.blocks);
    } else if (kind === 'load-barrier') {
      throw new RamferryError('usage', 'POSTCOPY_GUEST', 'A guest without a barrier cannot be asked to wait for pages');
    } else {
      this.#missingPages = new UserfaultfdMissingPages(this.blocks, () => this.#quit());
    }
    return this.#missingPages;
  }

  /** Starts the threads; resolves once all of them wait to be run. */
  async boot(): Promise<void> {
    if (this.#threads.length > 0) {
      throw new RamferryError('usage', 'GUEST_STARTED', 'The workload guest was started already');
    }
    const shared = this.share();
    Atomics.store(this.#control, Control.listVersion, shared.blocks.version);
    Atomics.store(this.#control, Control.published, writableBlocks(this.blocks).length);
    this.#threads = this.#registers.map((_, writer) => this.#startWriter(shared, writer));
    if (shared.balloon !== undefined) {
      for (const thread of Object.values(BalloonThread)) {
        const workerData: BalloonThreadData = { shared, thread };
        const worker = new Worker(new URL('./balloon-thread-node.js', import.meta.url), { workerData });
        this.#threads.push(this.#watch(worker, shared.writerCount + thread));
      }
    }
    if (shared.virtioMem !== undefined) {
      // The last of the dirty log's writers.
      const writer = shared.barrier.handshake.writerCount - 1;
      const workerData: VirtioMemThreadData = { shared, writer };
      const worker = new Worker(new URL('./virtio-mem-thread-node.js', import.meta.url), { workerData });
      this.#threads.push(this.#watch(worker, writer));
    }
    await Promise.all(this.#threads.map(({ parked }) => parked));
    this.#checkAlive();
  }

  /** Boots the guest and lets it run; resolves once the content that the workload starts with is there. */
  async start(): Promise<void> {
    await this.boot();
    await this.resume();
    await this.#until(
      (registers) =>
        (registers[Register.ready] === 1 || registers[Register.stepsLeft] === 0) &&
        this.#driver?.[DriverRegister.attached] !== 0,
    );
  }

  /** Lets each writer of the stopped guest do this many more steps, or fewer if it runs out of work. */
  limitSteps(steps: number): void {
    for (const registers of this.#registers) {
      registers[Register.stepsLeft] = steps;
    }
  }

  /** Changes `WorkloadOptions.rate`, running or not. */
  setRate(rate: number): void {
    checkOption('rate', rate, Number.isSafeInteger(rate) && rate >= 0);
    for (const registers of this.#registers) {
      registers[Register.rate] = rate;
    }
  }

  /** Pauses the guest; a migration that fails leaves it paused. Resolves when all writers are parked. */
  stop(): Promise<void> {
    return this.source.pause();
  }

  /**
   * Lets the guest run on. While a migration has it stopped, it does so if that fails.
   * @throws RamferryError `GUEST_MOVED` if it runs at the destination of a migration
   */
  resume(): Promise<void> {
    return this.source.unpause();
  }

  /**
   * Makes a guest that was migrated away resumable here again, where it was stopped. Whoever calls this knows that the other
   * one does not run, or wants both.
   */
  takeBack(): void {
    this.source.takeBack();
  }

  /** Resolves when the balloon driver, if there is one, waits to be asked for something. The guest must run. */
  async balloonIdle(): Promise<void> {
    const { balloon } = this.#shared;
    await this.#until(
      () => balloon === undefined || isIdle(driverRegisters(balloon.driver), configWords(balloon.device.virtio)),
    );
  }

  /** Resolves when every writer has done the number of steps it was created with, and is parked. */
  async finished(): Promise<void> {
    await this.#until((registers) => registers[Register.stepsLeft] === 0);
  }

  /** Hot-plugs a block of memory, running or not; the workload extends to it. */
  async plug(bytes: number): Promise<RamBlock> {
    const block = plugBlock(this.blocks, bytes);
    const shared = this.blocks.share();
    for (const { port } of this.#threads) {
      port?.postMessage(shared);
    }
    Atomics.store(this.#control, Control.listVersion, shared.version);
    // Sleepers too are to take over the list now. A stopped guest's writers do before their next step.
    Atomics.notify(this.#control, Control.run);
    await this.#until(
      (_, writer) =>
        !this.source.isRunning() || Atomics.load(this.#control, Control.takenOver + writer) >= shared.version,
    );
    Atomics.store(this.#control, Control.published, writableBlocks(this.blocks).length);
    return block;
  }

  /** Asks the guest to plug or unplug memory until it has so many bytes of the virtio-mem device. Running or not. */
  requestVirtioMem(bytes: number): void {
    const machine = this.#virtioMem;
    checkOption(
      'virtioMem.requestedBytes',
      bytes,
      machine !== undefined && bytes >= 0 && bytes <= machine.region.usedLength && bytes % machine.blockBytes === 0,
    );
    machine!.wantedBytes = bytes;
    Atomics.notify(this.#control, Control.run);
  }

  /** What became of the memory device; undefined without one. */
  get virtioMem(): VirtioMemFigures | undefined {
    const machine = this.#virtioMem;
    const answers = (index: number): number => machine!.registers[VirtioMemRegister.answers + index]!;
    return (
      machine && {
        block: machine.region,
        requestedBytes: machine.wantedBytes,
        pluggedBytes: machine.device.pluggedSize,
        pagesWritten: machine.registers[VirtioMemRegister.written]!,
        pagesChecked: machine.registers[VirtioMemRegister.checked]!,
        bad: machine.registers[VirtioMemRegister.bad]!,
        answers: { ack: answers(0), nack: answers(1), busy: answers(2), error: answers(3) },
      }
    );
  }

  /** Resolves once as much is plugged as is requested, and all of it has been written. */
  async virtioMemSettled(): Promise<void> {
    while (this.#virtioMem?.isSettled === false) {
      this.#checkAlive();
      await sleep(POLL_MS);
    }
  }

  counters(): WorkloadCounters {
    const sum = (register: number): number => this.#registers.reduce((total, of) => total + of[register]!, 0);
    return {
      pagesWritten: sum(Register.written),
      pagesChecked: sum(Register.checked),
      bad: sum(Register.bad) + (this.#driver?.[DriverRegister.bad] ?? 0),
      blocksReported: this.#driver?.[DriverRegister.reported] ?? 0,
      blocksTakenBack: sum(Register.blocksTakenBack),
    };
  }

  /** Checks all of memory. The guest must be stopped. */
  verify(): Verification {
    if (this.source.isRunning()) {
      throw new RamferryError('usage', 'GUEST_RUNNING', 'Only a stopped guest can be verified as a whole');
    }
    if (this.#shared.barrier.loads !== undefined && areMissingPages(this.#shared.barrier.loads)) {
      throw new RamferryError(
        'usage',
        'GUEST_INCOMPLETE',
        'Only a guest whose memory has come can be verified as a whole',
      );
    }
    return verifyMemory(this.blocks, this.#registers, this.#virtioMem);
  }

  /**
   * SHA-256 of each block by its name, free pages as zero where a balloon may have reported them: then they are not the
   * same after a migration. The guest must be stopped.
   */
  digests(): Record<string, string> {
    return this.#shared.balloon === undefined
      ? digestBlocks(this.blocks)
      : digestPagesInUse(this.blocks, this.#registers.length, this.#registers[0]![Register.blockCount]!);
  }

  #quit(): void {
    this.#runWord.quit();
  }

  /** Ends the threads. The memory stays. */
  async shutdown(): Promise<void> {
    this.#quit();
    this.#missingPages?.abandon();
    const { balloon } = this.#shared;
    if (balloon !== undefined) {
      // Its threads sleep on words of their own.
      const registers = new Int32Array(balloon.device.virtio.registers);
      interruptDriver(registers, Interrupt.configuration);
      ringDoorbell(registers);
    }
    await Promise.all(this.#threads.map(({ exited }) => exited));
  }

  #startWriter(shared: WorkloadShared, writer: number): GuestThread {
    const { port1: port, port2 } = new MessageChannel();
    const workerData: WriterThreadData = { shared, writer, port: port2 };
    const worker = new Worker(new URL('./writer-thread-node.js', import.meta.url), {
      workerData,
      transferList: [port2],
    });
    const thread = this.#watch(worker, writer);
    thread.exited.then(() => port.close());
    return { ...thread, port };
  }

  /** `index`: of the thread among the dirty log's writers. */
  #watch(worker: Worker, index: number): GuestThread {
    const exited = new Promise<void>((resolve) => {
      worker.on('error', (error) => {
        this.#deathCause ??= error;
      });
      worker.on('exit', () => {
        if (this.#runWord.value !== RunState.quit) {
          // Whoever waits for this thread finds it parked, and then that it is dead (TS-34).
          Atomics.store(this.#control, Control.died, index + 1);
          releaseWriter(this.#shared.barrier.handshake, index);
        }
        resolve();
      });
    });
    const parked = new Promise<void>((resolve) => worker.once('message', () => resolve()));
    return { parked: Promise.race([parked, exited]), exited };
  }

  /** Polls until `done` holds for every writer. Throws GUEST_THREAD_DIED. */
  async #until(done: (registers: Float64Array, writer: number) => boolean): Promise<void> {
    while (!this.#registers.every(done)) {
      this.#checkAlive();
      await sleep(POLL_MS);
    }
  }

  #checkAlive(): void {
    this.source.checkAlive(this.#deathCause);
  }
}

/** The sections of the writers, by their number. Throws WORKLOAD_STATE_INVALID. */
const writerStates = (devices: readonly DeviceState[]): DeviceState[] => {
  const states = devices.filter(({ name }) => name === WRITER_SECTION).sort((a, b) => a.instance - b.instance);
  if (states.length === 0 || states.length > WRITERS_MAX) {
    throw stateInvalid(`The device state has ${states.length} workload writers`, states.length);
  }
  return states;
};

const checkOption = (name: string, value: number, valid: boolean): void => {
  if (!valid) {
    throw new RamferryError('usage', 'WORKLOAD_OPTIONS', `${value} is no valid value of workload option ${name}`, {
      value,
    });
  }
};

const stateInvalid = (message: string, value: number): RamferryError =>
  new RamferryError('invalid', 'WORKLOAD_STATE_INVALID', message, { value });
