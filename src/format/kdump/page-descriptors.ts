// Where the content of each page is: 24 bytes a page.
//
//   0  file offset   8  bytes   12  flags: 1 if compressed with zlib   16  flags of the kernel's page: none

/** The page size of x86. */
export const KDUMP_PAGE_BYTES = 4096;

export const PAGE_DESCRIPTOR_BYTES = 24;

const COMPRESSED_ZLIB = 1;

/** Descriptors one behind the other, for a number of pages that is known. */
export class PageDescriptors {
  readonly #view: DataView;
  readonly #bytes: Uint8Array;
  #length = 0;

  constructor(capacity: number) {
    this.#bytes = new Uint8Array(capacity * PAGE_DESCRIPTOR_BYTES);
    this.#view = new DataView(this.#bytes.buffer);
  }

  get written(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  clear(): void {
    this.#length = 0;
  }

  /** A page whose content is at a file offset; plain if it has the length of a page. */
  add(offset: number, bytes: number): void {
    const at = this.#length;
    this.#view.setUint32(at, offset % 2 ** 32, true);
    this.#view.setUint32(at + 4, Math.floor(offset / 2 ** 32), true);
    this.#view.setUint32(at + 8, bytes, true);
    this.#view.setUint32(at + 12, bytes === KDUMP_PAGE_BYTES ? 0 : COMPRESSED_ZLIB, true);
    this.#view.setUint32(at + 16, 0, true);
    this.#view.setUint32(at + 20, 0, true);
    this.#length = at + PAGE_DESCRIPTOR_BYTES;
  }

  /** Many pages that share their content. */
  addShared(offset: number, bytes: number, count: number): void {
    if (count === 0) {
      return;
    }
    const start = this.#length;
    this.add(offset, bytes);
    const end = start + count * PAGE_DESCRIPTOR_BYTES;
    // Each copy doubles what there is.
    while (this.#length < end) {
      const length = Math.min(this.#length - start, end - this.#length);
      this.#bytes.copyWithin(this.#length, start, start + length);
      this.#length += length;
    }
  }
}
