// The RAM of a PC as an ELF core file, which gdb, readelf and the like open: guest memory by guest-physical address.
//
//   0 ┌────────────────┐       guest-physical
//     │ ELF header     │
//     │ program headers│ PT_NOTE, PT_LOAD low, PT_LOAD high
//     │ note           │ which machine it was
//   4K├────────────────┤   0 ┌──────────┐
//     │ RAM            │ ──▶ │ low      │
//     │                │     ├──────────┤ 2 to 3.5 GiB
//     │                │     │ PCI hole │ not in the file
//     │                │  4G ├──────────┤
//     │                │ ──▶ │ high     │
//     └────────────────┘     └──────────┘
//
// Which blocks are in the file, and where each lies, is in physical-map.ts.

import { LittleEndianWriter } from './little-endian-writer.js';

/** Bytes [offset, offset + bytes) of what follows the head lie at this guest-physical address. */
export interface ElfSegment {
  readonly address: number;
  readonly offset: number;
  readonly bytes: number;
}

const ELF_HEADER_BYTES = 64;
const PROGRAM_HEADER_BYTES = 56;
/** What RAM begins at a multiple of: readers like pages aligned. */
const ALIGNMENT = 4096;

const EM_X86_64 = 62;
const ET_CORE = 4;
const PT_LOAD = 1;
const PT_NOTE = 4;
const FLAGS_READ_WRITE = 6;

/** Ours, so that nobody takes the note for registers: those are in the device state, which is not taken apart. */
const NOTE_NAME = 'ramferry';
const NOTE_TYPE = 0x4d52; // 'RM'

export interface ElfCore {
  /** What stands before RAM. */
  readonly head: Uint8Array;
  /** File offset of the first byte of RAM, at or behind the end of the head. */
  readonly ramOffset: number;
}

/** An ELF64 core for x86-64. Virtual addresses are the physical ones, as in `dump-guest-memory` without paging. */
export const elfCore = (machine: string, segments: readonly ElfSegment[]): ElfCore => {
  const noteOffset = ELF_HEADER_BYTES + (1 + segments.length) * PROGRAM_HEADER_BYTES;
  const note = noteBytes(machine);
  const ramOffset = Math.ceil((noteOffset + note.length) / ALIGNMENT) * ALIGNMENT;
  const out = new LittleEndianWriter(ramOffset);
  out.bytes([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]).skip(9); // 64-bit, little-endian, version 1, System V
  out.u16(ET_CORE).u16(EM_X86_64).u32(1);
  out.u64(0).u64(ELF_HEADER_BYTES).u64(0); // no entry, program headers, no section headers
  out.u32(0).u16(ELF_HEADER_BYTES).u16(PROGRAM_HEADER_BYTES);
  out
    .u16(1 + segments.length)
    .u16(0)
    .u16(0)
    .u16(0);
  out.u32(PT_NOTE).u32(0).u64(noteOffset).u64(0).u64(0).u64(note.length).u64(note.length).u64(4);
  for (const { address, offset, bytes } of segments) {
    out
      .u32(PT_LOAD)
      .u32(FLAGS_READ_WRITE)
      .u64(ramOffset + offset)
      .u64(address)
      .u64(address);
    out.u64(bytes).u64(bytes).u64(ALIGNMENT);
  }
  out.bytes(note);
  return { head: out.written, ramOffset };
};

/** Name and description, each padded to four bytes. QEMU keeps machine type names below 256 bytes. */
const noteBytes = (machine: string): Uint8Array => {
  const padded = (length: number): number => Math.ceil(length / 4) * 4;
  const text = new TextEncoder().encode(`machine=${machine.slice(0, 256)}`);
  const out = new LittleEndianWriter(12 + padded(NOTE_NAME.length + 1) + padded(text.length));
  out
    .u32(NOTE_NAME.length + 1)
    .u32(text.length)
    .u32(NOTE_TYPE);
  out.bytes(new TextEncoder().encode(NOTE_NAME)).skip(padded(NOTE_NAME.length + 1) - NOTE_NAME.length);
  out.bytes(text).skip(padded(text.length) - text.length);
  return out.written;
};
