// Where everything of a mapped-ram file lies (spec/qemu-wire-format.md 3.2, spec/algorithms.md 5(b)). The stream is the
// ordinary one, but every block of the RAM setup carries a header, and the stream jumps over the block's bitmap and pages:
//
//   file position                                              stream bytes
//   ┌──────────────────────────────────────────────────────┐
//   │ "QEVM", configuration, START, total                  │  yes
//   ├──────────────────────────────────────────────────────┤ ◀─┐
//   │ str8 name, be64 used length                          │   │
//   │ be32 version=1, be64 page size,                      │   │ mapped-ram header, 28 bytes
//   │ be64 bitmap offset, be64 pages offset                │   │
//   ├──────────────────────────────────────────────────────┤   │
//   │ bitmap: 8 * ceil(pages / 64) bytes, bit n = page n   │  no│ once for
//   ├ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ┤   │ each block
//   │ hole up to a multiple of 1 MiB                       │  no│
//   ├──────────────────────────────────────────────────────┤   │
//   │ pages: used length bytes, page n at n * page size    │  no│
//   ├──────────────────────────────────────────────────────┤ ◀─┘ not aligned
//   │ EOS, footer, PART and END with nothing in them,      │  yes
//   │ device sections, EOF, VM description                 │
//   └──────────────────────────────────────────────────────┘
//
// All offsets are positions in the file, also where the stream does not begin at byte 0 of it (`file:PATH,offset=N`):
// alignment is for direct I/O, which knows nothing of where a stream begins.

import { RamferryError } from '../../memory/errors.js';
import { type FileOffset, fileOffset } from '../../memory/units.js';
import { ByteWriter } from '../byte-writer.js';
import { be32, be64Exact } from '../bytes.js';
import { ElementType, RAM_SECTION_VERSION, RecordFlag } from '../stream/constants.js';
import { ramBodyEnd, type StreamRamBlock, sectionHeader } from '../stream/write.js';

export const MAPPED_RAM_VERSION = 1;

/** Bytes of the header of a block. */
export const MAPPED_RAM_HEADER_BYTES = 28;

/** Pages areas begin at multiples of this: more than any disk's block, as a file may move to another disk. */
export const PAGES_ALIGNMENT = 1024 * 1024;

/** The header as it stands in the file. 64-bit fields are bigint: a damaged file has any value in them. */
export interface MappedRamHeader {
  readonly version: number;
  readonly pageSize: bigint;
  readonly bitmapOffset: bigint;
  readonly pagesOffset: bigint;
}

/** Decodes the MAPPED_RAM_HEADER_BYTES at `at`. Checks nothing. */
export const readMappedRamHeader = (bytes: Uint8Array, at: number): MappedRamHeader => ({
  version: be32(bytes, at),
  pageSize: be64Exact(bytes, at + 4),
  bitmapOffset: be64Exact(bytes, at + 12),
  pagesOffset: be64Exact(bytes, at + 20),
});

/** Where the parts of a block are in the file. */
export interface MappedRamLayout {
  readonly bitmapOffset: FileOffset;
  readonly bitmapBytes: number;
  readonly pagesOffset: FileOffset;
  /** Where the stream goes on: behind the last page. */
  readonly end: FileOffset;
}

/** Bytes of the bitmap of so many pages: whole 64-bit words (MR-23). */
export const bitmapBytesOf = (pageCount: number): number => 8 * Math.ceil(pageCount / 64);

/** Lays out the block whose mapped-ram header begins at byte `position` of the file. */
export const layoutBlock = (position: FileOffset, usedLength: number, pageSize: number): MappedRamLayout => {
  const bitmapOffset = position + MAPPED_RAM_HEADER_BYTES;
  const bitmapBytes = bitmapBytesOf(usedLength / pageSize);
  const pagesOffset = Math.ceil((bitmapOffset + bitmapBytes) / PAGES_ALIGNMENT) * PAGES_ALIGNMENT;
  return {
    bitmapOffset: fileOffset(bitmapOffset),
    bitmapBytes,
    pagesOffset: fileOffset(pagesOffset),
    end: fileOffset(pagesOffset + usedLength),
  };
};

/** Stream bytes with their place in the file. */
export interface FilePiece {
  readonly position: FileOffset;
  readonly bytes: Uint8Array;
}

export interface MappedRamStart {
  /** What is to be written, in ascending order; between the pieces lie bitmaps, holes and pages. */
  readonly pieces: readonly FilePiece[];
  /** By block, in the order given. */
  readonly layouts: readonly MappedRamLayout[];
  /** Where the stream goes on. */
  readonly end: FileOffset;
}

/**
 * The whole RAM START section of a mapped-ram file: header, setup record with one head for each block, EOS, footer.
 * @param position byte of the file at which the section begins: behind the configuration
 * @param blocks names must be unique; lengths whole pages
 */
export const mappedRamStart = (
  position: FileOffset,
  sectionId: number,
  blocks: readonly StreamRamBlock[],
  pageSize: number,
): MappedRamStart => {
  if (new Set(blocks.map(({ name }) => name)).size !== blocks.length) {
    throw new RamferryError('usage', 'USAGE_DUPLICATE_BLOCK', 'Two RAM blocks have the same name.');
  }
  const pieces: FilePiece[] = [];
  const layouts: MappedRamLayout[] = [];
  let at: number = position;
  // The total is a multiple of the page size, so adding the flag is setting it.
  const total = blocks.reduce((sum, { usedLength }) => sum + usedLength, 0);
  let out = sectionHeader(new ByteWriter(), ElementType.SECTION_START, sectionId, 'ram', 0, RAM_SECTION_VERSION).be64(
    total + RecordFlag.MEM_SIZE,
  );
  for (const { name, usedLength } of blocks) {
    out.str8(name).be64(usedLength);
    const layout = layoutBlock(fileOffset(at + out.length), usedLength, pageSize);
    out.be32(MAPPED_RAM_VERSION).be64(pageSize).be64(layout.bitmapOffset).be64(layout.pagesOffset);
    pieces.push({ position: fileOffset(at), bytes: out.copy() });
    layouts.push(layout);
    at = layout.end;
    out = new ByteWriter();
  }
  const bytes = out.bytes(ramBodyEnd(sectionId)).copy();
  pieces.push({ position: fileOffset(at), bytes });
  return { pieces, layouts, end: fileOffset(at + bytes.length) };
};
