// The reader's side of the stream: a parser that bytes are pushed into, resumable at any byte, that holds nothing but the
// device state however long the stream is (spec/qemu-wire-format.md 1, 2, 6).
//
//   header ▶ machine ▶ subsections ▶ element ◀───────────────────────────────────────────┐
//                                      ├─ START ▶ setup ▶ blocks ▶ records ▶ footer ─────┤
//                                      ├─ PART, END ▶ records ▶ footer ──────────────────┤
//                                      ├─ FULL before the first PART ▶ early ▶ footer ───┤
//                                      ├─ COMMAND ───────────────────────────────────────┘
//                                      └─ FULL after RAM, or EOF ▶ device tail ▶ done
//
// Each step takes one unit (a header, one block of the setup, one page record) when all of its bytes are there, and
// nothing otherwise. It checks what QEMU's loader checks, and what that leaves unchecked: duplicate blocks, the total,
// the order of sections.

import { RamferryError } from '../../memory/errors.js';
import { pageIndex } from '../../memory/units.js';
import { ByteWriter } from '../byte-writer.js';
import { be16, be32, be64, be64Exact, isPrintable, latin1 } from '../bytes.js';
import { hex, invalid } from '../invalid.js';
import { ConfigurationSubsection, uuidText } from './configuration.js';
import {
  Capability,
  Command,
  DEFAULT_TARGET_PAGE_SIZE,
  ElementType,
  RAM_SECTION_VERSION,
  RecordFlag,
  STREAM_MAGIC,
  STREAM_VERSION,
  TARGET_PAGE_BITS,
} from './constants.js';
import {
  type DeviceSection,
  EarlyEnd,
  endsEarlySection,
  FOOTER_BYTES,
  isFooter,
  isVirtioMemEarly,
  parseSectionHeader,
  type SectionHeader,
  VIRTIO_MEM_EARLY_FIXED_BYTES,
  virtioMemEarlyBytes,
} from './device-sections.js';
import { DEVICE_TAIL_LIMIT_BYTES, DeviceTailCollector } from './device-tail-collector.js';
import type { ReadRamBlock, StreamHandler } from './stream-handler.js';
import { DEVICE_LIMIT, deviceKey } from './vm-description.js';

/**
 * The most bytes a step can wait for: a record with block id and a 64 KiB page (8 + 256 + 65536), and a command with
 * the longest payload, are both shorter. With a receive buffer of this size the reader always makes progress.
 */
export const LONGEST_UNIT_BYTES = 66_000;

/** Longest machine type name accepted; QEMU's longest has 30 characters, and its own loader allocates any length. */
const MACHINE_NAME_LIMIT = 255;

/** Most capabilities accepted; QEMU has 25 and writes at most two. */
const CAPABILITY_LIMIT = 64;

/** Most RAM blocks accepted; the largest QEMU guests, with a ROM for each of many PCI functions, have hundreds. */
const BLOCK_LIMIT = 4096;

export interface StreamReaderOptions {
  /** File or peer, for errors. */
  readonly file?: string;
  /** Page size of streams that do not carry it; default 4096, which is right for x86. */
  readonly targetPageSize?: number;
  /** Most bytes of device state; default 256 MiB. The reader needs up to three times that while its buffer grows. */
  readonly deviceTailLimit?: number;
}

export class StreamReader {
  readonly #handler: StreamHandler;
  readonly #file: string | undefined;
  readonly #tailLimit: number;

  // The bytes of the current push, and what to do with them.
  #bytes: Uint8Array = new Uint8Array();
  #at = 0;
  #limit = 0;
  /** Stream offset of `#bytes[0]`; negative where the buffer has more in front. */
  #base = 0;
  #step: () => boolean = this.#header;
  /** What the next bytes are part of, for the message about a cut stream. */
  #inside = 'header';
  #error: unknown;
  #done = false;

  // Configuration and commands.
  #machine = '';
  #targetPageBits: number | undefined;
  readonly #capabilities: string[] = [];
  #capabilitiesLeft = 0;
  #uuid: string | undefined;
  readonly #subsections = new Set<string>();
  #pageSize: number;
  #returnPathOpen = false;
  readonly #warnings: string[] = [];

