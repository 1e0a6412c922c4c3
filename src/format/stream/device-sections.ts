// Where device sections end. A FULL section has no length in front of its body, so its end is known only from the VM
// description, and checked against the footer that must stand there (spec/qemu-wire-format.md 1.5, 1.9). Machine types up to
// 2.3 write no footers: there the next header, or EOF, is all that can be checked.
//
//   04 id name instance version | body ................ | 7e id | 04 id name … | body … | 7e id | 00 (EOF)
//   '------- header ----------'   described length        footer

import { be32, isPrintable, latin1 } from '../bytes.js';
import { hex, invalid } from '../invalid.js';
import { ElementType } from './constants.js';
import { DEVICE_LIMIT, type DescribedDevice, deviceKey, deviceKeys } from './vm-description.js';

/** One device section of a stream; the names are those of `inspect`'s JSON. */
export interface DeviceSection {
  /** Section id. */
  readonly section: number;
  readonly name: string;
  readonly instance: number;
  readonly version: number;
  /** Where the body starts, from the start of the stream. */
  readonly offset: number;
  /** Length of the body. */
  readonly bytes: number;
}

/** Header of a START or FULL section. */
export interface SectionHeader {
  readonly section: number;
  readonly name: string;
  readonly instance: number;
  readonly version: number;
  /** Bytes of the header, type byte included. */
  readonly bytes: number;
}

/** Longest header: type, id, name with its length byte, instance, version. */
export const SECTION_HEADER_LIMIT = 1 + 4 + 256 + 8;

export const FOOTER_BYTES = 5;

/** The header at `at`, undefined if it reaches beyond `end`. Its name is checked to be printable and not empty. */
export const readSectionHeader = (
  bytes: Uint8Array,
  at: number,
  end: number,
  offset: number,
): SectionHeader | undefined => {
  if (end - at < 6 || end - at < 14 + bytes[at + 5]) {
    return undefined;
  }
  const nameEnd = at + 6 + bytes[at + 5];
  if (nameEnd === at + 6 || !isPrintable(bytes, at + 6, nameEnd)) {
    throw invalid('SECTION_NAME', 'A section has a name that is empty or not printable', offset + 5);
  }
  return {
    section: be32(bytes, at + 1),
    name: latin1(bytes, at + 6, nameEnd),
    instance: be32(bytes, nameEnd),
    version: be32(bytes, nameEnd + 4),
    bytes: nameEnd + 8 - at,
  };
};

/** Whether the footer of section `id` stands at `at`. */
export const isFooter = (bytes: Uint8Array, at: number, end: number, id: number): boolean =>
  end - at >= FOOTER_BYTES && bytes[at] === ElementType.SECTION_FOOTER && be32(bytes, at + 1) === id;

/** What `walkSections` found. */
export interface SectionWalk {
  readonly devices: DeviceSection[];
  /** Index of the EOF element in the bytes that were walked. */
  readonly end: number;
  /** Sections whose end is the footer (or next header) that looked right, not a described length. */
  readonly guessed: DeviceSection[];
}

/** What is known of the bytes to be cut. */
export interface SectionWalkOptions {
  readonly description?: ReadonlyMap<string, DescribedDevice> | undefined;
  /** Index of the EOF element, where the caller knows it. */
  readonly knownEnd?: number | undefined;
  /** Whether sections end with footers; default true. */
  readonly hasFooters?: boolean | undefined;
}

/**
 * Cuts the FULL sections that start at the beginning of `bytes`, up to the EOF element.
 *
 * A section that is described is cut at its described length; where no footer stands there (an array described once whose
 * elements differ in size, 1.9.1), and for a section without a description, the next footer with the section's id that
 * something plausible follows is taken (1.9.2). QEMU's loader looks at no description, so nothing is refused for what that
 * says or leaves out.
 *
 * @param offset stream offset of `bytes[0]`.
 */
