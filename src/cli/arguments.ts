// Parsers for option values; commander reports what they throw as wrong usage.

import { InvalidArgumentError } from 'commander';
import { isPageSize } from '../format/stream/page-size.js';
import { byteSize } from '../memory/byte-size.js';

/**
 * A size as QEMU takes it (`512M`, `1.5G`, `0x1000`), as people write it (`1GiB`, `500MB`, `1e9`), or as it is printed
 * here (`1.50 GiB`, `446,157,664 bytes`).
 */
export const parseSize = (text: string): number => {
  const size = byteSize(text.trim());
  if (size === undefined) {
    throw new InvalidArgumentError('It must be a whole number of bytes below 2^53, such as 4096, 512M, 1.5GiB or 1e9.');
  }
  return size;
};

/** Bytes per second: a size, with or without `/s`. A small `b` behind a prefix is refused, since it may mean bits. */
export const parseRate = (text: string): number => {
  const amount = text.trim().replace(/ *\/ ?s$/, '');
  const size = /[KMGTPkmgtp]i?b$/.test(amount) ? undefined : byteSize(amount);
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

/** Bytes of a target page: a power of two from 256 to 64K. */
export const parsePageSize = (text: string): number => {
  const size = byteSize(text.trim()) ?? 0;
  if (!isPageSize(size)) {
    throw new InvalidArgumentError('It must be a power of two from 256 to 65536, such as 1K, 4096 or 8K.');
  }
  return size;
};
