// Reads and checks the mapped-ram header of a block. QEMU's loader believes nearly all of it (spec/qemu-wire-format.md 3.8):
// a page size of 0 kills it, other wrong values load garbage. Here a header either describes exactly the layout drawn in
// layout.ts, or the file is refused:
//
//   header | bitmap right behind it | … | pages, whole pages from the file's start, up to `end` | next header
//
// As the stream goes on at `end`, areas of different blocks cannot overlap, nor any area and the stream (MR-5). And as
// the bitmap's place is known, a stream that was moved within its file, or copied out of it, is noticed (MR-20).

import { fileOffset } from '../../memory/units.js';
import { hex } from '../invalid.js';
import type { Cursor } from '../stream/cursor.js';
import { isPageSize } from '../stream/page-size.js';
import {
  bitmapBytesOf,
  layoutBlock,
  MAPPED_RAM_HEADER_BYTES,
  MAPPED_RAM_VERSION,
  type MappedRamLayout,
  readMappedRamHeader,
} from './layout.js';

/** What a block's header is checked against. */
export interface MappedRamBlock {
  readonly name: string;
  readonly usedLength: number;
  readonly pageSize: number;
  /** Size of the file. */
  readonly fileBytes: number;
  /** Blocks may be left out, with offsets 0: `x-ignore-shared` since QEMU 11.0 (spec/algorithms.md 5(e)). */
  readonly mayBeIgnored: boolean;
}

/** The page size that the header `ahead` of the cursor gives; undefined if there is no such page size. */
export const mappedPageSize = (cursor: Cursor, ahead: number): number | undefined => {
  const { pageSize } = readMappedRamHeader(cursor.bytes, cursor.at + ahead);
  return isPageSize(Number(pageSize)) ? Number(pageSize) : undefined;
};

/** Layout of the block whose header stands `ahead` of the cursor, all of it in the buffer. */
export const readLayout = (cursor: Cursor, ahead: number, block: MappedRamBlock): MappedRamLayout => {
  const { name, usedLength, pageSize, fileBytes } = block;
  const position = cursor.position + ahead;
  const header = readMappedRamHeader(cursor.bytes, cursor.at + ahead);
  const { version, bitmapOffset, pagesOffset } = header;
  const of = `of RAM block "${name}"`;
  if (version !== MAPPED_RAM_VERSION) {
    const statement = `The mapped-ram header ${of} has version ${version}, not ${MAPPED_RAM_VERSION}`;
    throw cursor.invalid('MAPPED_RAM_VERSION', statement, ahead, version);
  }
  if (header.pageSize !== BigInt(pageSize)) {
    const statement = `The mapped-ram header ${of} has page size ${header.pageSize}, but the target's is ${pageSize}`;
    throw cursor.invalid('MAPPED_RAM_PAGE_SIZE', statement, ahead + 4, header.pageSize);
  }
  const expected = layoutBlock(fileOffset(position), usedLength, pageSize);
  if (block.mayBeIgnored && bitmapOffset === 0n && pagesOffset === 0n) {
    const nowhere = fileOffset(0);
    const end = fileOffset(position + MAPPED_RAM_HEADER_BYTES);
    return { bitmapOffset: nowhere, bitmapBytes: 0, pagesOffset: nowhere, end };
  }
  if (bitmapOffset !== BigInt(expected.bitmapOffset)) {
    const statement = `The bitmap ${of} is said to be at ${hex(bitmapOffset)}, not behind its header at ${hex(expected.bitmapOffset)}`;
    const hint =
      bitmapOffset < 2n ** 53n
        ? `Offsets count from the start of the file: was this stream written at another place, ${bitmapOffset - BigInt(expected.bitmapOffset)} bytes further on?`
        : undefined;
    throw cursor.invalid('MAPPED_RAM_BITMAP_OFFSET', statement, ahead + 12, bitmapOffset, hint);
  }
  const refusePages = (what: string): Error =>
    cursor.invalid(
      'MAPPED_RAM_PAGES_OFFSET',
      `The pages ${of} are said to be at ${hex(pagesOffset)}, ${what}`,
      ahead + 20,
      pagesOffset,
    );
  const bitmapEnd = expected.bitmapOffset + bitmapBytesOf(usedLength / pageSize);
  if (pagesOffset < BigInt(bitmapEnd)) {
    throw refusePages(`before the end of the bitmap at ${hex(bitmapEnd)}`);
  }
  // QEMU aligns to 1 MiB, so that any disk's direct I/O works, but loads this.
  if (pagesOffset % BigInt(pageSize) !== 0n) {
    throw refusePages(`which is not a multiple of the page size ${pageSize}`);
  }
  if (pagesOffset + BigInt(usedLength) > BigInt(fileBytes)) {
    if (pagesOffset !== BigInt(expected.pagesOffset)) {
      throw refusePages(`and ${hex(usedLength)} bytes long, beyond the end of the file at ${hex(fileBytes)}`);
    }
    const statement = `The file ends before the pages ${of} do, ${expected.end - fileBytes} bytes too early`;
    throw cursor.invalid('STREAM_INCOMPLETE', statement, fileBytes - cursor.position, fileBytes);
  }
  return {
    bitmapOffset: expected.bitmapOffset,
    bitmapBytes: expected.bitmapBytes,
    pagesOffset: fileOffset(Number(pagesOffset)),
    end: fileOffset(Number(pagesOffset) + usedLength),
  };
};
