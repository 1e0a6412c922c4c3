// The registers of a workload writer, the only state it has outside of guest RAM, like those of a vCPU. They lie in shared
// memory, so that the engine's thread can save a stopped writer without asking it, and they are its device state.

import { RamferryError } from '../../memory/errors.js';

/** Index of each register. Counters and positions are whole numbers, kept as float64 because they pass 2^32. */
export const Register = {
  // What to run.
  kind: 0,
  /** Bytes per second, 0 for as fast as possible. */
  rate: 1,
  /** Part of its pages that the writer works on, above 0 up to 1. */
  workingFraction: 2,
  /** Steps until the writer halts; Infinity if never. */
  stepsLeft: 3,
  // Where it is.
  random: 4,
  /** Last generation given to a page. */
  generation: 5,
  /** Sum of all generations in the tables: what a table that went back in time together with its pages cannot fake. */
  generationSum: 6,
  /** Writable blocks that the writer has taken in. */
  blockCount: 7,
  /** 1 once the content that the workload starts with is written. */
  ready: 8,
  checkCursor: 9,
  phase: 10,
  position: 11,
  jobNumber: 12,
  /** Pages that the phase still has to write. */
  pagesLeft: 13,
  /** Blocks of the running process. */
  processLength: 14,
  /** Sum of the `WorkloadOption` bits. */
  options: 15,
  // What it has done.
  written: 16,
  checked: 17,
  bad: 18,
  // Its memory.
  /** Pages that it has of its allocators: what they must say as well. */
  pagesInUse: 19,
  /** Where its lists of blocks are, and the most entries of each; 0 without lists. */
  listFrame: 20,
  listCapacity: 21,
  /** Ring of the file cache: index of the oldest entry, number of entries. */
  cacheFirst: 22,
  cacheLength: 23,
  /** Blocks that it took back from the balloon because memory was short. */
  blocksTakenBack: 24,
  /** Pages, from the first one on, of which those that were free were filled with garbage. */
  scribbled: 25,
} as const;

export const REGISTER_COUNT = 26;

/** Version of the device section. */
export const REGISTERS_VERSION = 2;

/** What a guest is like, besides what it does. */
export const WorkloadOption = {
  /** Pages are zeroed when they are taken. */
  initOnAlloc: 1,
  /** Free pages hold a poison. */
  pagePoison: 2,
  /** Free memory is full of garbage from the beginning. */
  garbage: 4,
} as const;

/** Whether a sum of `WorkloadOption` bits has that of an option. */
export const hasOption = (options: number, option: keyof typeof WorkloadOption): boolean =>
  (options & WorkloadOption[option]) !== 0;

/** Device state: the registers as big-endian float64. */
export function encodeRegisters(registers: Float64Array): Uint8Array {
  const body = new Uint8Array(REGISTER_COUNT * 8);
  const view = new DataView(body.buffer);
  for (let i = 0; i < REGISTER_COUNT; i += 1) {
    view.setFloat64(i * 8, registers[i]!);
  }
  return body;
}

/** Loads device state into registers. Throws WORKLOAD_STATE_INVALID for what `encodeRegisters` cannot have written. */
export function decodeRegisters(body: Uint8Array, registers: Float64Array): void {
  if (body.length !== REGISTER_COUNT * 8) {
    throw stateInvalid(`${body.length} bytes, not ${REGISTER_COUNT * 8}`, body.length);
  }
  const view = new DataView(body.buffer, body.byteOffset, body.length);
  for (let i = 0; i < REGISTER_COUNT; i += 1) {
    const value = view.getFloat64(i * 8);
    const valid =
      i === Register.workingFraction
        ? value > 0 && value <= 1
        : (Number.isSafeInteger(value) && value >= 0) ||
          (i === Register.stepsLeft && value === Number.POSITIVE_INFINITY);
    if (!valid) {
      throw stateInvalid(`${value} in register ${i}`, String(value));
    }
    registers[i] = value;
  }
}

const stateInvalid = (what: string, value: number | string): RamferryError =>
  new RamferryError('invalid', 'WORKLOAD_STATE_INVALID', `The state of a workload writer has ${what}`, { value });

/** The workloads by name; the number is what a writer's `kind` register holds. */
export const WorkloadKind = { idle: 0, churn: 1, fillfree: 2, build: 3 } as const;
export type WorkloadKind = keyof typeof WorkloadKind;