export const walkSections = (bytes: Uint8Array, offset: number, options: SectionWalkOptions = {}): SectionWalk => {
  const { description, knownEnd, hasFooters = true } = options;
  const devices: DeviceSection[] = [];
  const guessed: DeviceSection[] = [];
  const tail = new TailBytes(bytes, options);
  const keyOf = deviceKeys();
  let at = 0;
  while (at < bytes.length && bytes[at] === ElementType.SECTION_FULL) {
    const header = readSectionHeader(bytes, at, bytes.length, offset + at);
    if (header === undefined) {
      throw invalid('STREAM_INCOMPLETE', 'The stream ends in the header of a device section', offset + bytes.length);
    }
    const { section, name, instance, version } = header;
    tail.ids.add(section);
    if (devices.length >= DEVICE_LIMIT) {
      throw invalid('TOO_MANY_DEVICES', `The stream has more than ${DEVICE_LIMIT} device sections`, offset + at);
    }
    const described = description?.get(keyOf(name, instance));
    const body = at + header.bytes;
    const exact = described !== undefined && tail.hasEndAt(body + described.bytes, section);
    const bodyEnd = exact ? body + described.bytes : tail.findEnd(body, section);
    if (bodyEnd === undefined && knownEnd === undefined) {
      throw invalid(
        'STREAM_INCOMPLETE',
        `The stream ends inside device section "${name}" (id ${section}) that starts at byte ${offset + at}`,
        offset + bytes.length,
      );
    }
    if (bodyEnd === undefined) {
      throw invalid('DEVICE_END', `The end of device section "${name}" (id ${section}) was not found`, offset + body, {
        value: section,
        hint: 'The device state is damaged.',
      });
    }
    const device = { section, name, instance, version, offset: offset + body, bytes: bodyEnd - body };
    devices.push(device);
    if (!exact) {
      guessed.push(device);
    }
    at = bodyEnd + (hasFooters ? FOOTER_BYTES : 0);
  }
  if (at >= bytes.length) {
    throw invalid('STREAM_INCOMPLETE', 'The stream ends without an EOF element', offset + at);
  }
  if (bytes[at] !== ElementType.EOF || (knownEnd !== undefined && at !== knownEnd)) {
    throw invalid(
      'DEVICE_SECTION',
      `Element ${hex(bytes[at])} stands where a device section or EOF should`,
      offset + at,
      {
        value: bytes[at],
      },
    );
  }
  return { devices, end: at, guessed };
};

/** Looks for the ends of sections in the bytes of a tail. */
class TailBytes {
  /** Sections so far: none of them comes again. */
  readonly ids = new Set<number>();
  readonly #bytes: Uint8Array;
  readonly #knownEnd: number | undefined;
  readonly #hasFooters: boolean;
  /** Name and instance of every described device. */
  readonly #names: ReadonlySet<string> | undefined;

  constructor(bytes: Uint8Array, { description, knownEnd, hasFooters = true }: SectionWalkOptions) {
    this.#bytes = bytes;
    this.#knownEnd = knownEnd;
    this.#hasFooters = hasFooters;
    this.#names =
      description && new Set(Array.from(description.values(), ({ name, instance }) => deviceKey(name, instance)));
  }

  /** Whether the body of section `id` ends at `at`, as its description says. */
  hasEndAt(at: number, id: number): boolean {
    return this.#hasFooters ? isFooter(this.#bytes, at, this.#bytes.length, id) : this.#endsSection(at, this.#names);
  }

