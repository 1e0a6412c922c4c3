// What the guest does with the memory that is plugged in: as soon as a device block is there every page of it is written, then
// random pages are rewritten, and all are checked in turn. Every page verifies itself, as those of the writers do.

import type { StoreBarrierWriter } from '../../dirty-log/index.js';
import { GENERATION_MAX } from './region.js';
import { BlockUse, type VirtioMemMachine } from './virtio-mem-machine.js';
import { VirtioMemRegister } from './virtio-mem-registers.js';

export class VirtioMemZone {
  readonly #machine: VirtioMemMachine;
  readonly #registers: Float64Array;
  readonly #barrier: StoreBarrierWriter | undefined;
  /** Device blocks that are used, in any order; what the states in guest RAM say. */
  readonly #used: number[] = [];

  constructor(machine: VirtioMemMachine, barrier: StoreBarrierWriter | undefined) {
    this.#machine = machine;
    this.#registers = machine.registers;
    this.#barrier = barrier;
    for (let block = 0; block < machine.blockCount; block += 1) {
      if (machine.useOf(block) === BlockUse.used) {
        this.#used.push(block);
      }
    }
  }

  /** Prepares or fills a page of a block that is new; false if there is none. */
  fill(): boolean {
    const registers = this.#registers;
    const filling = registers[VirtioMemRegister.filling]! - 1;
    if (filling < 0) {
      return this.#begin();
    }
    const index = registers[VirtioMemRegister.fillIndex]!;
    if (index === this.#machine.blockRegion(filling).dataPages) {
      registers[VirtioMemRegister.filling] = 0;
      return true;
    }
    this.#write(filling, index);
    registers[VirtioMemRegister.fillIndex] = index + 1;
    return true;
  }

  /** Rewrites a page; false if there is no memory. */
  churn(): boolean {
    if (this.#used.length === 0) {
      return false;
    }
    const block = this.#used[this.#random(this.#used.length)]!;
    this.#write(block, this.#random(this.#machine.blockRegion(block).dataPages));
    return true;
  }

  checkNext(): void {
    const registers = this.#registers;
    if (this.#used.length === 0) {
      return;
    }
    const block = this.#used[registers[VirtioMemRegister.checkBlock]! % this.#used.length]!;
    const index = registers[VirtioMemRegister.checkIndex]!;
    if (index >= this.#machine.blockRegion(block).dataPages) {
      registers[VirtioMemRegister.checkBlock]! += 1;
      registers[VirtioMemRegister.checkIndex] = 0;
      return;
    }
    this.#check(block, index);
    registers[VirtioMemRegister.checkIndex] = index + 1;
  }

  /** The content of a block is needed no more. */
  giveUp(block: number): void {
    const registers = this.#registers;
    const region = this.#machine.blockRegion(block);
    for (let index = 0; index < region.dataPages; index += 1) {
      registers[VirtioMemRegister.generationSum]! -= region.generation(index);
    }
    if (registers[VirtioMemRegister.filling] === block + 1) {
      registers[VirtioMemRegister.filling] = 0;
    }
    this.#used.splice(this.#used.indexOf(block), 1);
  }

  /** Clears the table of the first block that is plugged and has none: what it holds is undefined. */
  #begin(): boolean {
    const machine = this.#machine;
    // In order from the last one on, so that a pass over many blocks is looked through once.
    const block = this.#nextPlugged();
    if (block === undefined) {
      return false;
    }
    const region = machine.blockRegion(block);
    for (let index = 0; index < region.dataPages; index += 1) {
      this.#setGeneration(block, index, 0);
    }
    machine.setUse(block, BlockUse.used);
    this.#used.push(block);
    this.#registers[VirtioMemRegister.filling] = block + 1;
    this.#registers[VirtioMemRegister.fillIndex] = 0;
    return true;
  }

  #nextPlugged(): number | undefined {
    const { blockCount, device, blockBytes } = this.#machine;
    if (device.pluggedSize === this.#used.length * blockBytes) {
      return undefined;
    }
    for (let block = 0; block < blockCount; block += 1) {
      if (this.#machine.useOf(block) === BlockUse.plugged) {
        return block;
      }
    }
    return undefined;
  }

  #write(block: number, index: number): void {
    const registers = this.#registers;
    const old = this.#check(block, index);
    const generation = (registers[VirtioMemRegister.generation]! % GENERATION_MAX) + 1;
    registers[VirtioMemRegister.generation] = generation;
    const region = this.#machine.blockRegion(block);
    const page = region.dataPage(index);
    this.#barrier?.beforeStore(region.block, page);
    region.fill(index, generation);
    this.#barrier?.mark(region.block, page);
    this.#setGeneration(block, index, generation);
    registers[VirtioMemRegister.generationSum]! += generation - old;
    registers[VirtioMemRegister.written]! += 1;
  }

  #check(block: number, index: number): number {
    const registers = this.#registers;
    const region = this.#machine.blockRegion(block);
    const generation = region.generation(index);
    if (generation !== 0) {
      registers[VirtioMemRegister.checked]! += 1;
      registers[VirtioMemRegister.bad]! += region.check(index, generation) ? 0 : 1;
    }
    return generation;
  }

  #setGeneration(block: number, index: number, generation: number): void {
    const region = this.#machine.blockRegion(block);
    const page = region.tablePage(index);
    this.#barrier?.beforeStore(region.block, page);
    region.setGeneration(index, generation);
    this.#barrier?.mark(region.block, page);
  }

  /** A whole number from 0 below `limit`: xorshift32, whose state is a register. */
  #random(limit: number): number {
    let state = this.#registers[VirtioMemRegister.random]! || 1;
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    this.#registers[VirtioMemRegister.random] = state >>> 0;
    return Math.floor(((state >>> 0) / 2 ** 32) * limit);
  }
}
