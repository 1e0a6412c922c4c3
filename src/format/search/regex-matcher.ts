// Regular expressions over a window: forwards to where the leftmost match ends, backwards from there to where it begins.

import { RamferryError } from '../../memory/errors.js';
import type { Matcher, VisitMatch } from './matcher.js';
import { rarestTwo } from './needle.js';
import { Automaton } from './regex/automaton.js';
import { parseRegex, regexError } from './regex/parse.js';
import { lengthsOf, RegexProgram, type RequiredBytes, requiredBytes } from './regex/program.js';
import { LONGEST_MATCH, type SearchMemory } from './search-memory.js';
import type { Stretch } from './stretches.js';
import type { Window } from './windows.js';

/** How far into zero pages a match is followed. */
const ZERO_BYTES = 4096;

/** Bytes that may be looked at for every byte of a window, before matches are cut short. */
const MOST_LOOKS = 16;

/** How far behind the first end of a match a longer one is looked for then. */
const SHORT_LOOKAHEAD = 256;

interface Gate extends RequiredBytes {
  readonly address: number;
  readonly first: number;
  readonly second: number;
}

/** Matches that do not overlap, the leftmost first, as usual. */
export class RegexMatcher implements Matcher {
  readonly overlap: number;
  readonly margin: number;
  readonly #memory: SearchMemory;
  readonly #ends: Automaton;
  readonly #starts: Automaton;
  /** What every match has in it, and is found much faster. */
  readonly #gate: Gate | undefined;
  /** Where the last match ended. */
  #behind: { readonly stretch: Stretch | undefined; readonly position: number } = { stretch: undefined, position: 0 };
  #isCut = false;

  /** @throws RamferryError `usage`: `INVALID_REGEX`, `PATTERN_MATCHES_ZEROS` */
  constructor(memory: SearchMemory, text: string, ignoreCase: boolean) {
    this.#memory = memory;
    const node = parseRegex(text, ignoreCase);
    const { least, most } = lengthsOf(node);
    if (least === 0) {
      throw regexError(
        'The expression matches nothing at all, which is everywhere.',
        text,
        'in place of x*, x+ is meant',
      );
    }
    this.#ends = new Automaton(new RegexProgram(node, { isSearch: true, isReverse: false }), true);
    this.#starts = new Automaton(new RegexProgram(node, { isSearch: false, isReverse: true }), false);
    const longest = Math.min(most, LONGEST_MATCH);
    this.overlap = longest + 1;
    this.margin = Math.min(longest, ZERO_BYTES);
    const required = requiredBytes(node);
    this.#gate = required && {
      ...required,
      ...rarestTwo(required),
      address: memory.place(Uint8Array.of(...required.values, ...required.masks)),
    };
    const zeros = new Uint8Array(Math.min(longest, LONGEST_MATCH) + 2);
    if (this.#ends.forward(zeros, 1, zeros.length - 1, 1).end >= 0) {
      const message = 'The expression matches zero bytes: it would be found in every zero page.';
      throw new RamferryError('usage', 'PATTERN_MATCHES_ZEROS', message, { value: text.slice(0, 80) });
    }
  }

  /** Whether matches may have been longer than they were followed, for the sake of time. */
  get isCut(): boolean {
    return this.#isCut;
  }

  find(window: Window, visit: VisitMatch): void {
    const bytes = this.#memory.window;
    const { stretch, position, length, to } = window;
    const resume = this.#behind.stretch === stretch ? this.#behind.position - position : 0;
    let at = Math.max(window.from, resume);
    let looks = MOST_LOOKS * length;
    while (at < to) {
      at = this.#passGate(at, length);
      if (at >= to) {
        return;
      }
      this.#isCut ||= looks < 0;
      const { end, looked } = this.#ends.forward(bytes, at, length, looks < 0 ? SHORT_LOOKAHEAD : LONGEST_MATCH);
      looks -= looked;
      if (end < 0) {
        return;
      }
      const start = this.#starts.backward(bytes, end, at, end < length);
      if (start < 0 || start >= to) {
        return;
      }
      visit(start, Math.min(end - start, LONGEST_MATCH), undefined);
      at = end;
      this.#behind = { stretch, position: position + end };
    }
  }

  /** The first place from `at` on at which a match may begin; `length` if there is none. */
  #passGate(at: number, length: number): number {
    if (this.#gate === undefined) {
      return at;
    }
    const { values, address, first, second, before } = this.#gate;
    const end = length - values.length + 1;
    const found = at < end ? this.#memory.kernels.findMasked(at, end, address, values.length, first, second) : end;
    return found >= end ? length : Math.max(at, found - before);
  }
}
