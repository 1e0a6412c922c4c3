// One writer of the workload guest: the machine that the programs run on. It owns a region of every writable block, where
// it can take, write, check and free pages. Every page that it writes verifies itself: the content follows from the
// page's place and its generation, so that a lost, stale, torn or misplaced page shows as bad.
//
//   frames    all data pages of all regions, in a row:   | region 0           | region 1      | …
//   ordinals  the working set, a part of each region:    | 0 1 2 … n-1 |      | n … |
//
// All state is in the registers and in guest RAM. A writer that is stopped between two steps can therefore be saved,
// and another one go on from there, on other hardware, with another layout of segments.

import type { StoreBarrierWriter } from '../../dirty-log/index.js';
import type { RamBlock } from '../../memory/index.js';
import { BlockLists, capacityOfLists, orderOfLists } from './block-lists.js';
import { GuestWords } from './guest-words.js';
import type { Mutex } from './mutex.js';
import { PageAllocator } from './page-allocator.js';
import { GENERATION_MAX, hasContent, PageState, Region } from './region.js';
import { hasOption, Register, WorkloadKind, type WorkloadOption } from './registers.js';

export interface WriterOptions {
  readonly writer: number;
  readonly writerCount: number;
  readonly registers: Float64Array;
  /** Undefined: stores are not marked. Only for measuring what marks cost. */
  readonly barrier: StoreBarrierWriter | undefined;
  /** Lock of the writer's allocators. */
  readonly mutex: Mutex;
}

/** Frames that are passed over, at most, to find one to check. */
const CHECK_SEARCH = 64;

