// A search through a guest's memory, step by step.

import type { Snapshot } from '../snapshot.js';
import type { Matcher } from './matcher.js';
import type { TextEncoding } from './needle.js';
import type { SearchMemory } from './search-memory.js';
import { type MemoryPlace, placeIn, type Stretch } from './stretches.js';
import { HISTORY_BYTES, MemoryWindows, SHOWN_BYTES, type Window } from './windows.js';

/** A match, and what is around it. */
export interface Match extends MemoryPlace {
  readonly bytes: Uint8Array;
  readonly encoding: TextEncoding | undefined;
  /** What is just before and behind it; shorter at the borders of what is stored. */
  readonly before: Uint8Array;
  readonly after: Uint8Array;
}

export interface SearchOptions {
  /** Most matches that are visited; the others are only counted. */
  readonly limit: number;
  readonly visit: (match: Match) => void;
  /** Whether what is around a match is wanted; it is left empty otherwise, which is quicker. */
  readonly isAlone?: boolean;
}

const NOTHING = new Uint8Array();

export class MemorySearch {
  readonly #memory: SearchMemory;
  readonly #matcher: Matcher;
  readonly #windows: MemoryWindows;
  readonly #options: SearchOptions;
  #count = 0;

  /** @param stretches what is looked through */
  constructor(
    snapshot: Snapshot,
    stretches: readonly Stretch[],
    memory: SearchMemory,
    matcher: Matcher,
    options: SearchOptions,
  ) {
    this.#memory = memory;
    this.#matcher = matcher;
    this.#windows = new MemoryWindows(snapshot, stretches, memory.window, matcher);
    this.#options = options;
  }

  /** Matches so far. */
  get count(): number {
    return this.#count;
  }

  /** Looks on, until something was read; returns how many bytes, 0 at the end. */
  step(): number {
    const before = this.#windows.readBytes;
    while (this.#windows.readBytes === before) {
      const window = this.#windows.next();
      if (window === undefined) {
        return 0;
      }
      this.#matcher.find(window, (at, length, encoding) => {
        this.#count += 1;
        if (this.#count <= this.#options.limit) {
          this.#options.visit(this.#match(window, at, length, encoding));
        }
      });
    }
    return this.#windows.readBytes - before;
  }

  #match(window: Window, at: number, length: number, encoding: TextEncoding | undefined): Match {
    const bytes = this.#memory.window;
    const end = at + length;
    if (this.#options.isAlone) {
      return {
        ...placeIn(window.stretch, window.position + at),
        bytes: bytes.slice(at, end),
        encoding,
        before: NOTHING,
        after: NOTHING,
      };
    }
    return {
      ...placeIn(window.stretch, window.position + at),
      bytes: bytes.slice(at, end),
      encoding,
      before: bytes.slice(Math.max(0, at - HISTORY_BYTES), at),
      after: bytes.slice(end, Math.min(window.length, end + SHOWN_BYTES)),
    };
  }
}
