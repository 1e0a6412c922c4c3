// What such a guest asked for before, in that order: pushed before everything else, and along with a page that it asks for
// again, since it is likely to ask for the next ones at once.
//
//   then                  7 ▸ 8 ▸ 300 ▸ 90 ▸ 91 ▸ …
//   now, 300 is asked for    300 and what is behind it ▸ 90 ▸ 91 ▸ …      up to FOLLOWING_PAGES
//   now, 50 is asked for     50 and more of what is behind it              as much; not if only what is asked for may leave

import type { RamBlock } from '../memory/ram-block.js';

export interface GuestPage {
  readonly blockName: string;
  readonly page: number;
}

export interface PageRange {
  readonly block: RamBlock;
  readonly firstPage: number;
  readonly endPage: number;
}

/**
 * Pages that follow one that is asked for. A guest that goes through its memory faster than it comes asks this seldom; another
 * request waits for them about a millisecond at most, at 1 GB/s.
 */
export const FOLLOWING_PAGES = 256;

/** Ranges that are looked at for them: what several guests asked for overlaps. */
const FOLLOWING_RANGES = 256;

/**
 * A hole of this size between two ranges belongs to the first: nobody asked for it because the background came by, which goes
 * on behind a page that was asked for.
 */
const HOLE_PAGES = 64;

export class FirstPages {
  /** In the order in which they were asked for, each with the pages that came along. */
  readonly ranges: readonly PageRange[];
  /** Places in `ranges`, by ascending page. */
  readonly #sorted = new Map<RamBlock, number[]>();

  /**
   * @param prefetchPages as many came along with each
   * Pages that there are not are left out: the list may be of another guest.
   */
  constructor(pages: readonly GuestPage[], blocks: readonly RamBlock[], prefetchPages: number) {
    const known = pages.flatMap(({ blockName, page }) => {
      const block = blocks.find(({ name, usedPages }) => name === blockName && page < usedPages);
      return block === undefined ? [] : [{ block, page }];
    });
    const ends = known.map(({ page }) => page + 1 + prefetchPages);
    for (const block of blocks) {
      const places = [...known.keys()].filter((place) => known[place].block === block);
      places.sort((one, other) => known[one].page - known[other].page);
      for (const [index, place] of places.slice(0, -1).entries()) {
        const { page: next } = known[places[index + 1]];
        ends[place] = next - ends[place] <= HOLE_PAGES ? Math.max(next, ends[place]) : ends[place];
      }
      this.#sorted.set(block, places);
    }
    this.ranges = known.map(({ block, page }, place) => ({ block, firstPage: page, endPage: ends[place] }));
  }

  /** What was asked for from a page on; nothing if it is not in the list. */
  following(block: RamBlock, page: number): readonly PageRange[] {
    const places = this.#sorted.get(block) ?? [];
    let [low, high] = [0, places.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      [low, high] = this.ranges[places[middle]].firstPage <= page ? [middle + 1, high] : [low, middle];
    }
    const place = places[low - 1];
    const isKnown = place !== undefined && page < this.ranges[place].endPage;
    return isKnown ? this.ranges.slice(place, place + FOLLOWING_RANGES) : [];
  }
}
