// Runs of characters that can be printed, as `strings` of binutils finds them.

import type { Matcher, VisitMatch } from './matcher.js';
import type { TextEncoding } from './needle.js';
import type { SearchMemory } from './search-memory.js';
import type { Stretch } from './stretches.js';
import type { Window } from './windows.js';

/** Characters of the longest text; what is longer comes in several. */
export const LONGEST_TEXT = 16 * 1024;

/** Encodings in which ASCII is looked for: a byte, or two of which one is zero. */
export type TextWidth = Extract<TextEncoding, 'utf-8' | 'utf-16le' | 'utf-16be'>;

export interface TextMatcherOptions {
  readonly encoding: TextWidth;
  /** Fewest characters of a text. */
  readonly least: number;
}

/** Texts of printable ASCII and tabs. */
export class TextMatcher implements Matcher {
  readonly overlap: number;
  readonly margin = 0;
  readonly #memory: SearchMemory;
  readonly #encoding: TextWidth;
  readonly #least: number;
  readonly #printable = Uint8Array.from({ length: 256 }, (_, byte) =>
    byte === 9 || (byte >= 0x20 && byte < 0x7f) ? 1 : 0,
  );
  readonly #table: number;
  /** Where the last text ended. */
  #behind: { readonly stretch: Stretch | undefined; readonly position: number } = { stretch: undefined, position: 0 };

  constructor(memory: SearchMemory, { encoding, least }: TextMatcherOptions) {
    this.#memory = memory;
    this.#encoding = encoding;
    this.#least = least;
    this.#table = memory.place(this.#printable);
    this.overlap = LONGEST_TEXT * (encoding === 'utf-8' ? 1 : 2);
  }

  find(window: Window, visit: VisitMatch): void {
    const { stretch, position, from, to, length } = window;
    let at = Math.max(from, this.#behind.stretch === stretch ? this.#behind.position - position : 0);
    while (at < to) {
      const start = this.#start(at, length);
      if (start >= to) {
        return;
      }
      const end = this.#end(start, length);
      visit(start, end - start, this.#encoding);
      at = end;
      this.#behind = { stretch, position: position + end };
    }
  }

  /** Where the next text begins; `length` if there is none. */
  #start(from: number, length: number): number {
    if (this.#encoding === 'utf-8') {
      return this.#memory.kernels.findRun(from, length, this.#table, this.#least);
    }
    for (let at = from; at < length; at += 1) {
      if (this.#isWide(at, length) && this.#end(at, Math.min(length, at + 2 * this.#least)) - at === 2 * this.#least) {
        return at;
      }
    }
    return length;
  }

  #end(start: number, length: number): number {
    if (this.#encoding === 'utf-8') {
      return this.#memory.kernels.runEnd(start, Math.min(length, start + LONGEST_TEXT), this.#table);
    }
    let at = start;
    while (at < start + 2 * LONGEST_TEXT && this.#isWide(at, length)) {
      at += 2;
    }
    return at;
  }

  /** Whether a character of two bytes is at byte `at`. */
  #isWide(at: number, length: number): boolean {
    const bytes = this.#memory.window;
    const low = this.#encoding === 'utf-16le' ? at : at + 1;
    return at + 2 <= length && this.#printable[bytes[low]!] === 1 && bytes[at + at + 1 - low] === 0;
  }
}
