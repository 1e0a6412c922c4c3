// The whole check of a stopped workload guest: every page that is in use, every free page if free pages are poisoned, every
// generation table, every allocator, the read-only block.

import { GUEST_PAGE_SIZE } from '../../../kernels/kernels.js';
import type { RamBlock, RamBlockList } from '../../memory/index.js';
import { ROM_BLOCK, ROM_GENERATION, writableBlocks } from './machine.js';
import { Mutex } from './mutex.js';
import { PageAllocator, PageUse } from './page-allocator.js';
import { countUnpoisoned } from './page-content.js';
import { describePage, pageKey } from './pattern.js';
import { hasContent, PageState, Region } from './region.js';
import { hasOption, Register } from './registers.js';
import type { VirtioMemMachine } from './virtio-mem-machine.js';

/** A page that does not hold what was last stored to it. */
export interface BadPage {
  readonly block: string;
  readonly page: number;
  /** 0 for a free page, which should be poisoned. */
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
   * Writers whose generation tables or page allocators do not add up to what the writer remembers: pages went back in time
   * together with them. The virtio-mem driver has the number after theirs.
   */
  readonly staleTables: readonly number[];
}

const BAD_PAGES_LISTED = 16;

/** `registers`: those of each writer. The guest must be stopped. */
export function verifyMemory(
  blocks: RamBlockList,
  registers: readonly Float64Array[],
  virtioMem?: VirtioMemMachine,
): Verification {
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
    let [sum, pagesInUse, contradictions] = [0, 0, 0];
    const poisoned = hasOption(registersOfWriter[Register.options]!, 'pagePoison');
    for (const block of writableBlocks(blocks).slice(0, registersOfWriter[Register.blockCount])) {
      const region = new Region(block, writer, registers.length);
      const uses = usesOf(region);
      contradictions += uses === undefined ? 1 : 0;
      for (let index = 0; index < region.dataPages; index += 1) {
        const generation = region.generation(index);
        const use = uses?.[index] ?? PageUse.inUse;
        sum += generation;
        if (use === PageUse.inUse) {
          pagesInUse += 1;
        } else if (generation !== PageState.unwritten) {
          contradictions += 1;
        }
        if (hasContent(generation)) {
          count(region.check(index, generation), block, region.dataPage(index), generation);
        } else if (poisoned && use === PageUse.free) {
          count(countUnpoisoned(block, region.dataPage(index), 1) === 0, block, region.dataPage(index), generation);
        }
      }
    }
    const adding =
      sum === registersOfWriter[Register.generationSum] && pagesInUse === registersOfWriter[Register.pagesInUse];
    if (!adding || contradictions > 0) {
      staleTables.push(writer);
    }
  }
  if (virtioMem !== undefined && !virtioMem.verify(count)) {
    staleTables.push(registers.length);
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

/**
 * What each data page of a region is used for, a `PageUse` each; undefined if its allocator contradicts itself. The guest must be
 * stopped.
 */
export const usesOf = (region: Region): Uint8Array | undefined =>
  region.dataPages === 0
    ? new Uint8Array()
    : new PageAllocator(
        region,
        { initOnAlloc: false, pagePoison: false },
        new Mutex(new Int32Array(1), 0),
        undefined,
      ).classify();
