// Notes of ELF files: what debuggers want to know besides memory.

import { LittleEndianWriter } from './little-endian-writer.js';

/** Type, length of the name with its NUL, length of the description. */
const HEADER_BYTES = 12;

const padded = (length: number): number => Math.ceil(length / 4) * 4;

/** One note; name and description are padded to four bytes each. Notes follow each other without anything between them. */
export const elfNote = (name: string, type: number, description: Uint8Array): Uint8Array => {
  const nameBytes = new TextEncoder().encode(`${name}\0`);
  const out = new LittleEndianWriter(HEADER_BYTES + padded(nameBytes.length) + padded(description.length));
  out.u32(nameBytes.length).u32(description.length).u32(type);
  out.bytes(nameBytes).skip(padded(nameBytes.length) - nameBytes.length);
  out.bytes(description).skip(padded(description.length) - description.length);
  return out.written;
};
