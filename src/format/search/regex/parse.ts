// Regular expressions over bytes, read into a tree. No backreferences and no lookaround: all that is left can be matched in time
// that grows with the memory only, however the expression is made.

import { RamferryError } from '../../../memory/errors.js';

/** 256 flags, one for each byte. */
export type ByteSet = Uint8Array;

export type RegexNode =
  | { readonly kind: 'bytes'; readonly set: ByteSet }
  | { readonly kind: 'sequence'; readonly parts: readonly RegexNode[] }
  | { readonly kind: 'choice'; readonly parts: readonly RegexNode[] }
  | {
      readonly kind: 'repeat';
      readonly part: RegexNode;
      readonly least: number;
      readonly most: number;
      readonly lazy: boolean;
    }
  | { readonly kind: 'border'; readonly isBorder: boolean };

/** Groups within groups, and characters of an expression. */
const DEEPEST = 50;
const LONGEST_EXPRESSION = 4096;
const MOST_REPEATS = 1000;

/** Characters beyond ASCII of one class: each is a sequence of its own. */
const WIDEST_RANGE = 512;

export const setOf = (accepts: (byte: number) => boolean): ByteSet =>
  Uint8Array.from({ length: 256 }, (_, byte) => (accepts(byte) ? 1 : 0));

const isBetween = (byte: number, first: string, last: string): boolean =>
  byte >= first.charCodeAt(0) && byte <= last.charCodeAt(0);

export const isWordByte = (byte: number): boolean =>
  isBetween(byte, 'a', 'z') || isBetween(byte, 'A', 'Z') || isBetween(byte, '0', '9') || byte === 0x5f;

const CLASSES: Readonly<Record<string, (byte: number) => boolean>> = {
  d: (byte) => isBetween(byte, '0', '9'),
  w: isWordByte,
  s: (byte) => byte === 0x20 || (byte >= 9 && byte <= 13),
};

const CONTROLS: Readonly<Record<string, number>> = { n: 10, r: 13, t: 9, f: 12, v: 11, '0': 0, a: 7, e: 27 };

/** One character of a class or of the expression: a byte that was given as such, or a character. */
type Letter = { readonly byte: number } | { readonly character: string } | { readonly set: ByteSet };

/** @throws RamferryError `usage`, `INVALID_REGEX`, with the place in the expression */
export const parseRegex = (text: string, ignoreCase: boolean): RegexNode => new Parser(text, ignoreCase).parse();

export const regexError = (message: string, text: string, hint?: string): RamferryError =>
  new RamferryError('usage', 'INVALID_REGEX', message, {
    value: text.slice(0, 80),
    ...(hint !== undefined && { hint }),
  });

class Parser {
  readonly #text: string;
  readonly #characters: readonly string[];
  readonly #ignoreCase: boolean;
  #at = 0;
  #depth = 0;

  constructor(text: string, ignoreCase: boolean) {
    this.#text = text;
    this.#characters = [...text];
    this.#ignoreCase = ignoreCase;
  }

  parse(): RegexNode {
    if (this.#characters.length > LONGEST_EXPRESSION) {
      throw regexError(`The expression has more than ${LONGEST_EXPRESSION} characters.`, this.#text);
    }
    const node = this.#choice();
    if (this.#at < this.#characters.length) {
      throw this.#wrong('There is no group to close');
    }
    return node;
  }

  #wrong(statement: string, hint?: string): RamferryError {
    return regexError(`${statement}, at character ${this.#at + 1} of the expression.`, this.#text, hint);
  }

  get #next(): string | undefined {
    return this.#characters[this.#at];
  }

