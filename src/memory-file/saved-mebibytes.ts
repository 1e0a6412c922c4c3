// The digests of a block's MiBs as a sidecar holds them, which may be millions: as an object each would take half a KiB.

/** The shortest entry: `"0":"0123456789abcdef"` and a comma. */
const ENTRY_BYTES = 22;
const HASH_DIGITS = 16;

const QUOTE = 0x22;
const COLON = 0x3a;
const COMMA = 0x2c;

/** Digests by the number of their MiB. */
export class SavedMebibytes {
  static readonly none = new SavedMebibytes(new Float64Array(0), new Uint32Array(0));
  /** Ascending. */
  readonly numbers: Float64Array;
  /** Two words each. */
  readonly words: Uint32Array;

  constructor(numbers: Float64Array, words: Uint32Array) {
    this.numbers = numbers;
    this.words = words;
  }

  /** 16 hexadecimal digits; undefined of a MiB that is zero. */
  get(mebibyte: number): string | undefined {
    let low = 0;
    for (let high = this.numbers.length; low < high; ) {
      const middle = Math.floor((low + high) / 2);
      if (this.numbers[middle]! < mebibyte) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return this.numbers[low] === mebibyte ? this.#text(low) : undefined;
  }

  #text(index: number): string {
    const digits = (word: number): string => word.toString(16).padStart(8, '0');
    return digits(this.words[2 * index]!) + digits(this.words[2 * index + 1]!);
  }

  /** Reads what is between the braces, as `JSON.stringify` writes it; undefined if that is something else. */
  static parse(bytes: Uint8Array, start: number, end: number): SavedMebibytes | undefined {
    const most = Math.floor((end - start + 1) / ENTRY_BYTES);
    const numbers = new Float64Array(most);
    const words = new Uint32Array(2 * most);
    let count = 0;
    for (let at = start; at < end; count += 1) {
      const behind = count === 0 ? at : at + 1;
      if (count === most || (count > 0 && bytes[at] !== COMMA) || bytes[behind] !== QUOTE) {
        return undefined;
      }
      let digit = behind + 1;
      let number = 0;
      for (; bytes[digit]! >= 0x30 && bytes[digit]! <= 0x39; digit += 1) {
        number = number * 10 + bytes[digit]! - 0x30;
      }
      const hash = digit + 3;
      at = hash + HASH_DIGITS + 1;
      const high = hexadecimal(bytes, hash);
      const low = hexadecimal(bytes, hash + HASH_DIGITS / 2);
      const isEntry =
        digit > behind + 1 &&
        bytes[digit] === QUOTE &&
        bytes[digit + 1] === COLON &&
        bytes[digit + 2] === QUOTE &&
        bytes[at - 1] === QUOTE &&
        at <= end;
      const isNext = count === 0 || number > numbers[count - 1]!;
      if (!(isEntry && isNext) || Number.isNaN(high) || Number.isNaN(low)) {
        return undefined;
      }
      numbers[count] = number;
      words[2 * count] = high;
      words[2 * count + 1] = low;
    }
    return new SavedMebibytes(numbers.subarray(0, count), words.subarray(0, 2 * count));
  }
}

/** Eight digits; NaN if they are others than ours. */
const hexadecimal = (bytes: Uint8Array, at: number): number => {
  let value = 0;
  for (let digit = at; digit < at + HASH_DIGITS / 2; digit += 1) {
    const byte = bytes[digit] ?? 0;
    const isLetter = byte >= 0x61 && byte <= 0x66;
    if (!(isLetter || (byte >= 0x30 && byte <= 0x39))) {
      return Number.NaN;
    }
    value = value * 16 + (isLetter ? byte - 0x57 : byte - 0x30);
  }
  return value;
};
