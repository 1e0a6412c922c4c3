// What a search does with a window.

import type { TextEncoding } from './needle.js';
import type { Reach, Window } from './windows.js';

/** Told of a match in the window: `length` bytes at byte `at` of it. */
export type VisitMatch = (at: number, length: number, encoding: TextEncoding | undefined) => void;

export interface Matcher extends Reach {
  /** Visits the matches that begin in [from, to) of a window, in order. */
  find(window: Window, visit: VisitMatch): void;
}
