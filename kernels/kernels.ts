// The loops over pages and bitmaps, as interfaces. Two implementations exist of each: wasm SIMD (kernels/assembly), which
// production runs, and plain TypeScript (kernels/twin), which is its oracle in tests and its fallback where wasm SIMD
// is missing. A kernel instance is bound to one shared `WebAssembly.Memory`; addresses are byte offsets in it.
//
// Rules (spec/node-performance.md section 10, spec/algorithms.md 14.4): work comes in batches; no allocation; no
// argument above 2^31 except bit numbers and bit counts, which are plain numbers; every kernel is bit-exact with its
// twin for every alignment of start and end (TS-8). Nothing checks an argument: a wrong one traps or harms the memory.
//
// Bitmaps are little-endian: bit n is bit n % 8 of byte n / 8, so the same bytes are an Int32Array to TypeScript, i64
// words to wasm, and QEMU's on-disk bitmaps. A bitmap starts at a multiple of 8 and is a whole number of 64-bit words.

/** Bytes of a guest page. Everything below is written for x86's 4 KiB; other sizes exist only in `src/format`. */
export const GUEST_PAGE_SIZE = 4096;

/** Bytes of a page record with the CONTINUE flag: zero page (header and fill byte), normal page (header and page). */
export const ZERO_RECORD_BYTES = 9;
export const NORMAL_RECORD_BYTES = 8 + GUEST_PAGE_SIZE;

/** Bitmap loops, over a memory that holds bitmaps (`BitmapMemory`). */
export interface BitmapKernels {
  /**
   * Moves the bits of `source` into `target`: every nonzero 64-bit word of `source` is exchanged with zero atomically
   * and merged into `target` with OR. Returns how many bits of `target` became set that were clear (DM-13, DM-14).
   * `target` has one owner; `source` may be marked concurrently.
   */
  sync(source: number, target: number, wordCount: number): number;

  /**
   * Copies marks onward without removing them: for each nonzero word w of `remote`: snapshot |= w, then
   * global |= w atomically (TS-9). Returns how many bits `remote` had set. All three are `wordCount` words long.
   */
  fetchLog(remote: number, snapshot: number, global: number, wordCount: number): number;

  /**
   * Ranged clear of a log, masked: for the bits [firstBit, firstBit + bitCount): remote &= ~snapshot atomically, then
   * snapshot is zeroed there (TS-11, G-5). Bits outside the range stay (CB-12). Returns how many bits left `remote`.
   */
  clearLog(remote: number, snapshot: number, firstBit: number, bitCount: number): number;

  /** Number of set bits in [firstBit, firstBit + bitCount). */
  countRange(bitmap: number, firstBit: number, bitCount: number): number;

  /** First set bit in [fromBit, endBit), or endBit. */
  findNextSet(bitmap: number, fromBit: number, endBit: number): number;

  /** First clear bit in [fromBit, endBit), or endBit. */
  findNextClear(bitmap: number, fromBit: number, endBit: number): number;

  /** Sets a range; safe against concurrent changes of other bits in the edge words (DM-11). */
  setRange(bitmap: number, firstBit: number, bitCount: number): void;

  /** Clears a range and returns how many bits were set; every word is changed atomically (DM-12). */
  testAndClearRange(bitmap: number, firstBit: number, bitCount: number): number;

  /** target = ~source over bitCount bits; the rest of the last word of `target` becomes zero (RC-1). */
  complement(source: number, target: number, bitCount: number): void;

  /**
   * target |= source, atomically per word, without a write where the source word is zero (DM-18). Returns how many
   * bits `source` has set (not how many were new).
   */
  merge(source: number, target: number, wordCount: number): number;

  /**
   * Writes the indexes (below 2^31) of the set bits of [fromBit, endBit) as i32 to `out`, ascending, at most `limit`;
   * returns how many.
   */
  collect(bitmap: number, fromBit: number, endBit: number, out: number, limit: number): number;

  /**
   * Clears the bits whose indexes are listed (i32 each at `list`); returns how many of them were set (G-2). `bitmap` has
   * one owner.
   */
  clearListed(bitmap: number, list: number, count: number): number;
}

/** Where a piece of a RAM block lies in the segment: block page `firstPage` starts at byte `address`. */
export interface ExtentArguments {
  readonly address: number;
  readonly firstPage: number;
  readonly pageCount: number;
}

