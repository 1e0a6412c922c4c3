// Needles, each with one pass of the kernel over the window.

import type { Matcher, VisitMatch } from './matcher.js';
import { type Needle, rarestTwo } from './needle.js';
import type { SearchMemory } from './search-memory.js';
import type { Window } from './windows.js';

interface PlacedNeedle extends Needle {
  readonly address: number;
  readonly first: number;
  readonly second: number;
  /** Another needle that matches one byte further on wherever this one does: see `isShadow`. */
  readonly twin: { readonly needle: Needle; readonly distance: 1 | -1 } | undefined;
}

/** Every place where a needle lies, those that overlap included. */
export class LiteralMatcher implements Matcher {
  readonly overlap: number;
  readonly margin: number;
  readonly #memory: SearchMemory;
  readonly #needles: readonly PlacedNeedle[];

  constructor(memory: SearchMemory, needles: readonly Needle[]) {
    this.#memory = memory;
    this.#needles = needles.map((needle) => ({
      ...needle,
      ...rarestTwo(needle),
      address: memory.place(Uint8Array.of(...needle.values, ...needle.masks)),
      twin: twinOf(needle, needles),
    }));
    const longest = Math.max(...needles.map(({ values }) => values.length));
    // One more than the needle, for what its twin has.
    this.overlap = longest + 1;
    this.margin = longest - 1;
  }

  find(window: Window, visit: VisitMatch): void {
    if (this.#needles.length === 1) {
      this.#findOne(this.#needles[0]!, window, (at) =>
        visit(at, this.#needles[0]!.values.length, this.#needles[0]!.encoding),
      );
      return;
    }
    const found: { readonly at: number; readonly needle: Needle }[] = [];
    for (const needle of this.#needles) {
      this.#findOne(needle, window, (at) => found.push({ at, needle }));
    }
    found.sort((a, b) => a.at - b.at);
    for (const { at, needle } of found) {
      visit(at, needle.values.length, needle.encoding);
    }
  }

  #findOne(needle: PlacedNeedle, window: Window, visit: (at: number) => void): void {
    const { values, address, first, second, accepts } = needle;
    const { length } = values;
    const end = Math.min(window.to, window.length - length + 1);
    const { kernels, window: bytes } = this.#memory;
    for (let at = window.from; at < end; at += 1) {
      at = kernels.findMasked(at, end, address, length, first, second);
      if (at < end && (accepts?.(bytes.subarray(at, at + length)) ?? true) && !this.#isShadow(needle, window, at)) {
        visit(at);
      }
    }
  }

  /**
   * UTF-16 text in one byte order mostly is text in the other as well, a byte before or behind: "\0a\0b\0" is both. Of two such
   * places the one at the even address is meant.
   */
  #isShadow({ values, twin }: PlacedNeedle, { stretch, position, length }: Window, at: number): boolean {
    if (twin === undefined || ((stretch.address ?? 0) + position + at) % 2 === 0) {
      return false;
    }
    const other = at + twin.distance;
    if (other < 0 || other + values.length > length) {
      return false;
    }
    const bytes = this.#memory.window;
    return twin.needle.values.every((byte, index) => (bytes[other + index]! & twin.needle.masks[index]!) === byte);
  }
}

const twinOf = ({ values, encoding }: Needle, needles: readonly Needle[]): PlacedNeedle['twin'] => {
  const [wanted, distance] =
    encoding === 'utf-16be' ? (['utf-16le', 1] as const) : encoding === 'utf-16le' ? (['utf-16be', -1] as const) : [];
  const needle = needles.find((each) => each.encoding === wanted && each.values.length === values.length);
  return wanted === undefined || needle === undefined ? undefined : { needle, distance };
};
