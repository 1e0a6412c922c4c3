// Parsers for option values; commander reports what they throw as wrong usage.

import { InvalidArgumentError } from 'commander';

/** Bytes of each unit: `M` and `MiB` as QEMU and people mean them, `MB` as disks are sold. */
const UNITS: ReadonlyMap<string, number> = new Map([
  ...['', 'b', 'byte', 'bytes'].map((unit) => [unit, 1] as const),
  ...[...'kmgtp'].flatMap((letter, index) => {
    const [binary, decimal] = [1024 ** (index + 1), 1000 ** (index + 1)];
    return [[letter, binary] as const, [`${letter}ib`, binary] as const, [`${letter}b`, decimal] as const];
  }),
]);

const SIZE = /^([0-9][0-9,]*(?:\.[0-9]+)?(?:e\+?[0-9]+)?|0x[0-9a-f]+) *([a-z]*)$/i;
const GROUPED = /^[0-9]{1,3}(?:,[0-9]{3})+(?:\.|$)/;

const sizeOf = (text: string): number | undefined => {
  const [, digits = '', unitText = ''] = SIZE.exec(text) ?? [];
  const unit = UNITS.get(unitText.toLowerCase());
  const isHexadecimal = /^0x/i.test(digits);
  if (unit === undefined || (digits.includes(',') && !GROUPED.test(digits)) || (isHexadecimal && unitText !== '')) {
    return undefined;
  }
  const value = Number(digits.replaceAll(',', '')) * unit;
  // "1.43 GiB" is what was printed of a size; a fraction of a byte was meant by nobody.
  const size = unit === 1 ? value : Math.round(value);
  return digits !== '' && Number.isSafeInteger(size) ? size : undefined;
};

/**
 * A size as QEMU takes it (`512M`, `1.5G`, `0x1000`), as people write it (`1GiB`, `500MB`, `1e9`), or as it is printed
 * here (`1.50 GiB`, `446,157,664 bytes`).
 */
export const parseSize = (text: string): number => {
  const size = sizeOf(text.trim());
  if (size === undefined) {
    throw new InvalidArgumentError('It must be a whole number of bytes below 2^53, such as 4096, 512M, 1.5GiB or 1e9.');
  }
  return size;
};

/** Bytes per second: a size, with or without `/s`. A small `b` behind a prefix is refused, since it may mean bits. */
export const parseRate = (text: string): number => {
  const amount = text.trim().replace(/ *\/ ?s$/, '');
  const size = /[KMGTPkmgtp]i?b$/.test(amount) ? undefined : sizeOf(amount);
  if (size === undefined) {
    const form = 'It must be a whole number of bytes (not bits) per second below 2^53, such as 100M or 100MiB/s.';
    throw new InvalidArgumentError(form);
  }
  return size;
};

/** A whole number from `minimum` to `maximum`. */
export const parseInteger =
  (minimum: number, maximum: number) =>
  (text: string): number => {
    const value = /^-?[0-9]+$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= minimum && value <= maximum)) {
      throw new InvalidArgumentError(`It must be a whole number from ${minimum} to ${maximum}.`);
    }
    return value;
  };
