// Parsers for option values; commander reports what they throw as wrong usage.

import { InvalidArgumentError } from 'commander';

const SUFFIXES = 'BKMGTP';

/** A size as QEMU takes it: bytes, or with a binary suffix as in `512M`, `1.5G`, `0x1000`. */
export const parseSize = (text: string): number => {
  const match = /^(?:(0x[0-9a-f]+)|([0-9]+(?:\.[0-9]+)?)([BKMGTP]?))$/i.exec(text);
  const value =
    match?.[1] === undefined
      ? Number(match?.[2]) * 1024 ** Math.max(0, SUFFIXES.indexOf((match?.[3] || 'B').toUpperCase()))
      : Number(match[1]);
  if (!Number.isSafeInteger(value)) {
    throw new InvalidArgumentError('It must be a whole number of bytes below 2^53, such as 4096, 512M or 1.5G.');
  }
  return value;
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
