// What the threads of a workload guest share: a control block through which it is run, stopped and throttled without
// anybody's event loop, and the registers of the writers.

import type { BalloonShared } from '../../device/index.js';
import type { StoreBarrierShared } from '../../dirty-log/index.js';
import type { SharedRamBlockList } from '../../memory/index.js';
import { REGISTER_COUNT } from './registers.js';
import type { VirtioMemShared } from './virtio-mem-machine.js';

/** Words of the control block. */
export const Control = {
  /** Who holds the guest (run-word.ts); all its threads watch this word, and sleep on it. */
  run: 0,
  /** Part of the time that writers sleep, in percent, 0 to 99. */
  throttle: 1,
  /** Version of the newest block list that was posted to the writers. */
  listVersion: 2,
  /** How many writable blocks writers may use; a block counts once every writer has its map (TS-5). */
  published: 3,
  /** One more than the number of a writer whose thread died; 0 if none did. */
  died: 4,
  /** From here on, for each writer: the version of the block list that it has taken over. After them, its allocators' lock. */
  takenOver: 8,
} as const;

/** A bit of the run word for each who may hold the guest; it runs while nobody does. */
export const RunHold = {
  /** Its owner has paused it, or has not started it yet. */
  owner: 1,
  /** A migration keeps it stopped, for the switchover or the instant of a snapshot. */
  migration: 2,
  /** It runs elsewhere: this copy is stale. */
  moved: 4,
} as const;

/** Word of the control block that is the lock of a writer's allocators. */
export const lockWord = (writerCount: number, writer: number): number => Control.takenOver + writerCount + writer;

/** How stores are marked: by a store barrier, or not at all, which only measures what marks cost. */
export type BarrierChoice = StoreBarrierShared['variant'] | 'none';

/** Everything another thread needs of the guest; structured-cloneable. */
export interface WorkloadShared {
  readonly barrierChoice: BarrierChoice;
  readonly barrier: StoreBarrierShared;
  readonly control: SharedArrayBuffer;
  readonly registers: SharedArrayBuffer;
  readonly writerCount: number;
  readonly blocks: SharedRamBlockList;
  /** Undefined: the machine has no balloon. */
  readonly balloon: SharedBalloon | undefined;
  /** Of a guest with a virtio-mem device. */
  readonly virtioMem: VirtioMemShared | undefined;
}

/** The balloon of a guest: its device, and the registers of the driver's thread. */
export interface SharedBalloon {
  readonly device: BalloonShared;
  readonly driver: SharedArrayBuffer;
}

/** Threads that store to guest RAM besides the writers: the dirty log's writers after those. */
export const BalloonThread = { driver: 0, device: 1 } as const;
export const BALLOON_THREADS = 2;

/** The control block of a guest that its owner has not started yet. */
export const allocateControl = (writerCount: number): SharedArrayBuffer => {
  const buffer = new SharedArrayBuffer(lockWord(writerCount, writerCount) * 4);
  new Int32Array(buffer)[Control.run] = RunHold.owner;
  return buffer;
};

/** Writers' registers lie cache lines apart: 26 registers are three and a quarter lines, the distance is four. */
const REGISTERS_DISTANCE = 32;

export const allocateRegisters = (writerCount: number): SharedArrayBuffer =>
  new SharedArrayBuffer(writerCount * REGISTERS_DISTANCE * 8);

export const registersOf = (registers: SharedArrayBuffer, writer: number): Float64Array =>
  new Float64Array(registers, writer * REGISTERS_DISTANCE * 8, REGISTER_COUNT);
