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
// Where the hole is no memory file says; it follows from the machine type and the size of RAM (hw/i386 in QEMU), unless
// `max-ram-below-4g` was set, or the guest has so much memory that QEMU moves it for AMD processors.

import { RamferryError } from '../memory/errors.js';

/** RAM bytes [offset, offset + bytes) of the file's block lie at this guest-physical address. */
export interface PhysicalRange {
  readonly address: number;
  readonly offset: number;
  readonly bytes: number;
}

const GIB = 2 ** 30;
const FOUR_GIB = 4 * GIB;

/** QEMU 7.1 and later put high memory at 1 TiB instead, on AMD processors, if it would end behind this. */
const AMD_HOLE = 0xfd_0000_0000;

/** RAM of this size or more leaves a larger hole: a round one, so that huge pages can map what is above it. */
const PC_LAYOUTS = [
  { machine: /^pc(-i440fx-.*)?$/, splitFrom: 0xe000_0000, low: 3 * GIB },
  { machine: /^(pc-)?q35(-.*)?$/, splitFrom: 0xb000_0000, low: 2 * GIB },
] as const;

/**
 * Where the RAM of a PC lies.
 * @throws RamferryError `usage`, for a machine type or a size whose layout is not known
 */
export const pcMemoryLayout = (machine: string, ramBytes: number): PhysicalRange[] => {
  const layout = PC_LAYOUTS.find((candidate) => candidate.machine.test(machine));
  if (layout === undefined) {
    throw new RamferryError(
      'usage',
      'ELF_MACHINE_TYPE',
      `Where the RAM of machine type "${machine}" lies is not known; an ELF core can be made for pc and q35.`,
      { value: machine, hint: 'convert --to raw needs no addresses' },
    );
  }
  if (ramBytes < layout.splitFrom) {
    return [{ address: 0, offset: 0, bytes: ramBytes }];
  }
  const high = { address: FOUR_GIB, offset: layout.low, bytes: ramBytes - layout.low };
  if (high.address + high.bytes > AMD_HOLE) {
    throw new RamferryError(
      'usage',
      'ELF_LAYOUT',
      `Where ${ramBytes} bytes of RAM lie depends on the processor, which the file does not say.`,
      { value: ramBytes, hint: 'convert --to raw needs no addresses' },
    );
  }
  return [{ address: 0, offset: 0, bytes: layout.low }, high];
};

const ELF_HEADER_BYTES = 64;
const PROGRAM_HEADER_BYTES = 56;
/** Where RAM begins: headers and note are far shorter, and readers like pages aligned. */
const RAM_OFFSET = 4096;

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
  /** File offset of the block's first byte; the rest follows without gaps. */
  readonly ramOffset: number;
}

/** An ELF64 core for x86-64. Virtual addresses are the physical ones, as in `dump-guest-memory` without paging. */
export const elfCore = (machine: string, ranges: readonly PhysicalRange[]): ElfCore => {
  const noteOffset = ELF_HEADER_BYTES + (1 + ranges.length) * PROGRAM_HEADER_BYTES;
  const note = noteBytes(machine);
  const out = new LittleEndianWriter(RAM_OFFSET);
  out.bytes([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]).skip(9); // 64-bit, little-endian, version 1, System V
  out.u16(ET_CORE).u16(EM_X86_64).u32(1);
  out.u64(0).u64(ELF_HEADER_BYTES).u64(0); // no entry, program headers, no section headers
  out.u32(0).u16(ELF_HEADER_BYTES).u16(PROGRAM_HEADER_BYTES);
  out
    .u16(1 + ranges.length)
    .u16(0)
    .u16(0)
    .u16(0);
  out.u32(PT_NOTE).u32(0).u64(noteOffset).u64(0).u64(0).u64(note.length).u64(note.length).u64(4);
  for (const { address, offset, bytes } of ranges) {
    out
      .u32(PT_LOAD)
      .u32(FLAGS_READ_WRITE)
      .u64(RAM_OFFSET + offset)
      .u64(address)
      .u64(address);
    out.u64(bytes).u64(bytes).u64(4096);
  }
  out.bytes(note);
  return { head: out.written, ramOffset: RAM_OFFSET };
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

/** Streams are big-endian and have their own writer; only this is not. */
class LittleEndianWriter {
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

  u64(value: number): this {
    this.#view.setBigUint64(this.#length, BigInt(value), true);
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