  // RAM.
  #ram: 'before' | 'started' | 'iterating' | 'ended' = 'before';
  #ramSectionId = 0;
  #ramSectionType: number = ElementType.SECTION_START;
  #ramTotal = 0;
  #ramLeft = 0;
  readonly #blocks: ReadRamBlock[] = [];
  readonly #blockByName = new Map<string, ReadRamBlock>();
  /** Block of the last page record; persists across sections (2.4). */
  #block: ReadRamBlock | undefined;

  // Devices.
  readonly #early = new ByteWriter(0);
  readonly #earlyDevices: DeviceSection[] = [];
  /** Header of the early section being collected, and where its body starts in `#early` and in the stream. */
  #earlyHeader: SectionHeader = { section: 0, name: '', instance: 0, version: 0, bytes: 0 };
  #earlyBody = 0;
  #earlyOffset = 0;
  #tail: DeviceTailCollector | undefined;

  constructor(handler: StreamHandler, options: StreamReaderOptions = {}) {
    this.#handler = handler;
    this.#file = options.file;
    this.#tailLimit = options.deviceTailLimit ?? DEVICE_TAIL_LIMIT_BYTES;
    this.#pageSize = options.targetPageSize ?? DEFAULT_TARGET_PAGE_SIZE;
  }

  /** Stream offset of the next byte to push. */
  get position(): number {
    return this.#base + this.#at;
  }

  /** Whether the stream ended and `handler.end` was called. Bytes pushed from here on are not consumed. */
  get done(): boolean {
    return this.#done;
  }

  /** Bytes of device state held at this moment; whatever else the reader holds is bounded by 2 MiB (block names). */
  get heldBytes(): number {
    return this.#early.length + (this.#tail?.length ?? 0);
  }

