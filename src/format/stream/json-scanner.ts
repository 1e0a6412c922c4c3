// Walks JSON text that is too large, or too little trusted, to be parsed as a whole.

import { invalid } from '../invalid.js';
import { parseJson } from '../parse-json.js';

/**
 * Walks JSON text without building anything and without recursion.
 *
 * Keeps nothing but its position; `parse` makes a value of what was stepped over. Errors carry the stream offset of the text.
 */
export class JsonScanner {
  at = 0;
  readonly #text: string;
  readonly #offset: number;

  constructor(text: string, offset: number) {
    this.#text = text;
    this.#offset = offset;
  }

  /** Calls `member` with each key of the object at the current position; `member` must step over the value. */
  forEachMember(member: (key: string) => void): void {
    this.#forEach('{', '}', () => {
      const start = this.at;
      this.skipValue();
      const key = this.parse(start);
      if (typeof key !== 'string' || this.#next() !== ':') {
        throw this.#error();
      }
      this.at += 1;
      this.#next();
      member(key);
    });
  }

  /** Calls `element` at each element of the array at the current position; `element` must step over it. */
  forEachElement(element: () => void): void {
    this.#forEach('[', ']', element);
  }

  /** Steps over one value of any kind. What it steps over is well formed only as far as brackets and strings go. */
  skipValue(): void {
    let depth = 0;
    do {
      const character = this.#next();
      if (character === '{' || character === '[') {
        depth += 1;
      } else if (character === '}' || character === ']') {
        depth -= 1;
      } else if (character === '"') {
        this.#skipString();
        continue;
      } else if (character !== ',' && character !== ':') {
        this.#skipWord();
        continue;
      }
      this.at += 1;
    } while (depth > 0);
    if (depth < 0) {
      throw this.#error();
    }
  }

  /** The value that `skipValue` stepped over from `start` to the current position. */
  parse(start: number): unknown {
    try {
      return parseJson(this.#text.slice(start, this.at));
    } catch {
      throw this.#error();
    }
  }

  #forEach(open: string, close: string, item: () => void): void {
    if (this.#next() !== open) {
      throw this.#error();
    }
    this.at += 1;
    if (this.#next() !== close) {
      for (item(); this.#next() === ','; item()) {
        this.at += 1;
        this.#next();
      }
    }
    if (this.#next() !== close) {
      throw this.#error();
    }
    this.at += 1;
  }

  /** Skips blanks; the character there, undefined at the end of the text. */
  #next(): string | undefined {
    while (this.#text[this.at] === ' ') {
      this.at += 1;
    }
    return this.#text[this.at];
  }

  #skipString(): void {
    for (this.at += 1; this.#text[this.at] !== '"'; this.at += 1) {
      if (this.#text[this.at] === '\\') {
        this.at += 1;
      }
      if (this.at >= this.#text.length) {
        throw this.#error();
      }
    }
    this.at += 1;
  }

  /** A number, `true`, `false` or `null`. */
  #skipWord(): void {
    const start = this.at;
    while (/[-+.\w]/.test(this.#text[this.at] ?? '')) {
      this.at += 1;
    }
    if (this.at === start) {
      throw this.#error();
    }
  }

  #error(): Error {
    return invalid(
      'DESCRIPTION_NOT_JSON',
      'The VM description is not JSON of the expected shape',
      this.#offset + this.at,
    );
  }
}
