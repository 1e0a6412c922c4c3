// The writer's side of the stream: bytes for everything but page records in bulk, which kernels write
// (kernels/kernels.ts `emitRecords`). Every function appends to a ByteWriter or returns fresh bytes; none does I/O.

import { RamferryError } from '../../memory/errors.js';
import { ByteWriter } from '../byte-writer.js';
import { type StreamConfiguration, writeConfiguration } from './configuration.js';
import {
  Capability,
  Command,
  ElementType,
  RAM_SECTION_VERSION,
  RecordFlag,
  STREAM_MAGIC,
  STREAM_VERSION,
} from './constants.js';

/** A RAM block as the setup record lists it (2.3). */
export interface StreamRamBlock {
  /** 1 to 255 printable ASCII characters, unique: the name under which the other QEMU knows the block. */
  readonly name: string;
  /** Bytes, a multiple of the target page size. */
  readonly usedLength: number;
  /** Guest physical address; in the stream only with `x-ignore-shared`. */
  readonly address?: number | undefined;
  /** Bytes; in the stream only after POSTCOPY_ADVISE, and only where it differs from the page size of the host. */
  readonly hostPageSize?: number | undefined;
}

/** The error about a guest of a machine type up to 2.3, whose QEMU takes neither a configuration nor footers. */
export const oldFraming = (what: string): RamferryError =>
  new RamferryError(
    'invalid',
    'OLD_FRAMING',
    `${what} cannot be made of this guest: its stream has no configuration or no footers, as with machine types up to 2.3.`,
    { hint: 'QEMU loads the file as it is. Its memory can be had with convert --to raw, or --to elf.' },
  );

/** Page size of every host that runs the targets we know; blocks on larger pages say so (2.3). */
const HOST_PAGE_SIZE = 4096;

/** The eight bytes that every stream begins with. */
export const streamMagic = (): Uint8Array => new ByteWriter(8).be32(STREAM_MAGIC).be32(STREAM_VERSION).copy();

/** Header and configuration element: the first bytes of every stream. */
export const streamHeader = (configuration: StreamConfiguration): Uint8Array => {
  const out = new ByteWriter().bytes(streamMagic());
  writeConfiguration(out, configuration);
  return out.copy();
};

/**
 * The whole RAM START section: header, setup record, EOS, footer. Block names must be unique. With `isAdvised` it follows
 * POSTCOPY_ADVISE.
 */
export const ramStart = (
  sectionId: number,
  blocks: readonly StreamRamBlock[],
  capabilities: readonly string[] = [],
  isAdvised = false,
): Uint8Array => {
  if (new Set(blocks.map((block) => block.name)).size !== blocks.length) {
    throw new RamferryError('usage', 'USAGE_DUPLICATE_BLOCK', 'Two RAM blocks have the same name.');
  }
  const out = new ByteWriter();
  sectionHeader(out, ElementType.SECTION_START, sectionId, 'ram', 0, RAM_SECTION_VERSION);
  // The total is a multiple of the page size, so adding the flag is setting it.
  out.be64(blocks.reduce((sum, block) => sum + block.usedLength, 0) + RecordFlag.MEM_SIZE);
  for (const block of blocks) {
    out.str8(block.name).be64(block.usedLength);
    if (isAdvised && block.hostPageSize !== undefined && block.hostPageSize !== HOST_PAGE_SIZE) {
      out.be64(block.hostPageSize);
    }
    if (capabilities.includes(Capability.IGNORE_SHARED)) {
      out.be64(block.address ?? 0);
    }
  }
  return out.bytes(ramBodyEnd(sectionId)).copy();
};

/** Opens a PART or END of the RAM section; page records follow, then `ramBodyEnd`. */
export const ramPart = (
  type: typeof ElementType.SECTION_PART | typeof ElementType.SECTION_END,
  sectionId: number,
): Uint8Array => new ByteWriter(5).u8(type).be32(sectionId).copy();

/** EOS record and footer, which close every RAM body. */
export const ramBodyEnd = (sectionId: number): Uint8Array =>
  footer(new ByteWriter(13).be64(RecordFlag.EOS), sectionId).copy();

/** Appends the header of a START or FULL section. */
export const sectionHeader = (
  out: ByteWriter,
  type: typeof ElementType.SECTION_START | typeof ElementType.SECTION_FULL,
  sectionId: number,
  name: string,
  instanceId: number,
  versionId: number,
): ByteWriter => out.u8(type).be32(sectionId).str8(name).be32(instanceId).be32(versionId);

/** Appends a section footer. */
export const footer = (out: ByteWriter, sectionId: number): ByteWriter =>
  out.u8(ElementType.SECTION_FOOTER).be32(sectionId);

/** Appends the head of a page record; without a block name it continues the block of the record before it. */
export const pageRecordHead = (out: ByteWriter, offset: number, flag: number, blockName?: string): ByteWriter =>
  blockName === undefined ? out.be64(offset + flag + RecordFlag.CONTINUE) : out.be64(offset + flag).str8(blockName);

/** Appends the record of a zero page (2.4). */
export const zeroRecord = (out: ByteWriter, offset: number, blockName?: string): ByteWriter =>
  pageRecordHead(out, offset, RecordFlag.ZERO, blockName).u8(0);

/** Appends the record of a page with its content. */
export const normalRecord = (out: ByteWriter, offset: number, page: Uint8Array, blockName?: string): ByteWriter =>
  pageRecordHead(out, offset, RecordFlag.PAGE, blockName).bytes(page);

/** Appends the record of a page as its difference from what the destination holds (xbzrle.ts). */
export const xbzrleRecord = (out: ByteWriter, offset: number, encoded: Uint8Array, blockName?: string): ByteWriter =>
  pageRecordHead(out, offset, RecordFlag.XBZRLE, blockName).u8(1).be16(encoded.length).bytes(encoded);

/** A command element (5.1). */
export const command = (number: number, payload: Uint8Array = new Uint8Array()): Uint8Array =>
  new ByteWriter().u8(ElementType.COMMAND).be16(number).be16(payload.length).bytes(payload).copy();

/** PING: the destination answers PONG with the same 32-bit value. */
export const ping = (value: number): Uint8Array => command(Command.PING, new ByteWriter(4).be32(value).copy());

/** EOF element and VM description: the last bytes of a precopy stream, on a socket and in a file. */
export const streamEnd = (description: string): Uint8Array =>
  new ByteWriter(description.length + 6)
    .u8(ElementType.EOF)
    .u8(ElementType.VMDESCRIPTION)
    .be32(description.length)
    .ascii(description)
    .copy();
