// What debuggers read is little-endian on x86. Migration streams are big-endian, and have a writer of their own (byte-writer.ts).

/** Little-endian fields one behind the other, up to a length that is known. */
export class LittleEndianWriter {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #length = 0;

  constructor(capacity: number) {
    this.#bytes = new Uint8Array(capacity);
    this.#view = new DataView(this.#bytes.buffer);
  }

  get written(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  u16(value: number): this {
    this.#view.setUint16(this.#length, value, true);
    return this.skip(2);
  }

  u32(value: number): this {
    this.#view.setUint32(this.#length, value, true);
    return this.skip(4);
  }

  u64(value: number | bigint): this {
    this.#view.setBigUint64(this.#length, BigInt.asUintN(64, BigInt(value)), true);
    return this.skip(8);
  }

  bytes(source: ArrayLike<number>): this {
    this.#bytes.set(source, this.#length);
    return this.skip(source.length);
  }

  skip(count: number): this {
    this.#length += count;
    return this;
  }
}