  /**
   * Parses the bytes [start, end). Returns how many it consumed; the rest must be pushed again with more behind it,
   * and is shorter than LONGEST_UNIT_BYTES unless the stream is done.
   * @throws RamferryError of kind `invalid`, its offset counted from the start of the stream; again at every later call.
   */
  push(bytes: Uint8Array, start = 0, end = bytes.length): number {
    this.#base += this.#at - start;
    this.#bytes = bytes;
    this.#at = start;
    this.#limit = end;
    this.#guard(() => {
      while (!this.#done && this.#step()) {}
    });
    return this.#at - start;
  }

  /**
   * The peer ended, or the file did. Does nothing if the stream is done; finishes a stream whose VM description is
   * missing.
   * @throws RamferryError with code STREAM_INCOMPLETE if state is missing.
   */
  end(): void {
    this.#guard(() => {
      if (this.#done) {
        return;
      }
      if (this.#tail === undefined) {
        throw this.#invalid('STREAM_INCOMPLETE', `The stream ends inside its ${this.#inside}`, this.#limit - this.#at);
      }
      this.#finish(this.#tail);
    });
  }

  #guard(body: () => void): void {
    if (this.#error !== undefined) {
      throw this.#error;
    }
    try {
      body();
    } catch (error) {
      this.#error =
        error instanceof RamferryError && this.#file !== undefined && error.file === undefined
          ? new RamferryError(error.kind, error.code, error.message, { ...details(error), file: this.#file })
          : error;
      throw this.#error;
    }
  }

  // Units.

  #has(byteCount: number): boolean {
    return this.#limit - this.#at >= byteCount;
  }

  /** The error about something `ahead` bytes after the current position. */
  #invalid(code: string, statement: string, ahead = 0, value?: number | bigint | string, hint?: string): RamferryError {
    return invalid(code, statement, this.position + ahead, {
      ...(value !== undefined && { value }),
      ...(hint !== undefined && { hint }),
    });
  }

  #next(step: () => boolean, inside: string): true {
    this.#step = step;
    this.#inside = inside;
    return true;
  }

  #name(ahead: number, length: number, what: string): string {
    const at = this.#at + ahead;
    const name = latin1(this.#bytes, at, at + length);
    if (!isPrintable(this.#bytes, at, at + length)) {
      throw this.#invalid('NAME_NOT_PRINTABLE', `The ${what} ${JSON.stringify(name)} is not printable`, ahead, name);
    }
    return name;
  }

  // Header and configuration (1.1, 1.2).

  #header(): boolean {
    if (!this.#has(8)) {
      return false;
    }
    const magic = be32(this.#bytes, this.#at);
    const version = be32(this.#bytes, this.#at + 4);
    if (magic !== STREAM_MAGIC) {
      throw this.#invalid(
        'NOT_A_STREAM',
        `This is not a migration stream: it starts with ${hex(magic)}, not "QEVM"`,
        0,
        magic,
      );
    }
    if (version !== STREAM_VERSION) {
      throw this.#invalid('STREAM_VERSION', `The stream has version ${version}, not ${STREAM_VERSION}`, 4, version);
    }
    this.#at += 8;
    return this.#next(this.#machineName, 'configuration');
  }

  #machineName(): boolean {
    if (this.#has(1) && this.#bytes[this.#at] !== ElementType.CONFIGURATION) {
      const found = this.#bytes[this.#at];
      throw this.#invalid(
        'NO_CONFIGURATION',
        `The stream has element ${hex(found)} instead of a configuration`,
        0,
        found,
      );
    }
    if (!this.#has(5)) {
      return false;
    }
    const length = be32(this.#bytes, this.#at + 1);
    if (length > MACHINE_NAME_LIMIT) {
      throw this.#invalid('MACHINE_NAME_LENGTH', `The machine type name has ${length} bytes`, 1, length);
    }
    if (!this.#has(5 + length)) {
      return false;
    }
    this.#machine = this.#name(5, length, 'machine type name');
    this.#at += 5 + length;
    return this.#next(this.#subsection, 'configuration');
  }

  #subsection(): boolean {
    if (!this.#has(1)) {
      return false;
    }
    if (this.#bytes[this.#at] !== ElementType.SUBSECTION) {
      return this.#configurationEnd();
    }
    if (!this.#has(2) || !this.#has(6 + this.#bytes[this.#at + 1])) {
      return false;
    }
    const nameLength = this.#bytes[this.#at + 1];
    const name = this.#name(2, nameLength, 'subsection name');
    const version = be32(this.#bytes, this.#at + 2 + nameLength);
    const body = this.#at + 6 + nameLength;
    if (version !== 1 || this.#subsections.has(name)) {
      const what = version === 1 ? 'appears twice' : `has version ${version}`;
      throw this.#invalid('CONFIGURATION_SUBSECTION', `The configuration's subsection "${name}" ${what}`, 0, name);
    }
    switch (name) {
      case ConfigurationSubsection.TARGET_PAGE_BITS: {
        if (!this.#has(10 + nameLength)) {
          return false;
        }
        const bits = be32(this.#bytes, body);
        if (bits < TARGET_PAGE_BITS.smallest || bits > TARGET_PAGE_BITS.largest) {
          throw this.#invalid('TARGET_PAGE_BITS', `The target page size is 2^${bits} bytes`, body - this.#at, bits);
        }
        this.#targetPageBits = bits;
        this.#pageSize = 2 ** bits;
        this.#at = body + 4;
        break;
      }
      case ConfigurationSubsection.UUID:
        if (!this.#has(22 + nameLength)) {
          return false;
        }
        this.#uuid = uuidText(this.#bytes.subarray(body, body + 16));
        this.#at = body + 16;
        break;
      case ConfigurationSubsection.CAPABILITIES: {
        if (!this.#has(10 + nameLength)) {
          return false;
        }
        const count = be32(this.#bytes, body);
        if (count > CAPABILITY_LIMIT) {
          throw this.#invalid(
            'CAPABILITY_COUNT',
            `The configuration lists ${count} capabilities`,
            body - this.#at,
            count,
          );
        }
        this.#capabilitiesLeft = count;
        this.#at = body + 4;
        this.#next(this.#capability, 'list of capabilities');
        break;
      }
      default:
        throw this.#invalid(
          'CONFIGURATION_SUBSECTION',
          `The configuration has an unknown subsection "${name}"`,
          0,
          name,
        );
    }
    this.#subsections.add(name);
    return true;
  }

  #capability(): boolean {
    if (this.#capabilitiesLeft === 0) {
      return this.#next(this.#subsection, 'configuration');
    }
    if (!this.#has(1) || !this.#has(1 + this.#bytes[this.#at])) {
      return false;
    }
    const length = this.#bytes[this.#at];
    const name = this.#name(1, length, 'capability');
    this.#capabilities.push(name);
    if (name !== Capability.IGNORE_SHARED && name !== Capability.MAPPED_RAM) {
      this.#warnings.push(`The stream names capability "${name}", which QEMU does not write there.`);
    }
    this.#capabilitiesLeft -= 1;
    this.#at += 1 + length;
    return true;
  }

  #configurationEnd(): boolean {
    this.#handler.configuration?.({
      machine: this.#machine,
      targetPageBits: this.#targetPageBits,
      capabilities: this.#capabilities,
      uuid: this.#uuid,
    });
    if (this.#capabilities.includes(Capability.MAPPED_RAM)) {
      throw this.#invalid('MAPPED_RAM_NOT_STREAM', 'This is a mapped-ram file, which is not read in sequence');
    }
    return this.#next(this.#element, 'sequence of sections');
  }

  // Elements (1.4, 1.5).

  #element(): boolean {
    if (!this.#has(1)) {
      return false;
    }
    const type = this.#bytes[this.#at];
    switch (type) {
      case ElementType.SECTION_START:
        return this.#ramStart();
      case ElementType.SECTION_PART:
      case ElementType.SECTION_END:
        return this.#ramPart(type);
      case ElementType.SECTION_FULL:
        return this.#ram === 'started' ? this.#earlySection() : this.#deviceTail('A device section');
      case ElementType.COMMAND:
        return this.#command();
      case ElementType.EOF:
        return this.#deviceTail('EOF');
      default:
        throw this.#invalid('UNKNOWN_ELEMENT', `The stream has an element of unknown type ${hex(type)}`, 0, type);
    }
  }

  #sectionHeader(): SectionHeader | undefined {
    return parseSectionHeader(this.#bytes, this.#at, this.#limit, this.position);
  }

  #ramStart(): boolean {
    const header = this.#sectionHeader();
    if (header === undefined) {
      return false;
    }
    const { name, instance, version, section, bytes } = header;
    if (name !== 'ram' || instance !== 0) {
      throw this.#invalid(
        'UNKNOWN_ITERABLE',
        `The stream has an iterable section "${name}" (instance ${instance}), whose data only its device understands`,
        5,
        name,
        'Migrate without that device, or without the capability that adds it.',
      );
    }
    if (version !== RAM_SECTION_VERSION) {
      throw this.#invalid(
        'RAM_VERSION',
        `The RAM section has version ${version}, not ${RAM_SECTION_VERSION}`,
        bytes - 4,
        version,
      );
    }
    if (this.#ram !== 'before') {
      throw this.#invalid('SECTION_ORDER', 'RAM starts a second time');
    }
    this.#ram = 'started';
    this.#ramSectionId = section;
    this.#at += bytes;
    return this.#next(this.#ramTotalRecord, 'RAM setup');
  }

  #ramPart(type: number): boolean {
    if (!this.#has(5)) {
      return false;
    }
    const id = be32(this.#bytes, this.#at + 1);
    if (this.#ram === 'before' || id !== this.#ramSectionId) {
      throw this.#invalid('UNKNOWN_SECTION', `Section ${id} goes on, but never started`, 1, id);
    }
    if (this.#ram === 'ended') {
      throw this.#invalid('SECTION_ORDER', 'RAM goes on after its end', 0, type);
    }
    this.#ram = type === ElementType.SECTION_END ? 'ended' : 'iterating';
    this.#ramSectionType = type;
    this.#at += 5;
    return this.#next(this.#records, 'page records');
  }

  #ramFooter(): boolean {
    if (!this.#has(FOOTER_BYTES)) {
      return false;
    }
    this.#footer(this.#ramSectionId);
    this.#next(this.#element, 'sequence of sections');
    this.#handler.ramSectionEnd?.(this.#ramSectionType);
    return true;
  }

  #footer(id: number): void {
    if (!isFooter(this.#bytes, this.#at, this.#limit, id)) {
      const found = hexBytes(this.#bytes, this.#at, FOOTER_BYTES);
      throw this.#invalid('SECTION_FOOTER', `Section ${id} ends with ${found} instead of its footer`, 0, found);
    }
    this.#at += FOOTER_BYTES;
  }

  // RAM setup record (2.3).

  #ramTotalRecord(): boolean {
    if (!this.#has(8)) {
      return false;
    }
    const flags = be32(this.#bytes, this.#at + 4) % this.#pageSize;
    const total = be64(this.#bytes, this.#at) - flags;
    if (flags !== RecordFlag.MEM_SIZE) {
      throw this.#invalid('RAM_SETUP', `RAM starts with flags ${hex(flags)} instead of its setup record`, 0, flags);
    }
    if (!(total >= 0)) {
      throw this.#tooLong('The total size of RAM', 0);
    }
    this.#ramTotal = total;
    this.#ramLeft = total;
    this.#at += 8;
    return this.#next(this.#ramBlock, 'list of RAM blocks');
  }

  #ramBlock(): boolean {
    if (this.#ramLeft === 0) {
      this.#handler.ramSetup({
        sectionId: this.#ramSectionId,
        targetPageSize: this.#pageSize,
        totalBytes: this.#ramTotal,
        blocks: this.#blocks,
      });
      return this.#next(this.#records, 'RAM setup');
    }
    const withAddress = this.#capabilities.includes(Capability.IGNORE_SHARED);
    if (!this.#has(1) || !this.#has(9 + this.#bytes[this.#at] + (withAddress ? 8 : 0))) {
      return false;
    }
    const nameLength = this.#bytes[this.#at];
    const name = this.#name(1, nameLength, 'name of a RAM block');
    const usedLength = be64(this.#bytes, this.#at + 1 + nameLength);
    if (nameLength === 0 || this.#blockByName.has(name)) {
      const what = nameLength === 0 ? 'A RAM block has no name' : `RAM block "${name}" is listed twice`;
      throw this.#invalid('RAM_BLOCK_NAME', what, 0, name);
    }
    if (Number.isNaN(usedLength)) {
      throw this.#tooLong(`The length of RAM block "${name}"`, 1 + nameLength);
    }
    if (usedLength === 0 || usedLength % this.#pageSize !== 0) {
      const statement = `RAM block "${name}" has ${usedLength} bytes, which are not whole pages of ${this.#pageSize}`;
      throw this.#invalid('RAM_BLOCK_LENGTH', statement, 1 + nameLength, usedLength);
    }
    if (usedLength > this.#ramLeft) {
      const statement = `RAM block "${name}" has ${usedLength} bytes, but the total leaves only ${this.#ramLeft}`;
      throw this.#invalid('RAM_TOTAL', statement, 1 + nameLength, usedLength);
    }
    const address = withAddress ? be64(this.#bytes, this.#at + 9 + nameLength) : undefined;
    if (Number.isNaN(address)) {
      throw this.#tooLong(`The address of RAM block "${name}"`, 9 + nameLength);
    }
    if (this.#blocks.length === BLOCK_LIMIT) {
      throw this.#invalid('RAM_BLOCK_COUNT', `The stream lists more than ${BLOCK_LIMIT} RAM blocks`, 0, BLOCK_LIMIT);
    }
    const block = { index: this.#blocks.length, name, usedLength, address };
    this.#blocks.push(block);
    this.#blockByName.set(name, block);
    this.#ramLeft -= usedLength;
    this.#at += 9 + nameLength + (withAddress ? 8 : 0);
    return true;
  }

  #tooLong(what: string, ahead: number): RamferryError {
    const value = be64Exact(this.#bytes, this.#at + ahead);
    return this.#invalid('LENGTH_TOO_LARGE', `${what} is ${hex(value)}, beyond what any machine has`, ahead, value);
  }

  // Page records (2.2, 2.4, 2.5).

  #records(): boolean {
    while (this.#has(8)) {
      if (this.#block !== undefined && (this.#bytes[this.#at + 7] & RecordFlag.CONTINUE) !== 0) {
        const taken = this.#handler.records?.(this.#block, this.#bytes, this.#at, this.#limit, this.position) ?? 0;
        this.#at += taken;
        if (taken > 0 && !this.#has(8)) {
          return false;
        }
      }
      const flags = be32(this.#bytes, this.#at + 4) % this.#pageSize;
      if (flags === RecordFlag.EOS) {
        this.#at += 8;
        return this.#next(this.#ramFooter, 'footer of RAM');
      }
      if (flags === RecordFlag.HOOK) {
        this.#at += 8;
      } else if (!this.#pageRecord(flags)) {
        return false;
      }
    }
    return false;
  }

  /** One page record; false if more bytes are needed. */
  #pageRecord(flags: number): boolean {
    const continued = (flags & RecordFlag.CONTINUE) !== 0;
    const kind = flags - (continued ? RecordFlag.CONTINUE : 0);
    if (kind !== RecordFlag.ZERO && kind !== RecordFlag.PAGE && kind !== RecordFlag.XBZRLE) {
      throw this.#badFlags(flags);
    }
    let head = 8;
    let block = this.#block;
    if (!continued) {
      if (!this.#has(9) || !this.#has(9 + this.#bytes[this.#at + 8])) {
        return false;
      }
      const length = this.#bytes[this.#at + 8];
      const name = this.#name(9, length, 'name of a RAM block');
      head += 1 + length;
      block = this.#blockByName.get(name);
      if (block === undefined) {
        throw this.#invalid('UNKNOWN_RAM_BLOCK', `A page belongs to RAM block "${name}", which is not listed`, 8, name);
      }
    } else if (block === undefined) {
      throw this.#invalid('NO_CURRENT_BLOCK', 'A page continues a RAM block, but no page before it names one');
    }
    const offset = be64(this.#bytes, this.#at) - flags;
    if (!(offset < block.usedLength)) {
      const value = be64Exact(this.#bytes, this.#at) - BigInt(flags);
      const statement = `A page lies at ${hex(value)} of RAM block "${block.name}", which has ${hex(block.usedLength)} bytes`;
      throw this.#invalid('PAGE_OUTSIDE_BLOCK', statement, 0, value);
    }
    const page = pageIndex(offset / this.#pageSize);
    const at = this.#at + head;
    const payload = kind === RecordFlag.PAGE ? this.#pageSize : kind === RecordFlag.ZERO ? 1 : 3;
    if (!this.#has(head + payload)) {
      return false;
    }
    let taken = head + payload;
    if (kind === RecordFlag.PAGE) {
      this.#handler.page(block, page, this.#bytes, at, this.position + head);
    } else if (kind === RecordFlag.ZERO) {
      const fill = this.#bytes[at];
      if (fill !== 0) {
        const statement = `A page is filled with byte ${hex(fill)}`;
        throw this.#invalid(
          'ZERO_PAGE_FILL',
          statement,
          head,
          fill,
          'QEMU writes only 0; up to 7.2 it would accept this.',
        );
      }
      this.#handler.zeroPage(block, page);
    } else {
      const length = be16(this.#bytes, at + 1);
      if (this.#bytes[at] !== 1 || length > this.#pageSize) {
        const statement = `An XBZRLE page has method ${this.#bytes[at]} and ${length} bytes`;
        throw this.#invalid('XBZRLE_HEADER', statement, head, length);
      }
      taken += length;
      if (!this.#has(taken)) {
        return false;
      }
      this.#handler.xbzrlePage(block, page, this.#bytes, at + 3, length, this.position + head + 3);
    }
    this.#block = block;
    this.#at += taken;
    return true;
  }

  #badFlags(flags: number): RamferryError {
    switch (flags & ~RecordFlag.CONTINUE) {
      case RecordFlag.COMPRESS_PAGE:
        return this.#invalid(
          'COMPRESSED_PAGE',
          'A page is compressed, which QEMU could do until 9.0',
          0,
          flags,
          'Migrate without the capability "compress".',
        );
      case RecordFlag.MULTIFD_FLUSH:
        return this.#invalid(
          'MULTIFD_STREAM',
          'The source sends its pages over multifd channels, not in this stream',
          0,
          flags,
          'Migrate without the capability "multifd".',
        );
      default:
        return this.#invalid('RECORD_FLAGS', `A record has the flags ${hex(flags)}`, 0, flags);
    }
  }

  // Commands (5.1, 5.2).

  #command(): boolean {
    if (!this.#has(5)) {
      return false;
    }
    const number = be16(this.#bytes, this.#at + 1);
    const length = be16(this.#bytes, this.#at + 3);
    const expected = this.#commandLength(number);
    if (length !== expected && !(number === Command.POSTCOPY_ADVISE && length === 0)) {
      throw this.#invalid('COMMAND_LENGTH', `Command ${number} has ${length} bytes instead of ${expected}`, 3, length);
    }
    if (!this.#has(5 + length)) {
      return false;
    }
    if (number === Command.PING && !this.#returnPathOpen) {
      throw this.#invalid('PING_WITHOUT_RETURN_PATH', 'The source asks for an answer without a return path', 0, number);
    }
    if (number === Command.POSTCOPY_ADVISE && length === 16) {
      this.#checkAdvise();
    }
    this.#returnPathOpen ||= number === Command.OPEN_RETURN_PATH;
    this.#handler.command?.(number, this.#bytes.subarray(this.#at + 5, this.#at + 5 + length));
    this.#at += 5 + length;
    return true;
  }

  /** Payload bytes of a command that a precopy stream may hold. */
  #commandLength(number: number): number {
    switch (number) {
      case Command.OPEN_RETURN_PATH:
      case Command.SWITCHOVER_START:
        return 0;
      case Command.PING:
        return 4;
      case Command.POSTCOPY_ADVISE:
        return 16;
      case Command.POSTCOPY_LISTEN:
      case Command.POSTCOPY_RUN:
      case Command.POSTCOPY_RAM_DISCARD:
      case Command.PACKAGED:
      case Command.POSTCOPY_RESUME:
      case Command.RECV_BITMAP:
        throw this.#invalid('POSTCOPY_STREAM', `The source switches to postcopy (command ${number})`, 1, number);
      case Command.ENABLE_COLO:
        throw this.#invalid('COLO_STREAM', 'The stream is one of COLO, which never ends', 1, number);
      default:
        throw this.#invalid('UNKNOWN_COMMAND', `The stream has an unknown command ${number}`, 1, number);
    }
  }

  /**
   * With postcopy-ram on, blocks of other page sizes than the usual have one more field in the setup record, and
   * nothing in the stream says which blocks do (2.3). The summary of ADVISE, the OR of all page sizes, tells when
   * there are none.
   */
  #checkAdvise(): void {
    const summary = be64(this.#bytes, this.#at + 5);
    const pageSize = be64(this.#bytes, this.#at + 13);
    if (summary !== this.#pageSize || pageSize !== this.#pageSize) {
      throw this.#invalid(
        'POSTCOPY_PAGE_SIZES',
        `The source announces postcopy with page sizes ${hex(be64Exact(this.#bytes, this.#at + 5))}`,
        5,
        be64Exact(this.#bytes, this.#at + 5),
        'Turn the capability "postcopy-ram" off at the source.',
      );
    }
  }

  // Early device sections: their end must be found before the description is known (1.8, 1.10).

  #earlySection(): boolean {
    const header = this.#sectionHeader();
    if (header === undefined) {
      return false;
    }
    if (this.#earlyDevices.length === DEVICE_LIMIT) {
      throw this.#invalid('TOO_MANY_DEVICES', `The stream has more than ${DEVICE_LIMIT} device sections`);
    }
    this.#collectEarly(this.#at + header.bytes);
    this.#earlyHeader = header;
    this.#earlyBody = this.#early.length;
    this.#earlyOffset = this.position;
    return this.#next(isVirtioMemEarly(header) ? this.#virtioMemEarly : this.#earlyByFooter, 'early device section');
  }

  #collectEarly(until: number): void {
    if (this.#early.length + until - this.#at > this.#tailLimit) {
      const statement = `The early device state is longer than ${this.#tailLimit} bytes`;
      throw this.#invalid('DEVICE_STATE_TOO_LARGE', statement, 0, this.#tailLimit);
    }
    this.#early.bytes(this.#bytes, this.#at, until);
    this.#at = until;
  }

  /** virtio-mem says itself how long its early section is. */
  #virtioMemEarly(): boolean {
    const length = (): number => this.#early.length - this.#earlyBody;
    const collect = (bytes: number): boolean => {
      this.#collectEarly(Math.min(this.#limit, this.#at + bytes - length()));
      return length() === bytes;
    };
    if (length() < VIRTIO_MEM_EARLY_FIXED_BYTES && !collect(VIRTIO_MEM_EARLY_FIXED_BYTES)) {
      return false;
    }
    const bytes = virtioMemEarlyBytes(this.#early.view.subarray(this.#earlyBody));
    if (!(bytes < this.#tailLimit)) {
      throw this.#invalid(
        'EARLY_SECTION',
        `The region of "${this.#earlyHeader.name}" has an impossible size`,
        -length(),
      );
    }
    return collect(bytes) && this.#has(FOOTER_BYTES) && this.#earlyEnd();
  }

  /** Any other early section ends at the first footer with its id that another element follows. */
  #earlyByFooter(): boolean {
    for (;;) {
      const found = this.#bytes.subarray(0, this.#limit).indexOf(ElementType.SECTION_FOOTER, this.#at);
      this.#collectEarly(found < 0 ? this.#limit : found);
      if (found < 0) {
        return false;
      }
      switch (endsEarlySection(this.#bytes, this.#at, this.#limit, this.#earlyHeader.section, this.#ramSectionId)) {
        case EarlyEnd.yes:
          return this.#earlyEnd();
        case EarlyEnd.needMore:
          return false;
        default:
          this.#collectEarly(this.#at + 1);
      }
    }
  }

  #earlyEnd(): boolean {
    const { section, name, instance, version } = this.#earlyHeader;
    const bytes = this.#early.length - this.#earlyBody;
    const start = this.#at;
    this.#footer(section);
    this.#early.bytes(this.#bytes, start, this.#at);
    this.#earlyDevices.push({ section, name, instance, version, offset: this.#earlyOffset, bytes });
    return this.#next(this.#element, 'sequence of sections');
  }

  // Device tail (1.7, 1.9, 1.10).

  #deviceTail(what: string): boolean {
    if (this.#ram === 'before') {
      throw this.#invalid('SECTION_ORDER', `${what} comes before RAM`);
    }
    if (this.#ram !== 'ended') {
      this.#warnings.push('RAM has no END section, as in a background snapshot.');
    }
    this.#tail = new DeviceTailCollector(this.position, this.#tailLimit);
    return this.#next(this.#tailBytes, 'device state');
  }

  #tailBytes(): boolean {
    const tail = this.#tail!;
    this.#at += tail.append(this.#bytes, this.#at, this.#limit);
    if (tail.complete) {
      this.#finish(tail);
    }
    return false;
  }

  #finish(tail: DeviceTailCollector): void {
    const { sections, description, descriptionState, described, devices, guessed } = tail.finish();
    const early = this.#earlyDevices;
    const known = new Set<number>([this.#ramSectionId]);
    for (const device of [...early, ...devices]) {
      if (known.has(device.section)) {
        const statement = `Two sections have the id ${device.section}, the second is "${device.name}"`;
        throw invalid('DEVICE_SECTION', statement, device.offset, { value: device.section });
      }
      known.add(device.section);
    }
    for (const device of early) {
      const bytes = described?.get(deviceKey(device.name, device.instance))?.bytes;
      if (described !== undefined && bytes !== device.bytes) {
        const statement = `Early device section "${device.name}" has ${device.bytes} bytes, but ${bytes ?? 'none'} are described`;
        throw invalid('DEVICE_SECTION', statement, device.offset, { value: device.bytes });
      }
    }
    if (described === undefined) {
      const how = { present: '', empty: 'empty', absent: 'missing', cut: 'cut' }[descriptionState];
      this.#warnings.push(
        `The VM description is ${how}: ends of device sections were found by their footers, a heuristic.`,
      );
    } else if (guessed.length > 0) {
      const names = guessed.slice(0, 10).map((device) => `"${device.name}"`);
      this.#warnings.push(`${guessed.length} sections do not have the described length: ${names.join(', ')}.`);
    }
    const missing = described === undefined ? 0 : described.size - early.length - devices.length;
    if (missing > 0) {
      this.#warnings.push(`The VM description names ${missing} devices that have no section.`);
    }
    this.#done = true;
    this.#tail = undefined;
    this.#handler.end({
      bytes: this.position,
      tail: { early: this.#early.copy(), sections, description },
      devices: [...early, ...devices],
      backgroundSnapshot: this.#ram !== 'ended',
      complete: descriptionState !== 'cut',
      warnings: this.#warnings,
    });
  }
}

/** The optional details of an error, as they were given to it. */
const details = ({ offset, value, hint, cause }: RamferryError): object => ({
  ...(offset !== undefined && { offset }),
  ...(value !== undefined && { value }),
  ...(hint !== undefined && { hint }),
  ...(cause !== undefined && { cause }),
});

const hexBytes = (bytes: Uint8Array, at: number, length: number): string =>
  Array.from(bytes.subarray(at, at + length), (byte) => byte.toString(16).padStart(2, '0')).join(' ');