export class WorkloadWriter {
  readonly registers: Float64Array;
  readonly #options: WriterOptions;
  readonly #barrier: StoreBarrierWriter | undefined;
  readonly #regions: Region[] = [];
  readonly #allocators: PageAllocator[] = [];
  /** Frames of region r are those from #frames[r] up to #frames[r + 1], its ordinals those from #ordinals[r]. */
  readonly #frames: number[] = [0];
  readonly #ordinals: number[] = [0];
  #lists: BlockLists | undefined;
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
    const { registers } = this;
    const { writer, writerCount, mutex } = this.#options;
    const options = { initOnAlloc: this.#has('initOnAlloc'), pagePoison: this.#has('pagePoison') };
    for (const block of writable.slice(this.#regions.length)) {
      const region = new Region(block, writer, writerCount, this.#barrier);
      const working = Math.ceil(region.dataPages * registers[Register.workingFraction]!);
      const allocator = new PageAllocator(region, options, mutex, this.#barrier);
      // Otherwise the guest had it before it came here.
      const isNew = this.#regions.length >= registers[Register.blockCount]!;
      if (isNew && region.dataPages > 0) {
        // A build takes what it works on when it needs it, the others have it from the beginning.
        const reserved = registers[Register.kind] === WorkloadKind.build ? 0 : working;
        allocator.initialize(reserved);
        registers[Register.pagesInUse]! += reserved;
      }
      this.#regions.push(region);
      this.#allocators.push(allocator);
      this.#frames.push(this.frameCount + region.dataPages);
      this.#ordinals.push(this.pageCount + working);
    }
    registers[Register.blockCount] = this.#regions.length;
  }

  /** Pages of the working set, numbered from 0: its ordinals. */
  get pageCount(): number {
    return this.#ordinals.at(-1)!;
  }

  /** All pages of the writer. */
  get frameCount(): number {
    return this.#frames.at(-1)!;
  }

  /** The page number `ordinal` of the working set. */
  frameOf(ordinal: number): number {
    const region = findPart(this.#ordinals, ordinal);
    return this.#frames[region]! + (ordinal - this.#ordinals[region]!);
  }

  /** Whether a page is in the part of its region that is the working set. */
  isWorking(frame: number): boolean {
    const region = findPart(this.#frames, frame);
    return frame - this.#frames[region]! < this.#ordinals[region + 1]! - this.#ordinals[region]!;
  }

  #has(option: keyof typeof WorkloadOption): boolean {
    return hasOption(this.registers[Register.options]!, option);
  }

  /** Whether free memory is to be full of garbage. Where it is to hold a poison it cannot be. */
  get wantsGarbage(): boolean {
    return this.#has('garbage') && !this.#has('pagePoison');
  }

  /** Checks the next `count` pages in turn, so that a page that is never rewritten is noticed too. */
  checkNext(count: number): void {
    const { registers, frameCount } = this;
    let [checks, looks] = [count, count * CHECK_SEARCH];
    while (checks > 0 && looks > 0 && frameCount > 0) {
      const frame = registers[Register.checkCursor]! % frameCount;
      registers[Register.checkCursor] = frame + 1;
      checks -= hasContent(this.check(frame)) ? 1 : 0;
      looks -= 1;
    }
  }

  /** Rewrites a page with a new generation, after checking what it held. */
  write(frame: number): void {
    const { registers } = this;
    const old = this.check(frame);
    const generation = (registers[Register.generation]! % GENERATION_MAX) + 1;
    registers[Register.generation] = generation;
    const region = this.#region;
    const index = this.#index;
    this.#barrier?.beforeStore(region.block, region.dataPage(index));
    region.fill(index, generation);
    this.#barrier?.mark(region.block, region.dataPage(index));
    this.#setGeneration(region, index, old, generation);
    registers[Register.written]! += 1;
  }

  /** Fills a page that is free with what nobody will ask for. */
  scribble(frame: number): void {
    this.#locate(frame);
    const { block } = this.#region;
    const page = this.#region.dataPage(this.#index);
    this.#barrier?.beforeStore(block, page);
    this.#region.fill(this.#index, 1);
    this.#barrier?.mark(block, page);
  }

  /**
   * Takes 2^order free pages and returns the first one; undefined if there are none, not even what the balloon could give
   * back, or if the working set is used up.
   */
  allocate(order: number): number | undefined {
    const { registers } = this;
    if (registers[Register.pagesInUse]! + 2 ** order > this.pageCount) {
      return undefined;
    }
    for (;;) {
      for (const [r, allocator] of this.#allocators.entries()) {
        const first = this.#regions[r]!.dataPages > 0 ? allocator.allocate(order) : undefined;
        if (first !== undefined) {
          registers[Register.bad]! += allocator.spoiled;
          allocator.spoiled = 0;
          registers[Register.pagesInUse]! += 2 ** order;
          const state = this.#has('initOnAlloc') ? PageState.zeroed : PageState.raw;
          for (let index = first; index < first + 2 ** order; index += 1) {
            this.#setGeneration(this.#regions[r]!, index, PageState.unwritten, state);
          }
          return this.#frames[r]! + first;
        }
      }
      if (!this.#allocators.some((allocator, r) => this.#regions[r]!.dataPages > 0 && allocator.takeBack())) {
        return undefined;
      }
      registers[Register.blocksTakenBack]! += 1;
    }
  }

  /** Gives back `count` pages in a row, of one region. Their content stays as it is, and no one cares any more. */
  free(frame: number, count: number): void {
    this.#locate(frame);
    const region = this.#region;
    const first = this.#index;
    for (let index = first; index < first + count; index += 1) {
      this.#setGeneration(region, index, region.generation(index), PageState.unwritten);
    }
    this.#allocators[this.#regions.indexOf(region)]!.free(first, count);
    this.registers[Register.pagesInUse]! -= count;
  }

  /** Takes pages for the lists of blocks, with room for so many entries if possible. False if there are none. */
  createLists(entries: number): boolean {
    const order = orderOfLists(entries);
    const first = this.allocate(order);
    if (first === undefined) {
      return false;
    }
    for (let frame = first; frame < first + 2 ** order; frame += 1) {
      this.#locate(frame);
      this.#setGeneration(this.#region, this.#index, this.#region.generation(this.#index), PageState.plain);
    }
    this.registers[Register.listFrame] = first;
    this.registers[Register.listCapacity] = capacityOfLists(order);
    return true;
  }

  /** The lists of blocks, once there are any. */
  get lists(): BlockLists | undefined {
    const capacity = this.registers[Register.listCapacity]!;
    if (this.#lists === undefined && capacity > 0) {
      this.#locate(this.registers[Register.listFrame]!);
      const words = new GuestWords(this.#region.block, this.#region.dataPage(this.#index), this.#barrier);
      this.#lists = new BlockLists(words, capacity, this.registers);
    }
    return this.#lists;
  }

  /** Checks a page if it has a content; returns its generation or `PageState`. */
  check(frame: number): number {
    this.#locate(frame);
    const generation = this.#region.generation(this.#index);
    if (hasContent(generation)) {
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
    this.#barrier?.beforeStore(region.block, region.tablePage(index));
    region.setGeneration(index, generation);
    this.#barrier?.mark(region.block, region.tablePage(index));
    this.registers[Register.generationSum]! += generation - old;
  }

  #locate(frame: number): void {
    const region = findPart(this.#frames, frame);
    this.#region = this.#regions[region]!;
    this.#index = frame - this.#frames[region]!;
  }
}

/** The last part that starts at `number` or before. */
const findPart = (starts: readonly number[], number: number): number => {
  let low = 0;
  let high = starts.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >>> 1;
    if (starts[middle]! <= number) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
};
