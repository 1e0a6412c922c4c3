// What is looked for, as bytes: a needle has a mask for each of them, so that "a" and "A", or a byte that does not matter, are one
// comparison.

import { RamferryError } from '../../memory/errors.js';
import { LONGEST_MATCH } from './search-memory.js';

export const TEXT_ENCODINGS = ['utf-8', 'latin-1', 'utf-16le', 'utf-16be'] as const;
export type TextEncoding = (typeof TEXT_ENCODINGS)[number];

export interface Needle {
  /** Bytes with their masks applied. */
  readonly values: Uint8Array;
  readonly masks: Uint8Array;
  /** Undefined for bytes that are no text. */
  readonly encoding: TextEncoding | undefined;
  /** Decides where the masks let more through than is meant. */
  readonly accepts?: (found: Uint8Array) => boolean;
}

/** A text in more needles than this is no text that somebody looks for. */
const MOST_NEEDLES = 64;

const usage = (code: string, message: string, value: string, hint?: string): RamferryError =>
  new RamferryError('usage', code, message, { value, ...(hint !== undefined && { hint }) });

/**
 * Bytes as hexadecimal digits; `?` stands for a digit that does not matter, white space for nothing.
 * @throws RamferryError `usage`, `INVALID_PATTERN`
 */
export const hexNeedle = (text: string): Needle => {
  const digits = text.replace(/\s|0x/gi, '').toLowerCase();
  if (!/^([0-9a-f?]{2})+$/.test(digits)) {
    const message = `Bytes are pairs of hexadecimal digits, or of ? for what does not matter, not "${text}".`;
    throw usage('INVALID_PATTERN', message, text, "like 7f454c46 or '7f 45 ?? 46'");
  }
  const values = new Uint8Array(digits.length / 2);
  const masks = new Uint8Array(digits.length / 2);
  for (let at = 0; at < digits.length; at += 1) {
    const byte = Math.floor(at / 2);
    const shift = at % 2 === 0 ? 4 : 0;
    if (digits[at] !== '?') {
      values[byte]! |= Number.parseInt(digits[at]!, 16) << shift;
      masks[byte]! |= 0xf << shift;
    }
  }
  return checked({ values, masks, encoding: undefined }, text);
};

export interface TextOptions {
  readonly encodings: readonly TextEncoding[];
  readonly ignoreCase: boolean;
}

/**
 * The needles of a text: one for each encoding, and for each length that letters of either case have in it.
 * @throws RamferryError `usage`: `INVALID_PATTERN`, `NOT_ENCODABLE` if none of the encodings has the text's characters
 */
export const textNeedles = (text: string, { encodings, ignoreCase }: TextOptions): Needle[] => {
  if (text === '') {
    throw usage('INVALID_PATTERN', 'The text to search for is empty.', text);
  }
  if (text.length > LONGEST_MATCH) {
    throw tooLong(text.length, text);
  }
  const letters = [...text].map((letter) => (ignoreCase ? casesOf(letter) : [letter]));
  const needles = new Map<string, Needle>();
  for (const encoding of encodings) {
    for (const spelling of spellings(letters, encoding)) {
      const needle = checked(needleOf(spelling, encoding), text);
      const key = `${needle.values.join()} ${needle.masks.join()}`;
      if (!needles.has(key)) {
        needles.set(key, needle);
      }
    }
  }
  if (needles.size === 0) {
    throw usage('NOT_ENCODABLE', `"${text}" has characters that ${encodings.join(', ')} does not have.`, text);
  }
  return [...needles.values()];
};

/** A letter as it is, and in either case where that is one letter as well. */
const casesOf = (letter: string): string[] => [
  ...new Set([letter, letter.toLowerCase(), letter.toUpperCase()].filter((each) => [...each].length === 1)),
];

/** The ways in which a letter can be written, all of the same length. */
type Alternatives = readonly Uint8Array[];

/** Every sequence of alternatives; letters whose cases differ in length multiply them. */
const spellings = (letters: readonly (readonly string[])[], encoding: TextEncoding): Alternatives[][] => {
  let all: Alternatives[][] = [[]];
  for (const cases of letters) {
    const byLength = new Map<number, Uint8Array[]>();
    for (const bytes of cases.flatMap((letter) => encoded(letter, encoding) ?? [])) {
      byLength.set(bytes.length, [...(byLength.get(bytes.length) ?? []), bytes]);
    }
    const [first, ...others] = byLength.values();
    const longer = others.flatMap((alternatives) => all.map((before) => [...before, alternatives]));
    if (first === undefined) {
      return [];
    }
    for (const before of all) {
      before.push(first);
    }
    all = [...all, ...longer];
    if (all.length > MOST_NEEDLES) {
      const word = letters.map(([letter]) => letter).join('');
      throw usage('INVALID_PATTERN', `"${word}" has too many letters whose cases differ in length.`, word);
    }
  }
  return all;
};

