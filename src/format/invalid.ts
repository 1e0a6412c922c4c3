// How every decoder of this room says that its input is not valid.

import { RamferryError } from '../memory/errors.js';

/**
 * An error of kind `invalid` whose sentence ends with the byte offset: `invalid('X', 'The y is 7', 12)` reads
 * "The y is 7, at byte 12."
 */
export const invalid = (
  code: string,
  statement: string,
  offset: number,
  details: { readonly value?: number | bigint | string; readonly hint?: string } = {},
): RamferryError => new RamferryError('invalid', code, `${statement}, at byte ${offset}.`, { ...details, offset });

/** `0x` and hexadecimal digits, as QEMU's own messages show flags and addresses. */
export const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

/** The same error with the file's name, if it is one of ours that has none yet. */
export const withFile = (error: unknown, file: string | undefined): unknown =>
  error instanceof RamferryError && file !== undefined && error.file === undefined ? error.with({ file }) : error;
