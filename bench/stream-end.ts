// The end of a postcopy stream, as a peer finds it that reads everything and decodes nothing.

import { ElementType } from '../src/format/stream/constants.js';
import { ramBodyEnd, ramPart } from '../src/format/stream/write.js';

/** The last part of RAM is closed, an empty one follows, and the end mark. */
const endOf = (sectionId: number): Buffer =>
  Buffer.concat([
    ramBodyEnd(sectionId),
    ramPart(ElementType.SECTION_END, sectionId),
    ramBodyEnd(sectionId),
    Uint8Array.of(ElementType.EOF),
  ]);

const END_BYTES = endOf(0).length;

/** Where the section's number is in it for the first time: behind an end of pages of 8 bytes and a byte that says footer. */
const SECTION_ID_AT = 9;

/**
 * Sees the chunks of a stream go by. Fewer bytes than all of the end would not do: a chunk may end anywhere, and in a gigabyte of
 * memory there is every sequence of a few bytes.
 */
export class StreamEnd {
  #tail: Buffer = Buffer.alloc(0);

  /** Whether the stream ends with this chunk. */
  isAfter(chunk: Buffer): boolean {
    this.#tail = (chunk.length < END_BYTES ? Buffer.concat([this.#tail, chunk]) : chunk).subarray(-END_BYTES);
    return this.#tail.length === END_BYTES && this.#tail.equals(endOf(this.#tail.readUInt32BE(SECTION_ID_AT)));
  }
}