  /** Where a body ends that starts at `from`. Without footers nothing but the next header tells. */
  findEnd(from: number, id: number): number | undefined {
    const bytes = this.#bytes;
    if (this.#hasFooters) {
      const find = (names: ReadonlySet<string> | undefined): number | undefined =>
        findByte(
          bytes,
          ElementType.SECTION_FOOTER,
          from,
          (at) => isFooter(bytes, at, bytes.length, id) && this.#endsSection(at + FOOTER_BYTES, names),
        );
      // A section that the description leaves out may follow.
      return find(this.#names) ?? (this.#names && find(undefined));
    }
    const next = findByte(bytes, ElementType.SECTION_FULL, from, (at) => this.#endsSection(at, this.#names));
    if (next !== undefined || this.#knownEnd !== undefined) {
      return next ?? this.#knownEnd;
    }
    // No footer, no description: the last byte is EOF.
    const last = bytes.length - 1;
    return last >= from && bytes[last] === ElementType.EOF ? last : undefined;
  }

  /** Whether what stands at `at` can follow a device section of the tail: the next one, or the end. */
  #endsSection(at: number, names: ReadonlySet<string> | undefined): boolean {
    const bytes = this.#bytes;
    if (bytes[at] === ElementType.EOF) {
      if (this.#knownEnd !== undefined) {
        return at === this.#knownEnd;
      }
      return at + 1 === bytes.length || isDescription(bytes, at + 1);
    }
    const header = plausibleHeader(bytes, at);
    return (
      header !== undefined &&
      !this.ids.has(header.section) &&
      (names?.has(deviceKey(header.name, header.instance)) ?? isPlausibleInstance(header.instance))
    );
  }
}

const findByte = (
  bytes: Uint8Array,
  byte: number,
  from: number,
  isFound: (at: number) => boolean,
): number | undefined => {
  for (let at = bytes.indexOf(byte, from); at >= 0; at = bytes.indexOf(byte, at + 1)) {
    if (isFound(at)) {
      return at;
    }
  }
  return undefined;
};

/** A description, complete or cut: it never ends before the stream does. One that ends just there may hold anything. */
const isDescription = (bytes: Uint8Array, at: number): boolean => {
  if (bytes[at] !== ElementType.VMDESCRIPTION) {
    return false;
  }
  const text = at + 5;
  if (text >= bytes.length) {
    return true;
  }
  const end = text + be32(bytes, at + 1);
  return end === bytes.length || (end > bytes.length && bytes[text] === 0x7b);
};

/** Ids, versions and most instances are small in every QEMU; in random bytes they are not. */
const PLAUSIBLE_NUMBER = 0x1_0000;

/** Instances of pSeries are bus numbers, which begin here; where a description names them, they are any number. */
const BUS_NUMBER = 0x8000_0000;

const isPlausibleInstance = (instance: number): boolean => instance % BUS_NUMBER < PLAUSIBLE_NUMBER;

const plausibleHeader = (
  bytes: Uint8Array,
  at: number,
  type: number = ElementType.SECTION_FULL,
): SectionHeader | undefined => {
  if (bytes[at] !== type) {
    return undefined;
  }
  const nameEnd = at + 6 + bytes[at + 5];
  if (bytes[at + 5] === 0 || !isPrintable(bytes, at + 6, Math.min(nameEnd, bytes.length))) {
    return undefined;
  }
  const header = readSectionHeader(bytes, at, bytes.length, 0);
  return header !== undefined && header.section < PLAUSIBLE_NUMBER && header.version < PLAUSIBLE_NUMBER
    ? header
    : undefined;
};

/** Answer of `endsSection`. */
export const EarlyEnd = { no: 0, yes: 1, needMore: 2 } as const;

type EarlyEndAnswer = (typeof EarlyEnd)[keyof typeof EarlyEnd];

/** Whether the `left` bytes at `at` begin a section of that type. */
const startsSection = (bytes: Uint8Array, at: number, left: number, type: number): EarlyEndAnswer => {
  if (left < SECTION_HEADER_LIMIT && left < (left < 6 ? SECTION_HEADER_LIMIT : 14 + bytes[at + 5])) {
    return EarlyEnd.needMore;
  }
  const header = plausibleHeader(bytes, at, type);
  return header !== undefined && isPlausibleInstance(header.instance) ? EarlyEnd.yes : EarlyEnd.no;
};

/**
 * Whether the footer of section `id` stands at `at`, and what follows is an element that can follow it while the stream
 * still arrives: the START of a section, a PART or END of one that has started (`isOpen`), a command, a FULL section, EOF with a
 * description. `needMore` if `end` is too near to tell; at most FOOTER_BYTES + SECTION_HEADER_LIMIT bytes are looked at.
 */
export const endsSection = (
  bytes: Uint8Array,
  at: number,
  end: number,
  id: number,
  isOpen: (id: number) => boolean,
): EarlyEndAnswer => {
  if (end - at < FOOTER_BYTES) {
    return EarlyEnd.needMore;
  }
  if (!isFooter(bytes, at, end, id)) {
    return EarlyEnd.no;
  }
  const next = at + FOOTER_BYTES;
  const left = end - next;
  switch (left > 0 ? bytes[next] : undefined) {
    case undefined:
      return EarlyEnd.needMore;
    case ElementType.SECTION_PART:
    case ElementType.SECTION_END:
      return left < 5 ? EarlyEnd.needMore : isOpen(be32(bytes, next + 1)) ? EarlyEnd.yes : EarlyEnd.no;
    case ElementType.COMMAND:
      // Command number and length are 16 bits each and small.
      return left < 5 ? EarlyEnd.needMore : bytes[next + 1] === 0 && bytes[next + 3] === 0 ? EarlyEnd.yes : EarlyEnd.no;
    case ElementType.SECTION_START:
    case ElementType.SECTION_FULL:
      return startsSection(bytes, next, left, bytes[next]);
    case ElementType.EOF:
      return left < 6 ? EarlyEnd.needMore : bytes[next + 1] === ElementType.VMDESCRIPTION ? EarlyEnd.yes : EarlyEnd.no;
    default:
      return EarlyEnd.no;
  }
};
