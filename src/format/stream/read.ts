// The reader's side of the stream: a parser that bytes are pushed into, resumable at any byte, that holds nothing but the
// device state however long the stream is (spec/qemu-wire-format.md 1, 2, 6).
//
//   header ▶ [configuration] ▶ element ◀────────────────────────────────────────────┐
//                              ├─ START ▶ setup (ram-setup-reader) ▶ records ▶ footer ─┤
//                              ├─ PART, END ▶ records (page-record-reader) ▶ footer ───┤
//                              ├─ the same of other devices (iterable-sections) ───────┤
//                              ├─ FULL before the first PART (early-section-reader) ───┤
//                              ├─ COMMAND (command-reader), with PACKAGED ▶ package ────┘
//                              └─ FULL after RAM, or EOF ▶ device tail (device-tail-collector) ▶ done
//
// Each step takes one unit (a header, one block of the setup, one page record) when all of its bytes are there, and
// nothing otherwise. It checks what QEMU's loader checks, and what that leaves unchecked: duplicate blocks, the total,
// the order of sections.

import { ByteWriter } from '../byte-writer.js';
import { be32, be64 } from '../bytes.js';
import { hex, invalid, withFile } from '../invalid.js';
import { CommandReader } from './command-reader.js';
import { ConfigurationReader } from './configuration-reader.js';
import {
  Capability,
  DEFAULT_TARGET_PAGE_SIZE,
  ElementType,
  RAM_SECTION_VERSION,
  RecordFlag,
  STREAM_MAGIC,
  STREAM_VERSION,
} from './constants.js';
import { Cursor } from './cursor.js';
import {
  type DeviceSection,
  FOOTER_BYTES,
  isFooter,
  readSectionHeader,
  type SectionHeader,
} from './device-sections.js';
import type { DeviceTail } from './device-tail.js';
import { type CollectedTail, DEVICE_TAIL_LIMIT_BYTES, DeviceTailCollector } from './device-tail-collector.js';
import { EarlySectionReader } from './early-section-reader.js';
import { IterableSectionReader } from './iterable-sections.js';
import { PageRecordReader } from './page-record-reader.js';
import { PageSize } from './page-size.js';
import { PostcopyReader } from './postcopy-reader.js';
import { type ListedRam, RamSetupReader } from './ram-setup-reader.js';
import type { StreamHandler, StreamSummary } from './stream-handler.js';
import { deviceKey } from './vm-description.js';

/**
 * The most bytes a step can wait for: a record with block id and a 64 KiB page (8 + 256 + 65536) with the head of the next, and a
 * command with the longest payload, are both shorter. With a receive buffer of this size the reader always makes progress.
 */
export const LONGEST_UNIT_BYTES = 66_500;

/** All there is in a section of dirty bitmaps without any. */
const BITMAPS_END = 1;

export interface StreamReaderOptions {
  /** File or peer, for errors. */
  readonly file?: string;
  /** Page size of streams that do not carry it; by default it is found by the machine type, or by the first records. */
  readonly targetPageSize?: number;
  /** The page size of memory that the stream goes to: assumed without a look at the records, where nothing says it. */
  readonly expectedPageSize?: number;
  /** Refuse sections that iterate besides RAM. */
  readonly refusesIterable?: boolean;
  /** Most bytes of device state; default 256 MiB. The reader needs up to three times that while its buffer grows. */
  readonly deviceTailLimit?: number;
  /** File position of the stream's first byte; default 0. All offsets count from the start of the file. */
  readonly startOffset?: number;
  /**
   * Size of the file, where it is read by position: permits mapped-ram. Its stream jumps over bitmaps and pages, so
   * that after a push `position` may be far behind what was pushed, but is never beyond the end of the file.
   */
  readonly fileBytes?: number;
}

export class StreamReader {
  readonly #handler: StreamHandler;
  readonly #file: string | undefined;
  readonly #tailLimit: number;
  readonly #cursor: Cursor;
  readonly #startOffset: number;
  readonly #fileBytes: number | undefined;

