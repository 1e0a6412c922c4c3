// The head of an ELF core of a PC, which crash, drgn, gdb and the like open.
//
//   0 ┌────────────────┐       guest-physical, and virtual where segments have such addresses
//     │ ELF header     │
//     │ program headers│ PT_NOTE, PT_LOAD …
//     │ section header │ only with more than 65,534 program headers, for their number
//     │ notes          │ registers, VMCOREINFO                                     debugger-notes.ts
//   4K├────────────────┤   0 ┌──────────┐
//     │ RAM            │ ──▶ │ low      │
//     │                │     ├──────────┤ 2 to 3.5 GiB
//     │                │     │ PCI hole │ not in the file
//     │                │  4G ├──────────┤
//     │                │ ──▶ │ high     │
//     └────────────────┘     └──────────┘
//
// Which blocks are in the file, and where each lies, is in physical-map.ts. Program headers begin right behind the ELF header, which
// makedumpfile relies on.

import { LittleEndianWriter } from './little-endian-writer.js';

/** Bytes [offset, offset + bytes) of what follows the head lie at these addresses. */
export interface ElfSegment {
  readonly virtual: number | bigint;
  readonly physical: number;
  readonly offset: number;
  readonly bytes: number;
}

/** What a core has besides memory. */
export interface ElfCoreContent {
  readonly is64Bit: boolean;
  readonly notes: Uint8Array;
  readonly segments: readonly ElfSegment[];
}

export interface ElfCore {
  /** What stands before RAM. */
  readonly head: Uint8Array;
  /** File offset of the first byte of RAM, at or behind the end of the head. */
  readonly ramOffset: number;
}

const ELF_HEADER_BYTES = 64;
const PROGRAM_HEADER_BYTES = 56;
const SECTION_HEADER_BYTES = 64;
/** What RAM begins at a multiple of: readers like pages aligned. */
const ALIGNMENT = 4096;
/** In the headers nothing is aligned: crash takes a core whose first memory says that it is for one of netdump, without KASLR. */
const NO_ALIGNMENT = 0;

const EM_386 = 3;
const EM_X86_64 = 62;
const ET_CORE = 4;
const PT_LOAD = 1;
const PT_NOTE = 4;
const FLAGS_READ_WRITE = 6;
/** In place of the number of program headers: it is in the only section header. */
const PN_XNUM = 0xffff;

/** The file is ELF64 for 32-bit guests, too: their memory with its firmware ends at 4 GiB, or above. */
export const elfCore = ({ is64Bit, notes, segments }: ElfCoreContent): ElfCore => {
  const headerCount = 1 + segments.length;
  const hasMany = headerCount >= PN_XNUM;
  const sectionOffset = ELF_HEADER_BYTES + headerCount * PROGRAM_HEADER_BYTES;
  const noteOffset = sectionOffset + (hasMany ? SECTION_HEADER_BYTES : 0);
  const ramOffset = Math.ceil((noteOffset + notes.length) / ALIGNMENT) * ALIGNMENT;
  const out = new LittleEndianWriter(noteOffset + notes.length);
  out.bytes([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]).skip(9); // 64-bit, little-endian, version 1, System V
  out.u16(ET_CORE);
  out.u16(is64Bit ? EM_X86_64 : EM_386).u32(1);
  out.u64(0); // no entry
  out.u64(ELF_HEADER_BYTES).u64(hasMany ? sectionOffset : 0);
  out.u32(0).u16(ELF_HEADER_BYTES).u16(PROGRAM_HEADER_BYTES);
  out.u16(hasMany ? PN_XNUM : headerCount);
  out.u16(hasMany ? SECTION_HEADER_BYTES : 0);
  out.u16(hasMany ? 1 : 0).u16(0);
  out.u32(PT_NOTE).u32(0).u64(noteOffset).u64(0).u64(0).u64(notes.length).u64(notes.length).u64(4);
  for (const { virtual, physical, offset, bytes } of segments) {
    out.u32(PT_LOAD).u32(FLAGS_READ_WRITE);
    out.u64(ramOffset + offset).u64(virtual);
    out.u64(physical).u64(bytes);
    out.u64(bytes).u64(NO_ALIGNMENT);
  }
  if (hasMany) {
    out.skip(44).u32(headerCount).skip(16); // sh_info
  }
  out.bytes(notes);
  return { head: out.written, ramOffset };
};
