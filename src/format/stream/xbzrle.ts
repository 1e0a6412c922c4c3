// XBZRLE: a page as its difference from the content the destination already has (spec/qemu-wire-format.md 2.6).
//
//   encoded := { length(equal bytes, skipped)  length(changed bytes)  changed bytes }*
//   length  := 0xxxxxxx             0..127
//            | 1aaaaaaa 0bbbbbbb    a + b * 128
//
//   old  00 00 00 00 00 00 ...
//   new  00 00 11 22 00 00 ...   ▶   02  02 11 22        (a trailing equal run is not encoded)

import { hex, invalid } from '../invalid.js';

/** Longest run that a length can hold, and so the largest page that XBZRLE is usable with. */
export const XBZRLE_PAGE_LIMIT = 0x3fff + 1;

/**
 * Applies `length` encoded bytes at `bytes[at]` to `page`, which holds the old content. Bytes that no run reaches stay
 * as they are.
 * @param offset stream offset of the encoded bytes, for errors.
 * @throws RamferryError of kind `invalid`; `page` may then be half changed.
 */
export const decodeXbzrle = (bytes: Uint8Array, at: number, length: number, page: Uint8Array, offset: number): void => {
  const end = at + length;
  let input = at;
  let output = 0;
  const broken = (statement: string, value: number): Error =>
    invalid('XBZRLE', `XBZRLE data of a page ${statement}`, offset + input - at, { value });

  const readLength = (): number => {
    // A run of either kind needs one byte more behind its length, so a length never is the last byte.
    if (end - input < 2) {
      throw broken('ends inside a pair of runs', end - input);
    }
    const low = bytes[input];
    if (low < 0x80) {
      input += 1;
      return low;
    }
    const high = bytes[input + 1];
    if (high >= 0x80) {
      throw broken(`has a length of more than two bytes (${hex(low)} ${hex(high)})`, high);
    }
    input += 2;
    return (low & 0x7f) + high * 0x80;
  };

  while (input < end) {
    const first = input === at;
    const equal = readLength();
    if (equal === 0 && !first) {
      throw broken('has an empty run of equal bytes', equal);
    }
    output += equal;
    if (output > page.length) {
      throw broken(`skips to byte ${output} of the page`, output);
    }
    const changed = readLength();
    if (changed === 0) {
      throw broken('has an empty run of changed bytes', changed);
    }
    if (output + changed > page.length || changed > end - input) {
      throw broken(`has a run of ${changed} changed bytes, beyond the end`, changed);
    }
    page.set(bytes.subarray(input, input + changed), output);
    input += changed;
    output += changed;
  }
};

/** What `encodeXbzrle` returns when the page is better sent as it is. */
export const XBZRLE_OVERFLOW = -1;

/**
 * Encodes what changed from `oldPage` to `newPage` into `out`, all of one page's length, at most XBZRLE_PAGE_LIMIT.
 * Returns the encoded bytes; 0 if nothing changed; XBZRLE_OVERFLOW if they would be more than a page.
 */
export const encodeXbzrle = (oldPage: Uint8Array, newPage: Uint8Array, out: Uint8Array): number => {
  const pageSize = newPage.length;
  let input = 0;
  let output = 0;
  const writeLength = (value: number): void => {
    if (value >= 0x80) {
      out[output++] = (value & 0x7f) | 0x80;
      out[output++] = value >> 7;
    } else {
      out[output++] = value;
    }
  };
  for (;;) {
    const equalFrom = input;
    while (input < pageSize && oldPage[input] === newPage[input]) {
      input += 1;
    }
    if (input === pageSize) {
      return output;
    }
    const changedFrom = input;
    while (input < pageSize && oldPage[input] !== newPage[input]) {
      input += 1;
    }
    // Room for the shortest length, as QEMU asks for; a long one that does not fit is caught by the changed bytes.
    if (output + 2 > pageSize) {
      return XBZRLE_OVERFLOW;
    }
    writeLength(changedFrom - equalFrom);
    if (output + 2 > pageSize) {
      return XBZRLE_OVERFLOW;
    }
    writeLength(input - changedFrom);
    if (output + input - changedFrom > pageSize) {
      return XBZRLE_OVERFLOW;
    }
    out.set(newPage.subarray(changedFrom, input), output);
    output += input - changedFrom;
  }
};