  /** Takes one unit; false if more bytes are needed. */
  #step: () => boolean = this.#header;
  /** What the next bytes are part of, for the message about a cut stream. */
  #inside = 'header';
  #error: unknown;
  #done = false;

  readonly #configuration = new ConfigurationReader();
  readonly #commands: CommandReader;
  readonly #pageSize: PageSize;
  #withAddresses = false;
  #mapped = false;
  #ram: 'before' | 'started' | 'iterating' | 'ended' = 'before';
  #ramSectionId = 0;
  #ramSectionType: number = ElementType.SECTION_START;
  #setup: RamSetupReader | undefined;
  /** RAM whose page size is to be found by its first records: nobody has been told of it. */
  #listed: ListedRam | undefined;
  /** Whether sections end with footers; undefined until the first one ends. */
  #hasFooters: boolean | undefined;
  #pages: PageRecordReader | undefined;
  readonly #early: EarlySectionReader;
  readonly #iterable: IterableSectionReader;
  readonly #refusesIterable: boolean;
  /** Early sections that the handler has been told of. */
  #earlyTold = 0;
  #tail: DeviceTailCollector | undefined;
  readonly #postcopy: PostcopyReader | undefined;
  /** The package that arrives, and how long it will be. */
  #package = new ByteWriter(0);
  #packageBytes = 0;
  /** What the package held. */
  #switched: StreamSummary | undefined;