  #take(wanted: string): boolean {
    if (this.#next !== wanted) {
      return false;
    }
    this.#at += 1;
    return true;
  }

  #choice(): RegexNode {
    const parts = [this.#sequence()];
    while (this.#take('|')) {
      parts.push(this.#sequence());
    }
    return parts.length === 1 ? parts[0]! : { kind: 'choice', parts };
  }

  #sequence(): RegexNode {
    const parts: RegexNode[] = [];
    while (this.#next !== undefined && this.#next !== '|' && this.#next !== ')') {
      parts.push(this.#repeated(this.#atom()));
    }
    return parts.length === 1 ? parts[0]! : { kind: 'sequence', parts };
  }

  #repeated(part: RegexNode): RegexNode {
    const counts = this.#counts();
    if (counts === undefined) {
      return part;
    }
    const [least, most] = counts;
    const lazy = this.#take('?');
    if (this.#counts() !== undefined) {
      throw this.#wrong('What is repeated already is repeated again', 'put it into a group: (…)');
    }
    return { kind: 'repeat', part, least, most, lazy };
  }

  /** What says how often; undefined if nothing does. */
  #counts(): readonly [least: number, most: number] | undefined {
    if (this.#take('*')) {
      return [0, Number.POSITIVE_INFINITY];
    }
    if (this.#take('+')) {
      return [1, Number.POSITIVE_INFINITY];
    }
    if (this.#take('?')) {
      return [0, 1];
    }
    if (this.#next !== '{') {
      return undefined;
    }
    const rest = this.#characters.slice(this.#at, this.#at + 16).join('');
    const counts = /^\{(\d{1,5})(?:(,)(\d{1,5})?)?\}/.exec(rest);
    if (counts === null) {
      throw this.#wrong(
        'A { begins how often something is repeated',
        String.raw`like {3}, {2,5} or {4,}; the character is \{`,
      );
    }
    const least = Number(counts[1]);
    const most =
      counts[2] === undefined ? least : counts[3] === undefined ? Number.POSITIVE_INFINITY : Number(counts[3]);
    if (most < least || least > MOST_REPEATS || (most > MOST_REPEATS && Number.isFinite(most))) {
      throw this.#wrong(`Something is repeated ${counts[0]} times, and may be from 0 to ${MOST_REPEATS} times`);
    }
    this.#at += counts[0].length;
    return [least, most];
  }

  #atom(): RegexNode {
    const character = this.#next!;
    if (character === '(') {
      return this.#group();
    }
    if (character === '[') {
      return this.#class();
    }
    if (character === '.') {
      this.#at += 1;
      return { kind: 'bytes', set: setOf((byte) => byte !== 10) };
    }
    if (character === '^' || character === '$') {
      throw this.#wrong(
        `Memory has no lines for ${character} to stand at`,
        `\\b is the border of a word; the character is \\${character}`,
      );
    }
    if ('*+?{'.includes(character)) {
      throw this.#wrong(`There is nothing for ${character} to repeat`, `the character is \\${character}`);
    }
    if (character === '\\' && 'bB'.includes(this.#characters[this.#at + 1] ?? ' ')) {
      this.#at += 2;
      return { kind: 'border', isBorder: this.#characters[this.#at - 1] === 'b' };
    }
    return this.#nodeOf(this.#letter());
  }

  #group(): RegexNode {
    this.#at += 1;
    if (this.#take('?') && !this.#take(':')) {
      throw this.#wrong('Of groups that begin with (?, only (?:…) is known');
    }
    this.#depth += 1;
    if (this.#depth > DEEPEST) {
      throw this.#wrong(`Groups are more than ${DEEPEST} deep in each other`);
    }
    const node = this.#choice();
    this.#depth -= 1;
    if (!this.#take(')')) {
      throw this.#wrong('A group is not closed');
    }
    return node;
  }

  #letter(): Letter {
    const character = this.#characters[this.#at++];
    if (character !== '\\') {
      return { character: character! };
    }
    const escaped = this.#characters[this.#at++];
    const accepts = CLASSES[escaped?.toLowerCase() ?? ''];
    if (accepts !== undefined) {
      return { set: setOf((byte) => accepts(byte) === (escaped === escaped!.toLowerCase())) };
    }
    const rest = this.#characters.slice(this.#at, this.#at + 10).join('');
    if (escaped === 'x') {
      const digits = /^[0-9a-f]{2}/i.exec(rest);
      if (digits !== null) {
        this.#at += 2;
        return { byte: Number.parseInt(digits[0], 16) };
      }
    } else if (escaped === 'u') {
      const digits = /^(?:\{([0-9a-f]{1,6})\}|([0-9a-f]{4}))/i.exec(rest);
      const code = Number.parseInt(digits?.[1] ?? digits?.[2] ?? '', 16);
      if (digits !== null && code <= 0x10ffff && !(code >= 0xd800 && code < 0xe000)) {
        this.#at += digits[0].length;
        return { character: String.fromCodePoint(code) };
      }
    } else if (escaped !== undefined && Object.hasOwn(CONTROLS, escaped)) {
      return { byte: CONTROLS[escaped]! };
    } else if (escaped !== undefined && !/[\p{L}\p{N}]/u.test(escaped)) {
      return { character: escaped };
    }
    this.#at -= 1;
    throw this.#wrong(
      `The escape \\${escaped ?? ''} means nothing`,
      String.raw`a byte is \x7f, a character \u{20ac}, a backslash \\`,
    );
  }

  #class(): RegexNode {
    this.#at += 1;
    const isNegated = this.#take('^');
    const set = new Uint8Array(256);
    const wide: RegexNode[] = [];
    for (let isFirst = true; isFirst || this.#next !== ']'; isFirst = false) {
      if (this.#next === undefined) {
        throw this.#wrong('A class [ is not closed');
      }
      const letter = this.#letter();
      const isRange = this.#next === '-' && ![']', undefined].includes(this.#characters[this.#at + 1]);
      for (const each of isRange ? this.#range(letter) : [letter]) {
        const node = this.#nodeOf(each);
        if (node.kind === 'bytes') {
          for (const [byte, isIn] of node.set.entries()) {
            set[byte]! |= isIn;
          }
        } else {
          wide.push(node);
        }
      }
    }
    this.#at += 1;
    if (isNegated) {
      if (wide.length > 0) {
        throw this.#wrong('A class [^…] is of bytes, and cannot leave out characters beyond ASCII');
      }
      return { kind: 'bytes', set: set.map((isIn) => 1 - isIn) };
    }
    const bytes: RegexNode = { kind: 'bytes', set };
    return wide.length === 0 ? bytes : { kind: 'choice', parts: set.includes(1) ? [bytes, ...wide] : wide };
  }

  #range(first: Letter): Letter[] {
    this.#at += 1;
    const last = this.#letter();
    const codeOf = (letter: Letter): number =>
      'byte' in letter ? letter.byte : 'character' in letter ? letter.character.codePointAt(0)! : Number.NaN;
    const [from, to] = [codeOf(first), codeOf(last)];
    if (!(from <= to)) {
      throw this.#wrong('A range in a class goes from nowhere to nowhere');
    }
    const areBytes = 'byte' in first || 'byte' in last;
    const isMixed = areBytes && [first, last].some((each) => 'character' in each && each.character > '\x7f');
    if (isMixed) {
      throw this.#wrong('A range goes from a byte to a character');
    }
    if (to - from >= WIDEST_RANGE) {
      throw this.#wrong(`A range has more than ${WIDEST_RANGE} characters`);
    }
    return Array.from({ length: to - from + 1 }, (_, index) =>
      areBytes ? { byte: from + index } : { character: String.fromCodePoint(from + index) },
    );
  }

  #nodeOf(letter: Letter): RegexNode {
    if ('set' in letter) {
      return { kind: 'bytes', set: letter.set };
    }
    if ('byte' in letter) {
      return { kind: 'bytes', set: setOf((byte) => byte === letter.byte) };
    }
    const { character } = letter;
    const cases = this.#ignoreCase ? [character, character.toLowerCase(), character.toUpperCase()] : [character];
    const spellings = [...new Set(cases)]
      .filter((each) => [...each].length === 1)
      .map((each) => new TextEncoder().encode(each));
    if (spellings.every(({ length }) => length === 1)) {
      return { kind: 'bytes', set: setOf((byte) => spellings.some(([only]) => only === byte)) };
    }
    const parts = spellings.map((bytes): RegexNode => {
      const each = Array.from(bytes, (value): RegexNode => ({ kind: 'bytes', set: setOf((byte) => byte === value) }));
      return { kind: 'sequence', parts: each };
    });
    return parts.length === 1 ? parts[0]! : { kind: 'choice', parts };
  }
}
