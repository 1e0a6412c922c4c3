// One writer of the workload guest: the machine that the programs run on. It owns a region of every writable block and
// can write, free and check pages there. Every page that it writes verifies itself: the content follows from
// the page's place and its generation, so that a lost, stale, torn or misplaced page shows as bad.
//
// All state is in the registers and in guest RAM. A writer that is stopped between two steps can therefore be saved,
// and another one go on from there, on other hardware, with another layout of segments.

import type { StoreBarrierWriter } from '../../dirty-log/index.js';
import type { RamBlock } from '../../memory/index.js';
import { programs } from './programs.js';
import { Region } from './region.js';
import { Register } from './registers.js';

export interface WriterOptions {
  readonly writer: number;
  readonly writerCount: number;
  readonly registers: Float64Array;
  /** Undefined: stores are not marked. Only for measuring what marks cost. */
  readonly barrier: StoreBarrierWriter | undefined;
}

export class WorkloadWriter {
  readonly registers: Float64Array;
  readonly #options: WriterOptions;
  readonly #barrier: StoreBarrierWriter | undefined;
  readonly #regions: Region[] = [];
  /** The pages of region r that are worked on are the ordinals from #starts[r] up to #starts[r + 1]. */
  readonly #starts: number[] = [0];
  // What #locate found.
  #region!: Region;
  #index = 0;

  constructor(options: WriterOptions) {
    this.#options = options;
    this.#barrier = options.barrier;
    this.registers = options.registers;
  }

  /** Takes in the blocks that the writer does not work on yet. `writable`: all writable blocks, in the order of plugging. */
  takeIn(writable: readonly RamBlock[]): void {
    const { writer, writerCount } = this.#options;
    for (const block of writable.slice(this.#regions.length)) {
      const region = new Region(block, writer, writerCount);
      this.#regions.push(region);
      this.#starts.push(this.pageCount + Math.ceil(region.dataPages * this.registers[Register.workingFraction]!));
    }
    this.registers[Register.blockCount] = this.#regions.length;
  }

  /** Pages that the writer works on, numbered from 0: its ordinals. */
  get pageCount(): number {
    return this.#starts.at(-1)!;
  }

  /** Runs the program until it has written a page or done work of that size. False if there is nothing to do at present. */
  step(): boolean {
    return programs[this.registers[Register.kind]!]!(this);
  }

  /** Checks the next `count` pages in turn, so that a page that is never rewritten is noticed too. */
  checkNext(count: number): void {
    const { registers, pageCount } = this;
    for (let i = 0; i < count && pageCount > 0; i += 1) {
      const ordinal = registers[Register.checkCursor]! % pageCount;
      registers[Register.checkCursor] = ordinal + 1;
      this.check(ordinal);
    }
  }

  /** Rewrites a page with a new generation, after checking what it held. */
  write(ordinal: number): void {
    const { registers } = this;
    const old = this.check(ordinal);
    // 32 bits; 0 means free.
    const generation = (registers[Register.generation]! % 0xffffffff) + 1;
    registers[Register.generation] = generation;
    const region = this.#region;
    const index = this.#index;
    region.fill(index, generation);
    this.#barrier?.mark(region.block, region.dataPage(index));
    this.#setGeneration(region, index, old, generation);
    registers[Register.written]! += 1;
  }

  /** Frees a page; its content stays as it is, and no one cares any more. */
  free(ordinal: number): void {
    this.#locate(ordinal);
    this.#setGeneration(this.#region, this.#index, this.#region.generation(this.#index), 0);
  }

  isFree(ordinal: number): boolean {
    this.#locate(ordinal);
    return this.#region.generation(this.#index) === 0;
  }

  /** Checks a page unless it is free; returns its generation. */
  check(ordinal: number): number {
    this.#locate(ordinal);
    const generation = this.#region.generation(this.#index);
    if (generation !== 0) {
      this.registers[Register.checked]! += 1;
      if (!this.#region.check(this.#index, generation)) {
        this.registers[Register.bad]! += 1;
      }
    }
    return generation;
  }

  /** A whole number from 0 below `limit`: xorshift32, whose state is a register. */
  random(limit: number): number {
    let state = this.registers[Register.random]!;
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    this.registers[Register.random] = state >>> 0;
    return Math.floor(((state >>> 0) / 2 ** 32) * limit);
  }

  #setGeneration(region: Region, index: number, old: number, generation: number): void {
    region.setGeneration(index, generation);
    this.#barrier?.mark(region.block, region.tablePage(index));
    this.registers[Register.generationSum]! += generation - old;
  }

  #locate(ordinal: number): void {
    let low = 0;
    let high = this.#regions.length;
    while (high - low > 1) {
      const middle = (low + high) >>> 1;
      if (this.#starts[middle]! <= ordinal) {
        low = middle;
      } else {
        high = middle;
      }
    }
    this.#region = this.#regions[low]!;
    this.#index = ordinal - this.#starts[low]!;
  }
}
