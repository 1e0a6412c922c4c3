// Reads device sections that come before the first page, behind RAM's START or, from QEMU 11.1 on, in front of it: their end must be found while the description, which would tell
// it, is still far away (spec/qemu-wire-format.md 1.8, 1.9.2, 1.10). What is found here is checked against the
// description at the end of the stream.

import { ByteWriter } from '../byte-writer.js';
import { be64 } from '../bytes.js';
import { ElementType } from './constants.js';
import type { Cursor } from './cursor.js';
import {
  type DeviceSection,
  EarlyEnd,
  endsSection,
  FOOTER_BYTES,
  isFooter,
  readSectionHeader,
  type SectionHeader,
} from './device-sections.js';
import { DEVICE_LIMIT } from './vm-description.js';

/** Fixed fields of virtio-mem's early section: address, region size, block size, node, plugged size (1.10). */
const VIRTIO_MEM_FIXED_BYTES = 36;

export class EarlySectionReader {
  readonly devices: DeviceSection[] = [];
  readonly #isOpen: (id: number) => boolean;
  readonly #limit: number;
  readonly #collected = new ByteWriter(0);
  /** Where the body of each of `devices` starts in `bytes`. */
  readonly #bodyStarts: number[] = [];
  /** Header of the section being collected, and where its body starts. */
  #header: SectionHeader | undefined;
  #bodyStart = 0;
  #bodyOffset = 0;

  /**
   * @param limit most bytes of early sections
   * @param isOpen whether a section of that id has started, so that its parts may follow an early one
   */
  constructor(limit: number, isOpen: (id: number) => boolean) {
    this.#limit = limit;
    this.#isOpen = isOpen;
  }

  /** All early sections so far, headers and footers included. */
  get bytes(): Uint8Array {
    return this.#collected.view;
  }

  /** Body of the section at that index of `devices`. */
  body(index: number): Uint8Array {
    const start = this.#bodyStarts[index];
    return this.#collected.view.subarray(start, start + this.devices[index].bytes);
  }

  /** Reads one section; true once its footer is consumed, false while more bytes are needed. */
  read(cursor: Cursor): boolean {
    if (this.#header === undefined) {
      const header = readSectionHeader(cursor.bytes, cursor.at, cursor.limit, cursor.position);
      if (header === undefined) {
        return false;
      }
      this.#begin(cursor, header);
    }
    const header = this.#header!;
    const isVirtioMem = header.name.endsWith('/virtio-mem-device-early') && header.version === 1;
    if (!(isVirtioMem ? this.#readVirtioMem(cursor, header) : this.#readToFooter(cursor, header))) {
      return false;
    }
    const { section, name, instance, version } = header;
    const bytes = this.#collected.length - this.#bodyStart;
    this.devices.push({ section, name, instance, version, offset: this.#bodyOffset, bytes });
    this.#bodyStarts.push(this.#bodyStart);
    this.#collect(cursor, cursor.at + FOOTER_BYTES);
    this.#header = undefined;
    return true;
  }

  #begin(cursor: Cursor, header: SectionHeader): void {
    if (this.devices.length === DEVICE_LIMIT) {
      throw cursor.invalid('TOO_MANY_DEVICES', `The stream has more than ${DEVICE_LIMIT} device sections`, 0);
    }
    this.#collect(cursor, cursor.at + header.bytes);
    this.#header = header;
    this.#bodyStart = this.#collected.length;
    this.#bodyOffset = cursor.position;
  }

  #collect(cursor: Cursor, until: number): void {
    if (this.#collected.length + until - cursor.at > this.#limit) {
      const statement = `The early device state is longer than ${this.#limit} bytes`;
      throw cursor.invalid('DEVICE_STATE_TOO_LARGE', statement, 0, this.#limit);
    }
    this.#collected.bytes(cursor.bytes, cursor.at, until);
    cursor.at = until;
  }

  /** virtio-mem says itself how long its section is: the fixed fields, and a bitmap with one bit for each device block. */
  #readVirtioMem(cursor: Cursor, header: SectionHeader): boolean {
    const collectBody = (bytes: number): boolean => {
      const missing = Math.max(bytes - (this.#collected.length - this.#bodyStart), 0);
      this.#collect(cursor, Math.min(cursor.at + missing, cursor.limit));
      return this.#collected.length - this.#bodyStart >= bytes;
    };
    if (!collectBody(VIRTIO_MEM_FIXED_BYTES)) {
      return false;
    }
    const body = this.#collected.view.subarray(this.#bodyStart);
    const blocks = be64(body, 8) / be64(body, 16);
    const bytes = VIRTIO_MEM_FIXED_BYTES + 8 * Math.ceil(blocks / 64);
    // Not `>`: sizes that make no sense give NaN.
    if (!(bytes <= this.#limit)) {
      throw cursor.invalid('EARLY_SECTION', `The region of "${header.name}" has an impossible size`, 0);
    }
    if (!collectBody(bytes) || !cursor.has(FOOTER_BYTES)) {
      return false;
    }
    if (!isFooter(cursor.bytes, cursor.at, cursor.limit, header.section)) {
      const statement = `"${header.name}" does not end where its fields say`;
      throw cursor.invalid('SECTION_FOOTER', statement, 0, header.section);
    }
    return true;
  }

  /** Any other section ends at the first footer with its id that another element follows. */
  #readToFooter(cursor: Cursor, header: SectionHeader): boolean {
    for (;;) {
      const found = cursor.bytes.subarray(0, cursor.limit).indexOf(ElementType.SECTION_FOOTER, cursor.at);
      this.#collect(cursor, found < 0 ? cursor.limit : found);
      const { bytes, at, limit } = cursor;
      switch (found < 0 ? EarlyEnd.needMore : endsSection(bytes, at, limit, header.section, this.#isOpen)) {
        case EarlyEnd.yes:
          return true;
        case EarlyEnd.needMore:
          return false;
        default:
          this.#collect(cursor, at + 1);
      }
    }
  }
}