const needleOf = (spelling: readonly Alternatives[], encoding: TextEncoding): Needle => {
  const length = spelling.reduce((sum, [first]) => sum + first!.length, 0);
  const values = new Uint8Array(length);
  const masks = new Uint8Array(length);
  let isExact = true;
  let at = 0;
  for (const alternatives of spelling) {
    const [first] = alternatives as [Uint8Array];
    let differentBits = 0;
    for (let index = 0; index < first.length; index += 1) {
      const difference = alternatives.reduce((bits, each) => bits | (each[index]! ^ first[index]!), 0);
      masks[at + index] = ~difference;
      values[at + index] = first[index]! & ~difference;
      differentBits += bitCount(difference);
    }
    isExact &&= alternatives.length === 2 ** differentBits;
    at += first.length;
  }
  return { values, masks, encoding, ...(!isExact && { accepts: (found: Uint8Array) => spells(found, spelling) }) };
};

const spells = (found: Uint8Array, spelling: readonly Alternatives[]): boolean => {
  let at = 0;
  for (const alternatives of spelling) {
    const start = at;
    if (!alternatives.some((each) => each.every((byte, index) => byte === found[start + index]))) {
      return false;
    }
    at += alternatives[0]!.length;
  }
  return true;
};

const bitCount = (byte: number): number => byte.toString(2).replaceAll('0', '').length;

const encoded = (letter: string, encoding: TextEncoding): Uint8Array | undefined => {
  if (encoding === 'utf-8') {
    return new TextEncoder().encode(letter);
  }
  if (encoding === 'latin-1') {
    const code = letter.codePointAt(0)!;
    return code > 0xff ? undefined : Uint8Array.of(code);
  }
  const bytes = new Uint8Array(2 * letter.length);
  const view = new DataView(bytes.buffer);
  for (let index = 0; index < letter.length; index += 1) {
    view.setUint16(2 * index, letter.charCodeAt(index), encoding === 'utf-16le');
  }
  return bytes;
};

const tooLong = (bytes: number, text: string): RamferryError =>
  usage(
    'INVALID_PATTERN',
    `What is searched for has ${bytes} bytes, and may have ${LONGEST_MATCH}.`,
    text.slice(0, 80),
  );

/** Refuses what would be found in every zero page, or is longer than a window can show. */
const checked = (needle: Needle, text: string): Needle => {
  const { values } = needle;
  if (values.length > LONGEST_MATCH) {
    throw tooLong(values.length, text);
  }
  if (values.every((byte) => byte === 0)) {
    throw usage('PATTERN_MATCHES_ZEROS', 'The pattern matches zero bytes: it would be found in every zero page.', text);
  }
  return needle;
};

/** How common a byte is in the memory of guests, roughly: zero, all ones, text, small numbers, x86 code, anything else. */
const commonness = (byte: number): number => {
  if (byte === 0) {
    return 100;
  }
  if (byte === 0xff) {
    return 60;
  }
  if (byte === 0x20 || (byte >= 0x61 && byte <= 0x7a)) {
    return 20;
  }
  if ((byte >= 0x20 && byte < 0x7f) || byte < 0x10 || [0x48, 0x4c, 0x8b, 0x89, 0x80, 0x88, 0xe8].includes(byte)) {
    return 8;
  }
  return 2;
};

/** Positions of the two bytes of a needle that are the rarest; the same one twice, where it has only one. */
export const rarestTwo = ({
  values,
  masks,
}: Pick<Needle, 'values' | 'masks'>): { readonly first: number; readonly second: number } => {
  // Every bit that does not matter doubles how often the byte is found.
  const cost = (index: number): number => {
    const free = 8 - masks[index]!.toString(2).replaceAll('0', '').length;
    return commonness(values[index]!) * 2 ** free;
  };
  const order = [...values.keys()].sort((a, b) => cost(a) - cost(b));
  return { first: order[0]!, second: order[1] ?? order[0]! };
};
