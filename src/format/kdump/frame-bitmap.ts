// A bit for each page frame that is memory, in pieces: memory may lie so high that the whole bitmap is hundreds of megabytes, nearly
// all of it zero.

/** Page frames [first, first + count). */
export interface FrameRange {
  readonly first: number;
  readonly count: number;
}

/** Bytes [offset, offset + bytes.length) of the bitmap. */
export interface BitmapPiece {
  readonly offset: number;
  readonly bytes: Uint8Array;
}

const PIECE_BYTES = 64 * 1024;
const PIECE_FRAMES = PIECE_BYTES * 8;

/**
 * Yields the pieces of a bitmap that are not zero, ascending. A piece is used again for the next one.
 * @param ranges ascending and disjoint
 * @param bitmapBytes what the pieces stay within
 */
export function* frameBitmap(ranges: readonly FrameRange[], bitmapBytes: number): Generator<BitmapPiece> {
  const buffer = new Uint8Array(PIECE_BYTES);
  let piece = -1;
  const take = (): BitmapPiece => {
    const offset = piece * PIECE_BYTES;
    return { offset, bytes: buffer.subarray(0, Math.min(PIECE_BYTES, bitmapBytes - offset)) };
  };
  for (const { first, count } of ranges) {
    for (let frame = first; frame < first + count; ) {
      const index = Math.floor(frame / PIECE_FRAMES);
      if (index !== piece) {
        if (piece >= 0) {
          yield take();
          buffer.fill(0);
        }
        piece = index;
      }
      const start = index * PIECE_FRAMES;
      const end = Math.min(first + count, start + PIECE_FRAMES);
      setBits(buffer, frame - start, end - start);
      frame = end;
    }
  }
  if (piece >= 0) {
    yield take();
  }
}

/** Sets bits [from, to); bit n % 8 of byte n / 8 is n. */
const setBits = (bytes: Uint8Array, from: number, to: number): void => {
  const firstWhole = Math.ceil(from / 8);
  const lastWhole = Math.floor(to / 8);
  if (firstWhole <= lastWhole) {
    bytes.fill(0xff, firstWhole, lastWhole);
  }
  const setOneByOne = (start: number, end: number): void => {
    for (let bit = start; bit < end; bit += 1) {
      bytes[bit >> 3] |= 1 << (bit & 7);
    }
  };
  setOneByOne(from, Math.min(to, firstWhole * 8));
  setOneByOne(Math.max(from, lastWhole * 8), to);
};
