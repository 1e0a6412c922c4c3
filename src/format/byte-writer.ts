// A byte buffer that grows: what writers append to, and where readers collect what has no length in front of it.

import { RamferryError } from '../memory/errors.js';

export class ByteWriter {
  #bytes: Uint8Array;
  #length = 0;

  constructor(capacity = 256) {
    this.#bytes = new Uint8Array(capacity);
  }

  /** Bytes written so far. */
  get length(): number {
    return this.#length;
  }

  /** What was written, as a view that the next write may invalidate. */
  get view(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  /** What was written, as a copy of its own. */
  copy(): Uint8Array {
    return this.view.slice();
  }

  /** Forgets everything from `length` on. */
  truncate(length: number): void {
    this.#length = length;
  }

  u8(value: number): this {
    // Not in one expression: reserving may replace the array.
    const at = this.#reserve(1);
    this.#bytes[at] = value;
    return this;
  }

  be16(value: number): this {
    const at = this.#reserve(2);
    this.#bytes[at] = value >>> 8;
    this.#bytes[at + 1] = value;
    return this;
  }

  be32(value: number): this {
    const at = this.#reserve(4);
    this.#bytes[at] = value >>> 24;
    this.#bytes[at + 1] = value >>> 16;
    this.#bytes[at + 2] = value >>> 8;
    this.#bytes[at + 3] = value;
    return this;
  }

  be64(value: number): this {
    return this.be32(Math.floor(value / 0x1_0000_0000)).be32(value % 0x1_0000_0000);
  }

  /** `str8` of the specification: length byte and characters. Throws USAGE_NAME for what QEMU would not write. */
  str8(text: string): this {
    if (!/^[\x20-\x7e]{1,255}$/.test(text)) {
      throw new RamferryError(
        'usage',
        'USAGE_NAME',
        `The name ${JSON.stringify(text)} is not 1 to 255 printable ASCII characters.`,
        { value: text },
      );
    }
    return this.u8(text.length).ascii(text);
  }

  ascii(text: string): this {
    const at = this.#reserve(text.length);
    for (let index = 0; index < text.length; index += 1) {
      this.#bytes[at + index] = text.charCodeAt(index);
    }
    return this;
  }

  bytes(source: Uint8Array, start = 0, end = source.length): this {
    const at = this.#reserve(end - start);
    this.#bytes.set(source.subarray(start, end), at);
    return this;
  }

  #reserve(byteCount: number): number {
    const at = this.#length;
    this.#length += byteCount;
    if (this.#length > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(this.#length, this.#bytes.length * 2));
      grown.set(this.#bytes.subarray(0, at));
      this.#bytes = grown;
    }
    return at;
  }
}