/** Why `loadRecords` stopped. */
export const LoadStop = {
  /** Fewer bytes are left than the next record needs. */
  needMore: 0,
  /**
   * The next record has no CONTINUE flag, or is not a plain zero or normal page (a zero page with another fill byte
   * included): the decoder must look at it.
   */
  other: 1,
  /** The next record's page lies outside the extent. */
  outside: 2,
} as const;

/** Page loops, over a segment of guest RAM. */
export interface PageKernels {
  /** 1 if the page at `address` (multiple of 16) is all zero. */
  isZeroPage(address: number): number;

  /** Tests `pageCount` consecutive pages; bit i of the bitmap at `out` (whole 32-bit words) says page i is zero. Returns how many are. */
  scanZero(address: number, pageCount: number, out: number): number;

  /**
   * Record writer: appends to `out` one stream record per listed page (i32 block page indexes at `list`), zero test
   * included: header (be64 page * 4096 | flags), then one zero byte or the page (spec/qemu-wire-format.md 2.4). All
   * records carry CONTINUE, except that with `nameBytes` > 0 the first one carries the block id found at `name`
   * (length byte and characters, `nameBytes` in all) instead. Returns the number of zero pages; the bytes written are
   * zero * ZERO_RECORD_BYTES + (count - zero) * NORMAL_RECORD_BYTES + nameBytes.
   * Listed pages lie in the extent [firstPage, …) at `address`.
   */
  emitRecords(
    list: number,
    count: number,
    address: number,
    firstPage: number,
    name: number,
    nameBytes: number,
    out: number,
  ): number;

  /**
   * The same records without a copy of the pages: headers, block id and zero bytes go to `heads`, and `vector` (16 bytes
   * an entry: address and length, 64-bit little-endian, the system's `struct iovec`) gets the pieces in the order in which they are to be
   * written. `base` is the address of this memory in the process. Returns the number of entries, at most
   * 2 * count + 1; a page that is not zero is always two of them, and zero pages at the end of the list are one.
   */
  emitVector(
    list: number,
    count: number,
    address: number,
    firstPage: number,
    name: number,
    nameBytes: number,
    heads: number,
    base: number,
    vector: number,
  ): number;

  /**
   * Scatter, the inverse: decodes CONTINUE records from [input, input + length) into the extent until something
   * stops it. `written` is a bitmap of the extent's pages (bit = page - firstPage): a zero record for a page whose bit
   * is clear touches nothing, since fresh memory reads as zero; a normal record sets the bit. A zero record for a page
   * that was written fills it and leaves the bit set.
   * Returns the bytes consumed; `result` receives four i32: zero pages, normal pages, LoadStop, reserved.
   */
  loadRecords(
    input: number,
    length: number,
    address: number,
    firstPage: number,
    pageCount: number,
    written: number,
    result: number,
  ): number;

  /** Writes the self-verifying pattern of (page key, generation) over the page at `address`: see kernels/assembly/pages.ts. */
  fillPattern(address: number, key: number, generation: number): void;

  /** 1 if the page holds exactly the pattern of (key, generation). */
  checkPattern(address: number, key: number, generation: number): number;

  /**
   * Digests of `pageCount` consecutive pages at any address, 64 bits each, as two i32 at `out`: 0 for a zero page, and
   * for another one practically never. Against damage, not against forgery: see kernels/assembly/pages.ts.
   */
  digestPages(address: number, pageCount: number, out: number): void;

  /** Fills with zero bytes (memory.fill: ten times `TypedArray.fill` on shared memory). */
  zeroFill(address: number, byteCount: number): void;

  /** memmove inside the segment. */
  copy(target: number, source: number, byteCount: number): void;
}

/** Loops that look for something, over a memory into which pages were read. */
export interface SearchKernels {
  /**
   * First place in [from, end), `from` not above `end`, at which the needle lies; `end` if there is none. At `needle` are its
   * `length` bytes, 1 or more, and behind them as many masks: a place matches if every byte of it, AND the mask, is the
   * needle's. `first` and `second` are the positions of the two bytes, equal or not, that are looked for at first: rare ones.
   * Up to `length` + 64 bytes behind `end` are read and have to be in the memory.
   */
  findMasked(from: number, end: number, needle: number, length: number, first: number, second: number): number;

  /**
   * Start of the first run of at least `least` bytes, 1 or more, in [from, end) whose entries in the table of 256 bytes are not
   * zero; `end` if there is none. `from` counts as the start of what is looked at.
   */
  findRun(from: number, end: number, table: number, least: number): number;

  /** Where the run that `from` is in ends: the first byte in [from, end) whose entry in the table is zero, or `end`. */
  runEnd(from: number, end: number, table: number): number;
}
