// The whole check of a stopped workload guest: every live page, every generation table, the read-only block.

import { GUEST_PAGE_SIZE } from '../../../kernels/kernels.js';
import type { RamBlock, RamBlockList } from '../../memory/index.js';
import { ROM_BLOCK, ROM_GENERATION, writableBlocks } from './machine.js';
import { describePage, pageKey } from './pattern.js';
import { Region } from './region.js';
import { Register } from './registers.js';

/** A page that does not hold what was last stored to it. */
export interface BadPage {
  readonly block: string;
  readonly page: number;
  readonly expectedGeneration: number;
  /** What it holds instead, in words. */
  readonly found: string;
}

export interface Verification {
  /** Pages whose content was compared, and how many of them were wrong. */
  readonly checked: number;
  readonly bad: number;
  /** The first wrong pages, at most 16. */
  readonly badPages: readonly BadPage[];
  /**
   * Writers whose generation tables do not add up to what the writer remembers: pages went back in time together with their
   * table.
   */
  readonly staleTables: readonly number[];
}

const BAD_PAGES_LISTED = 16;

/** `registers`: those of each writer. The guest must be stopped. */
export function verifyMemory(blocks: RamBlockList, registers: readonly Float64Array[]): Verification {
  let [checked, bad] = [0, 0];
  const badPages: BadPage[] = [];
  const staleTables: number[] = [];
  const count = (good: boolean, block: RamBlock, page: number, expectedGeneration: number): void => {
    checked += 1;
    if (!good) {
      bad += 1;
      if (badPages.length < BAD_PAGES_LISTED) {
        const bytes = block.read(page * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
        const found = describePage(bytes, block, page, blocks.blocks);
        badPages.push({ block: block.name, page, expectedGeneration, found });
      }
    }
  };

  for (const [writer, registersOfWriter] of registers.entries()) {
    let sum = 0;
    for (const block of writableBlocks(blocks).slice(0, registersOfWriter[Register.blockCount])) {
      const region = new Region(block, writer, registers.length);
      for (let index = 0; index < region.dataPages; index += 1) {
        const generation = region.generation(index);
        sum += generation;
        if (generation !== 0) {
          count(region.check(index, generation), block, region.dataPage(index), generation);
        }
      }
    }
    if (sum !== registersOfWriter[Register.generationSum]) {
      staleTables.push(writer);
    }
  }
  const rom = blocks.find(ROM_BLOCK);
  rom?.forEachRange(0, rom.usedPages, (extent, first, pages) => {
    for (let page: number = first; page < first + pages; page += 1) {
      const address = extent.address + (page - extent.firstPage) * GUEST_PAGE_SIZE;
      const good = extent.segment.kernels.checkPattern(address, pageKey(rom, page), ROM_GENERATION) === 1;
      count(good, rom, page, ROM_GENERATION);
    }
  });
  return { checked, bad, badPages, staleTables };
}
