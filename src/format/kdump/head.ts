// What stands at the beginning of a kdump-compressed dump (makedumpfile's format, which crash, drgn and QEMU's dump-guest-memory know):
//
//   block 0   header          machine, block size, sizes of what follows
//         1   sub header      phys_base, where notes and VMCOREINFO are, number of page frames
//             notes, VMCOREINFO
//             bitmap 1        a bit for each page frame that is memory
//             bitmap 2        a bit for each page frame that is in the file: here the same
//             descriptors     one for each bit of bitmap 2, in their order   page-descriptors.ts
//             data            pages, compressed or plain

import { LittleEndianWriter } from '../little-endian-writer.js';
import { KDUMP_PAGE_BYTES, PAGE_DESCRIPTOR_BYTES } from './page-descriptors.js';

/** The unit of the file. */
const BLOCK_BYTES = KDUMP_PAGE_BYTES;

const SIGNATURE = 'KDUMP   ';
/** The first version whose sub header has 64-bit page frame numbers. */
const VERSION = 6;
const UTSNAME_FIELD_BYTES = 65;
/** drgn does not look at the machine where release or version is empty. */
const UNKNOWN = { nodename: '', release: 'unknown', version: 'unknown' };
/** Where what follows the names lies, aligned as C aligns it. */
const TIMESTAMP_OFFSET = 408;
const TIMESTAMP_BYTES = 16;
const COMPRESSED_ZLIB = 1;
/** What QEMU says: nothing but the content of zero pages is left out. */
const DUMP_LEVEL_ZERO = 1;
const SUB_HEADER_BYTES = 104;
const MOST_U32 = 0xffff_ffff;

export interface KdumpContent {
  /** ELF notes: the registers of each processor, and what else there is. */
  readonly notes: Uint8Array;
  /** Processors of the guest, at least one: crash takes a dump of none for damaged. */
  readonly processors: number;
  /** What the kernel says about itself, as text; empty if it is not known. */
  readonly vmcoreinfo: Uint8Array;
  /** What `uname -a` prints in the guest; undefined if that is not known. */
  readonly uname: { readonly nodename: string; readonly release: string; readonly version: string } | undefined;
  /** What the kernel calls phys_base: where it lies against where it was linked for. */
  readonly physBase: bigint;
  /** Page frames that are memory. */
  readonly pageCount: number;
  /** One more than the highest page frame number. */
  readonly frameEnd: number;
}

export interface KdumpHead {
  readonly bytes: Uint8Array;
  /** File offsets of the two bitmaps. */
  readonly bitmaps: readonly [number, number];
  readonly descriptorOffset: number;
  /** File offset of the first page. */
  readonly dataOffset: number;
}

export const kdumpHead = (content: KdumpContent): KdumpHead => {
  const { notes, vmcoreinfo, pageCount, frameEnd } = content;
  const subBlocks = blocksFor(SUB_HEADER_BYTES + notes.length + vmcoreinfo.length);
  const bitmapBlocks = blocksFor(Math.ceil(frameEnd / 8));
  const bitmapOffset = (1 + subBlocks) * BLOCK_BYTES;
  const descriptorOffset = bitmapOffset + 2 * bitmapBlocks * BLOCK_BYTES;
  const out = new LittleEndianWriter(bitmapOffset);
  writeHeader(out, content, { subBlocks, bitmapBlocks: 2 * bitmapBlocks });
  out.skip(BLOCK_BYTES - out.written.length);
  const noteOffset = BLOCK_BYTES + SUB_HEADER_BYTES;
  const place = (offset: number, bytes: number): void => {
    out.u64(bytes === 0 ? 0 : offset).u64(bytes);
  };
  out.u64(content.physBase).u32(DUMP_LEVEL_ZERO).u32(0); // not split
  out.u64(0).u64(0); // first and last page frame of a part
  place(noteOffset + notes.length, vmcoreinfo.length);
  place(noteOffset, notes.length);
  place(0, 0); // nothing was erased
  out.u64(0).u64(0).u64(frameEnd); // 64 bits of a part's page frames, and of max_mapnr
  out.bytes(notes).bytes(vmcoreinfo);
  return {
    bytes: out.written,
    bitmaps: [bitmapOffset, bitmapOffset + bitmapBlocks * BLOCK_BYTES],
    descriptorOffset,
    dataOffset: descriptorOffset + pageCount * PAGE_DESCRIPTOR_BYTES,
  };
};

const writeHeader = (
  out: LittleEndianWriter,
  { processors, uname, pageCount, frameEnd }: KdumpContent,
  { subBlocks, bitmapBlocks }: { readonly subBlocks: number; readonly bitmapBlocks: number },
): void => {
  const { nodename, release, version } = uname ?? UNKNOWN;
  out.bytes(ascii(SIGNATURE)).u32(VERSION);
  for (const name of ['Linux', nodename, release, version, 'x86_64', '']) {
    const bytes = ascii(name).subarray(0, UTSNAME_FIELD_BYTES - 1);
    out.bytes(bytes).skip(UTSNAME_FIELD_BYTES - bytes.length);
  }
  out.skip(TIMESTAMP_OFFSET + TIMESTAMP_BYTES - out.written.length);
  out.u32(COMPRESSED_ZLIB).u32(BLOCK_BYTES).u32(subBlocks).u32(bitmapBlocks);
  out.u32(Math.min(frameEnd, MOST_U32)).u32(Math.min(pageCount, MOST_U32));
  out.u32(0).u32(Math.min(pageCount, MOST_U32)); // no blocks of a dump device; blocks written
  out.u32(0).u32(processors); // the processor that crashed
};

const blocksFor = (bytes: number): number => Math.ceil(bytes / BLOCK_BYTES);

const ascii = (text: string): Uint8Array => new TextEncoder().encode(text);