  constructor(handler: StreamHandler, options: StreamReaderOptions = {}) {
    this.#handler = handler;
    this.#file = options.file;
    this.#startOffset = options.startOffset ?? 0;
    this.#cursor = new Cursor(this.#startOffset);
    this.#fileBytes = options.fileBytes;
    this.#tailLimit = options.deviceTailLimit ?? DEVICE_TAIL_LIMIT_BYTES;
    this.#refusesIterable = options.refusesIterable === true;
    const isOpen = (id: number): boolean =>
      (this.#ram !== 'before' && id === this.#ramSectionId) || this.#iterable.has(id);
    this.#early = new EarlySectionReader(this.#tailLimit, isOpen);
    this.#iterable = new IterableSectionReader(this.#tailLimit, isOpen);
    this.#postcopy = handler.postcopy && new PostcopyReader(handler.postcopy, this.#tailLimit);
    this.#commands = new CommandReader(handler, this.#postcopy);
    this.#pageSize = new PageSize(options.targetPageSize, options.expectedPageSize);
  }

  /** Stream offset of the next byte to push. */
  get position(): number {
    return this.#cursor.position;
  }

  /** Whether the stream ended and `handler.end` was called. Bytes pushed from here on are not consumed. */
  get done(): boolean {
    return this.#done;
  }

  /** Bytes of device state held at this moment; whatever else the reader holds is bounded by 2 MiB (block names). */
  get heldBytes(): number {
    return this.#early.bytes.length + this.#iterable.bytes.length + (this.#tail?.length ?? 0) + this.#package.length;
  }

  /**
   * The connection broke after the switch to postcopy: what is pushed from now on came over a new one. Whatever was held or
   * half read is forgotten, and an error as well.
   */
  resume(): void {
    this.#error = undefined;
    this.#postcopy?.recover();
    this.#pages?.forgetBlock();
    this.#ram = 'iterating';
    this.#nextElement();
  }

  /**
   * Parses the bytes [start, end). Returns how many it consumed; the rest must be pushed again with more behind it,
   * and is shorter than LONGEST_UNIT_BYTES unless the stream is done.
   * @throws RamferryError of kind `invalid`, its offset counted from the start of the stream; again at every later call.
   */
  push(bytes: Uint8Array, start = 0, end = bytes.length): number {
    this.#guard(() => {
      this.#cursor.load(bytes, start, end);
      while (!this.#done && this.#step()) {}
    });
    return this.#cursor.at - start;
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
        const { at, limit } = this.#cursor;
        throw this.#cursor.invalid('STREAM_INCOMPLETE', `The stream ends inside its ${this.#inside}`, limit - at);
      }
      this.#finish(this.#tail.finish());
    });
  }

  #guard(body: () => void): void {
    if (this.#error !== undefined) {
      throw this.#error;
    }
    try {
      body();
    } catch (error) {
      this.#error = withFile(this.#pageSize.explain(error), this.#file);
      throw this.#error;
    }
  }

  #next(step: () => boolean, inside: string): true {
    this.#step = step;
    this.#inside = inside;
    return true;
  }

  #nextElement(): true {
    return this.#next(this.#element, 'sequence of sections');
  }

  // Header and configuration (1.1, 1.2).

  #header(): boolean {
    const cursor = this.#cursor;
    if (!cursor.has(8)) {
      return false;
    }
    const magic = be32(cursor.bytes, cursor.at);
    const version = be32(cursor.bytes, cursor.at + 4);
    if (magic !== STREAM_MAGIC) {
      const statement = `This is not a migration stream: it starts with ${hex(magic)}, not "QEVM"`;
      throw cursor.invalid('NOT_A_STREAM', statement, 0, magic);
    }
    if (version !== STREAM_VERSION) {
      throw cursor.invalid('STREAM_VERSION', `The stream has version ${version}, not ${STREAM_VERSION}`, 4, version);
    }
    cursor.at += 8;
    return this.#next(this.#configurationElement, 'configuration');
  }

  #configurationElement(): boolean {
    const configuration = this.#configuration.read(this.#cursor);
    if (configuration === undefined) {
      return false;
    }
    const { capabilities } = configuration;
    this.#pageSize.configured(configuration, this.#cursor);
    this.#withAddresses = capabilities.includes(Capability.IGNORE_SHARED);
    this.#mapped = capabilities.includes(Capability.MAPPED_RAM);
    this.#handler.configuration?.(configuration);
    if (this.#mapped && this.#fileBytes === undefined) {
      throw this.#cursor.invalid(
        'MAPPED_RAM_NOT_STREAM',
        'This is a mapped-ram file, which is not read in sequence',
        0,
      );
    }
    return this.#nextElement();
  }

  // Elements (1.4, 1.5).

  #element(): boolean {
    if (!this.#cursor.has(1)) {
      return false;
    }
    const type = this.#cursor.peek();
    switch (type) {
      case ElementType.SECTION_START:
        return this.#sectionStart();
      case ElementType.SECTION_PART:
      case ElementType.SECTION_END:
        return this.#sectionPart(type);
      case ElementType.EOF:
        return this.#switched === undefined ? this.#tailStart() : this.#postcopyEnd(this.#switched);
      case ElementType.SECTION_FULL:
        if (this.#switched !== undefined) {
          throw this.#cursor.invalid('SECTION_ORDER', 'A device section follows the package', 0, type);
        }
        // QEMU 11.1 sends the early section of a memory device in front of RAM; others have sent it behind RAM's start.
        return this.#ram === 'before' || this.#ram === 'started'
          ? this.#next(this.#earlySection, 'early device section')
          : this.#tailStart();
      case ElementType.COMMAND:
        // A switch to postcopy may come before the first record, and is about pages.
        if (this.#listed !== undefined) {
          this.#startRam(this.#pageSize.assume());
        }
        return (
          this.#commands.read(this.#cursor, this.#pageSize.bytes ?? DEFAULT_TARGET_PAGE_SIZE) && this.#afterCommand()
        );
      default:
        throw this.#cursor.invalid(
          'UNKNOWN_ELEMENT',
          `The stream has an element of unknown type ${hex(type)}`,
          0,
          type,
        );
    }
  }

  #sectionStart(): boolean {
    const cursor = this.#cursor;
    const header = readSectionHeader(cursor.bytes, cursor.at, cursor.limit, cursor.position);
    if (header === undefined) {
      return false;
    }
    const { name, instance, section, bytes } = header;
    if (name === 'dirty-bitmap') {
      return this.#bitmaps(section, bytes);
    }
    if (name === 'ram' && instance === 0) {
      return this.#ramStart(header);
    }
    if (this.#refusesIterable) {
      const statement = `The stream has an iterable section "${name}" (instance ${instance}), which only its device understands`;
      const hint = 'Migrate without that device, or without the capability that adds the section.';
      throw cursor.invalid('UNKNOWN_ITERABLE', statement, 5, name, hint);
    }
    return this.#iterablePart();
  }

  #ramStart({ version, section, bytes }: SectionHeader): boolean {
    const cursor = this.#cursor;
    if (version !== RAM_SECTION_VERSION) {
      const statement = `The RAM section has version ${version}, not ${RAM_SECTION_VERSION}`;
      throw cursor.invalid('RAM_VERSION', statement, bytes - 4, version);
    }
    if (this.#ram !== 'before') {
      throw cursor.invalid('SECTION_ORDER', 'RAM starts a second time', 0);
    }
    this.#ram = 'started';
    this.#ramSectionId = section;
    this.#setup = new RamSetupReader(
      section,
      this.#pageSize.bytes,
      this.#withAddresses,
      this.#mapped ? this.#fileBytes : undefined,
    );
    cursor.at += bytes;
    return this.#next(this.#ramSetup, 'RAM setup');
  }

  /**
   * A source with the capability dirty-bitmaps sends this section whether its disks have bitmaps or not; without any it is empty, and
   * does not go on (5.10).
   */
  #bitmaps(section: number, headerBytes: number): boolean {
    const cursor = this.#cursor;
    if (!cursor.has(headerBytes + 1)) {
      return false;
    }
    if (cursor.peek(headerBytes) !== BITMAPS_END && this.#fileBytes !== undefined) {
      return this.#iterablePart();
    }
    if (cursor.peek(headerBytes) !== BITMAPS_END) {
      const statement = 'The source sends the dirty bitmaps of its disks, which only QEMU understands';
      const hint = 'Turn the capability "dirty-bitmaps" off at the source; its bitmaps stay there then.';
      throw cursor.invalid('UNKNOWN_ITERABLE', statement, 5, 'dirty-bitmap', hint);
    }
    const length = headerBytes + 1 + FOOTER_BYTES;
    if (!cursor.has(length)) {
      return false;
    }
    if (!isFooter(cursor.bytes, cursor.at + headerBytes + 1, cursor.limit, section)) {
      throw cursor.invalid('SECTION_FOOTER', 'The section of dirty bitmaps has no footer', headerBytes + 1);
    }
    this.#handler.notSaved?.(cursor.bytes, cursor.at, cursor.at + length);
    cursor.at += length;
    return true;
  }

  #ramSetup(): boolean {
    const setup = this.#setup!.read(this.#cursor);
    if (setup === undefined) {
      return false;
    }
    this.#listed = setup;
    if (setup.targetPageSize !== undefined) {
      if (this.#mapped) {
        this.#pageSize.mapped(setup.targetPageSize);
      }
      this.#startRam(setup.targetPageSize);
    }
    return this.#next(this.#records, 'RAM setup');
  }

  /** RAM is known, its page size too. */
  #startRam(targetPageSize: number): void {
    const { sectionId, totalBytes, blocks } = this.#listed!;
    for (const { name, usedLength, lengthOffset } of blocks) {
      if (usedLength % targetPageSize !== 0) {
        const statement = `RAM block "${name}" has ${usedLength} bytes, which are not whole pages of ${targetPageSize}`;
        throw invalid('RAM_BLOCK_LENGTH', statement, lengthOffset, { value: usedLength });
      }
    }
    const setup = { sectionId, targetPageSize, totalBytes, blocks };
    this.#listed = undefined;
    this.#pages = new PageRecordReader(setup, this.#handler);
    this.#postcopy?.ramSetup(setup);
    this.#handler.ramSetup(setup);
    this.#tellEarly();
  }

  #sectionPart(type: number): boolean {
    const cursor = this.#cursor;
    if (!cursor.has(5)) {
      return false;
    }
    const id = be32(cursor.bytes, cursor.at + 1);
    if (this.#iterable.has(id)) {
      return this.#iterablePart();
    }
    if (this.#ram === 'before' || id !== this.#ramSectionId) {
      throw cursor.invalid('UNKNOWN_SECTION', `Section ${id} goes on, but never started`, 1, id);
    }
    if (this.#ram === 'ended') {
      throw cursor.invalid('SECTION_ORDER', 'RAM goes on after its end', 0, type);
    }
    this.#ram = type === ElementType.SECTION_END ? 'ended' : 'iterating';
    this.#ramSectionType = type;
    cursor.at += 5;
    return this.#next(this.#records, 'page records');
  }

  #records(): boolean {
    if (this.#mapped) {
      this.#refuseRecords();
    }
    if (this.#listed !== undefined) {
      const cursor = this.#cursor;
      if (!cursor.has(8)) {
        return false;
      }
      if (be64(cursor.bytes, cursor.at) === RecordFlag.EOS) {
        cursor.at += 8;
        return this.#next(this.#ramFooter, 'RAM section');
      }
      if (!this.#pageSize.probe(cursor, this.#listed.blocks)) {
        return false;
      }
      this.#startRam(this.#pageSize.bytes!);
    }
    return this.#pages!.read(this.#cursor) && this.#next(this.#ramFooter, 'RAM section');
  }

  /** Pages of a mapped-ram file have their places; its RAM sections hold nothing but EOS (MR-14). */
  #refuseRecords(): void {
    const cursor = this.#cursor;
    if (!cursor.has(8)) {
      return;
    }
    const flags = be32(cursor.bytes, cursor.at + 4) % this.#pageSize.assume();
    if (flags !== RecordFlag.EOS) {
      const statement = `A RAM section of a mapped-ram file has a record with flags ${hex(flags)}`;
      throw cursor.invalid('MAPPED_RAM_RECORD', statement, 0, flags);
    }
  }

  #ramFooter(): boolean {
    const hasFooters = this.#findFooters();
    if (hasFooters === false || (hasFooters === true && this.#footer())) {
      this.#handler.ramSectionEnd?.(this.#ramSectionType);
      return this.#nextElement();
    }
    return false;
  }

  /** Whether sections end with footers, by what stands behind the first one; undefined while that is not there. */
  #findFooters(): boolean | undefined {
    if (this.#hasFooters === undefined && this.#cursor.has(1)) {
      const type = this.#cursor.peek();
      this.#hasFooters = !(type <= ElementType.SECTION_FULL || type === ElementType.COMMAND);
    }
    return this.#hasFooters;
  }

  #footer(): boolean {
    const cursor = this.#cursor;
    if (!cursor.has(FOOTER_BYTES)) {
      return false;
    }
    if (!isFooter(cursor.bytes, cursor.at, cursor.limit, this.#ramSectionId)) {
      const found = Array.from(cursor.bytes.subarray(cursor.at, cursor.at + FOOTER_BYTES), hex).join(' ');
      throw cursor.invalid('SECTION_FOOTER', `The RAM section ends with ${found} instead of its footer`, 0, found);
    }
    cursor.at += FOOTER_BYTES;
    return true;
  }

  // Sections of other devices that iterate.

  #iterablePart(): boolean {
    // Where one comes in front of RAM, nothing has told yet whether there are footers: only old machine types lack them.
    return (
      this.#iterable.begin(this.#cursor, this.#hasFooters ?? true) && this.#next(this.#iterableBody, 'iterable section')
    );
  }

  #iterableBody(): boolean {
    return this.#iterable.read(this.#cursor, this.#hasFooters ?? true) && this.#nextElement();
  }

  // Postcopy (5.2 to 5.8).

  #afterCommand(): true {
    const bytes = this.#commands.packageBytes;
    if (bytes === undefined) {
      return true;
    }
    this.#commands.packageBytes = undefined;
    this.#packageBytes = bytes;
    return this.#next(this.#packageBody, 'package');
  }

  #packageBody(): boolean {
    const cursor = this.#cursor;
    const end = Math.min(cursor.limit, cursor.at + this.#packageBytes - this.#package.length);
    this.#package.bytes(cursor.bytes, cursor.at, end);
    this.#handler.notSaved?.(cursor.bytes, cursor.at, end);
    cursor.at = end;
    if (this.#package.length < this.#packageBytes) {
      return false;
    }
    const early = this.#early;
    const content = this.#postcopy!.readPackage(this.#package.view, cursor.position - this.#packageBytes);
    // Its memory as well: the sections are a copy.
    this.#package = new ByteWriter(0);
    const devices = [...early.devices, ...content.devices];
    this.#checkIds(devices);
    this.#switched = {
      bytes: cursor.position - this.#startOffset,
      tail: { ...this.#tailInFront(), sections: content.sections, description: '' },
      devices,
      iterable: this.#iterable.started,
      backgroundSnapshot: false,
      complete: true,
      warnings: [...this.#configuration.warnings, ...this.#iterable.warnings],
    };
    this.#handler.postcopy!.run(this.#switched, content.pings);
    return this.#nextElement();
  }

  #postcopyEnd(switched: StreamSummary): boolean {
    if (this.#ram !== 'ended') {
      throw this.#cursor.invalid('STREAM_INCOMPLETE', 'The stream ends before RAM does', 0);
    }
    this.#handler.notSaved?.(this.#cursor.bytes, this.#cursor.at, this.#cursor.at + 1);
    this.#cursor.at += 1;
    this.#done = true;
    this.#handler.end({ ...switched, bytes: this.position - this.#startOffset });
    return false;
  }

  // Device state (1.7 to 1.10).

  #earlySection(): boolean {
    if (!this.#early.read(this.#cursor)) {
      return false;
    }
    if (this.#pages !== undefined) {
      this.#tellEarly();
    }
    return this.#nextElement();
  }

  /** The handler hears of early sections once it knows the RAM blocks that they speak of. */
  #tellEarly(): void {
    for (; this.#earlyTold < this.#early.devices.length; this.#earlyTold += 1) {
      this.#handler.earlySection?.(this.#early.devices[this.#earlyTold], this.#early.body(this.#earlyTold));
    }
  }

  #tailStart(): boolean {
    if (this.#ram === 'before') {
      throw this.#cursor.invalid('SECTION_ORDER', 'The stream ends before RAM starts', 0, this.#cursor.peek());
    }
    if (this.#postcopy?.hasDiscarded === true) {
      const statement = 'The source has discarded pages for a switch to postcopy, and does not switch';
      throw this.#cursor.invalid('POSTCOPY_ORDER', statement, 0, this.#cursor.peek());
    }
    if (this.#listed !== undefined) {
      this.#startRam(this.#pageSize.assume());
    }
    this.#tail = new DeviceTailCollector(this.#cursor.position, this.#tailLimit, this.#hasFooters);
    return this.#next(this.#tailBytes, 'device state');
  }

  #tailBytes(): boolean {
    const { bytes, at, limit } = this.#cursor;
    this.#cursor.at += this.#tail!.append(bytes, at, limit);
    if (this.#tail!.complete) {
      this.#finish(this.#tail!.finish());
    }
    return false;
  }

  /** What stands in front of RAM's pages, or between them. */
  #tailInFront(): Omit<DeviceTail, 'sections' | 'description'> {
    const iterable = this.#iterable.bytes;
    return {
      early: this.#early.bytes.slice(),
      ...(iterable.length > 0 && { iterable: iterable.slice() }),
      ...(this.#hasFooters === false && { lacksFooters: true }),
    };
  }

  #checkIds(devices: readonly DeviceSection[]): void {
    const ids = new Set<number>([this.#ramSectionId, ...this.#iterable.ids]);
    for (const { section, name, offset } of devices) {
      if (ids.has(section)) {
        const statement = `The id ${section} of device section "${name}" is that of another section`;
        throw invalid('DEVICE_SECTION', statement, offset, { value: section });
      }
      ids.add(section);
    }
  }

  #finish(tail: CollectedTail): void {
    const early = this.#early;
    const devices = [...early.devices, ...tail.devices];
    this.#checkIds(devices);
    for (const { name, instance, bytes, offset } of early.devices) {
      const described = tail.described?.devices.get(deviceKey(name, instance))?.bytes;
      if (tail.described !== undefined && described !== bytes) {
        const statement = `Early device section "${name}" has ${bytes} bytes, but ${described ?? 'none'} are described`;
        throw invalid('DEVICE_SECTION', statement, offset, { value: bytes });
      }
    }
    const describedPageSize = tail.described?.pageSize;
    const contradiction = this.#pageSize.contradiction(describedPageSize);
    if (contradiction !== undefined) {
      const { statement, hint } = contradiction;
      const offset = this.position - tail.description.length;
      throw invalid('PAGE_SIZE', statement, offset, { value: describedPageSize!, hint });
    }
    this.#done = true;
    this.#tail = undefined;
    this.#handler.end({
      bytes: this.position - this.#startOffset,
      tail: { ...this.#tailInFront(), sections: tail.sections, description: tail.description },
      devices,
      iterable: this.#iterable.started,
      backgroundSnapshot: this.#ram !== 'ended',
      complete: tail.descriptionState !== 'cut',
      ...(tail.descriptionDamage !== undefined && { descriptionDamage: tail.descriptionDamage }),
      warnings: [...this.#configuration.warnings, ...this.#iterable.warnings, ...this.#warnings(tail, devices)],
      isPageSizeAssumed: this.#pageSize.isAssumed && describedPageSize === undefined,
    });
  }

  #warnings({ described, descriptionState, guessed }: CollectedTail, devices: readonly DeviceSection[]): string[] {
    const deviceCount = devices.length;
    const warnings: string[] = [];
    if (this.#ram !== 'ended') {
      warnings.push('RAM has no END section, as in a background snapshot.');
    }
    if (descriptionState !== 'present') {
      const state = descriptionState === 'absent' ? 'missing' : descriptionState;
      const by = this.#hasFooters === false ? 'what follows them' : 'their footers';
      warnings.push(`The VM description is ${state}: ends of device sections were found by ${by}, a heuristic.`);
    } else if (guessed.length > 0) {
      const names = guessed.slice(0, 10).map((device) => `"${device.name}"`);
      warnings.push(`${guessed.length} sections do not have the described length: ${names.join(', ')}.`);
    }
    if (described !== undefined && described.devices.size > deviceCount) {
      warnings.push(`The VM description names ${described.devices.size - deviceCount} devices that have no section.`);
    }
    warnings.push(...repeatedDevices(devices));
    return warnings;
  }
}

/** QEMU gives the first section to the first device of that name, the second to the second. */
const repeatedDevices = (devices: readonly DeviceSection[]): string[] => {
  const seen = new Set<string>();
  const repeated = new Set<string>();
  for (const { name, instance } of devices) {
    const key = deviceKey(name, instance);
    if (seen.has(key)) {
      repeated.add(`"${name}" (instance ${instance})`);
    }
    seen.add(key);
  }
  const names = [...repeated].slice(0, 10);
  return names.length === 0 ? [] : [`More than one device section has the same name: ${names.join(', ')}.`];
};
