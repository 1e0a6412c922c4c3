// The bytes of one push, as the parts of the reader see them: a position that moves forward by whole units, and errors
// that know their place in the stream.

import type { RamferryError } from '../../memory/errors.js';
import { be64Exact, isPrintable, latin1 } from '../bytes.js';
import { hex, invalid } from '../invalid.js';

export class Cursor {
  bytes: Uint8Array = new Uint8Array();
  /** Index in `bytes` of the next byte to consume. */
  at = 0;
  /** Index behind the last byte that is there. */
  limit = 0;
  /** Stream offset of `bytes[0]`; negative where the buffer has more in front than the stream. */
  #base: number;

  /** @param position stream offset of the first byte that will be loaded. */
  constructor(position = 0) {
    this.#base = position;
  }

  /** Stream offset of the next byte to consume. */
  get position(): number {
    return this.#base + this.at;
  }

  /** Goes on with other bytes, at the same position. */
  load(bytes: Uint8Array, start: number, end: number): void {
    this.#base += this.at - start;
    this.bytes = bytes;
    this.at = start;
    this.limit = end;
  }

  /** Goes on at a later position, of which the bytes may not be there yet. */
  jump(position: number): void {
    const ahead = position - this.position;
    this.at += Math.min(ahead, this.limit - this.at);
    this.#base += position - this.position;
  }

  has(byteCount: number): boolean {
    return this.limit - this.at >= byteCount;
  }

  /** The byte `ahead` of the position. */
  peek(ahead = 0): number {
    return this.bytes[this.at + ahead];
  }

  /** The error about something `ahead` bytes after the position. */
  invalid(
    code: string,
    statement: string,
    ahead: number,
    value?: number | bigint | string,
    hint?: string,
  ): RamferryError {
    return invalid(code, statement, this.position + ahead, {
      ...(value !== undefined && { value }),
      ...(hint !== undefined && { hint }),
    });
  }

  /** The error about the be64 `ahead` of the position, which no number holds exactly. */
  tooLarge(what: string, ahead: number): RamferryError {
    const value = be64Exact(this.bytes, this.at + ahead);
    return this.invalid('LENGTH_TOO_LARGE', `${what} is ${hex(value)}, beyond what any machine has`, ahead, value);
  }

  /** The name of `length` characters that starts `ahead` of the position; messages call it `what`. */
  name(ahead: number, length: number, what: string): string {
    const start = this.at + ahead;
    const name = latin1(this.bytes, start, start + length);
    if (!isPrintable(this.bytes, start, start + length)) {
      throw this.invalid('NAME_NOT_PRINTABLE', `The ${what} ${JSON.stringify(name)} is not printable`, ahead, name);
    }
    return name;
  }
}
