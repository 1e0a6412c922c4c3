// Decodes the body of one section through its description. Both come from outside: nothing of the description is known to
// be of the right type, and nothing says that the two belong together. Structures nest, so there is a stack, and no recursion.

import { be32, latin1 } from '../bytes.js';
import { invalid } from '../invalid.js';
import type { DeviceSection } from './device-sections.js';
import { type DeviceField, FieldGroup, type FieldValue, type Subsection } from './field-group.js';
import { asObject, DESCRIPTION_DEPTH_LIMIT, type Described, isCount } from './vm-description.js';

/**
 * Most fields of a section, every element of every array counted. The largest known, the USB controller of a Raspberry Pi
 * with its buffers byte by byte, has 530,000. Of fields without bytes there could be any number, whatever the size of the file.
 */
export const FIELD_LIMIT = 1_000_000;
export const EMPTY_FIELD_LIMIT = 1000;

/** Most of them that are structures, which take some 500 bytes each. */
export const STRUCTURE_LIMIT = 100_000;

/** Longest name of a field or type; it stands in the output once for every element of an array. Those of QEMU are C expressions. */
const NAME_LIMIT = 256;

/** Type byte of a subsection. */
const SUBSECTION = 0x05;

/** How an absent element of an array of pointers is written. */
const NULL_MARK = 0x30;

/** Types that hold an integer with a sign. "le" is "less or equal", and "equal" that the destination must have the same. */
const SIGNED = new Set(['int8', 'int16', 'int32', 'int64', 'int32 equal', 'int32 le', 'timer']);

/** Without one. QEMU calls its check of a uint64 "int64 equal". */
const UNSIGNED = new Set([
  ...['uint8', 'uint16', 'uint32', 'uint64'],
  ...['uint8 equal', 'uint16 equal', 'uint32 equal', 'uint64 equal', 'int64 equal'],
]);

/** Of the structures without any, which are most: a map each would be half of the memory. Nothing is ever put into it. */
const NO_SUBSECTIONS = new Map<string, Subsection>();

/** A structure of which some is decoded. */
interface Level {
  readonly path: string;
  readonly fieldList: readonly unknown[];
  readonly subsectionList: readonly unknown[];
  /** The field that is next, and its element. */
  next: number;
  element: number;
  nextSubsection: number;
  /** Its bytes end here at the latest, and if it is a field's structure just here. */
  readonly end: number;
  readonly endsThere: boolean;
  readonly fields: Map<string, DeviceField[]>;
  readonly subsections: Map<string, Subsection>;
  readonly group: FieldGroup;
}

/** Decodes all fields of one section. */
export class FieldDecoder {
  readonly #body: Uint8Array;
  readonly #section: DeviceSection;
  readonly #levels: Level[] = [];
  #at = 0;
  #count = 0;
  #emptyCount = 0;
  #structureCount = 0;

  constructor(body: Uint8Array, section: DeviceSection) {
    this.#body = body;
    this.#section = section;
  }

  /** Fields so far, every element of every array counted. */
  get count(): number {
    return this.#count;
  }

  /**
   * @param description the section's object in the VM description
   * @throws RamferryError `invalid` with the file position at which description and bytes disagree
   */
  decode(description: Described): FieldGroup {
    const device = this.#enter(description, '', this.#body.length, true);
    for (let level = this.#levels.at(-1); level !== undefined; level = this.#levels.at(-1)) {
      if (level.next < level.fieldList.length) {
        this.#field(level, asObject(level.fieldList[level.next]));
      } else if (level.nextSubsection < level.subsectionList.length) {
        this.#subsection(level, asObject(level.subsectionList[level.nextSubsection]));
        level.nextSubsection += 1;
      } else {
        this.#leave(level);
      }
    }
    return device;
  }

  #enter(structure: Described, path: string, end: number, endsThere: boolean): FieldGroup {
    const { fields: fieldList = [], subsections: subsectionList = [] } = structure;
    if (
      !Array.isArray(fieldList) ||
      !Array.isArray(subsectionList) ||
      this.#levels.length === DESCRIPTION_DEPTH_LIMIT
    ) {
      throw this.#shape(`structure "${path}"`);
    }
    const fields = new Map<string, DeviceField[]>();
    const subsections = subsectionList.length === 0 ? NO_SUBSECTIONS : new Map<string, Subsection>();
    const group = new FieldGroup(fields, subsections);
    const place = { next: 0, element: 0, nextSubsection: 0, end, endsThere };
    this.#levels.push({ path, fieldList, subsectionList, ...place, fields, subsections, group });
    return group;
  }

  #leave({ path, end, endsThere }: Level): void {
    if (endsThere && this.#at !== end) {
      const what =
        path === '' ? `Device section "${this.#section.name}"` : `Structure "${path}" of "${this.#section.name}"`;
      const statement = `${what} has ${end - this.#at} bytes more than the VM description gives its fields`;
      throw this.#error('DEVICE_LENGTH', statement, end - this.#at);
    }
    this.#levels.pop();
  }

  /** Takes the next element of a field, or steps over the field once it has no more. */
  #field(level: Level, field: Described): void {
    const { name, type, size, array_len: count = 1 } = field;
    if (!isName(name)) {
      throw this.#shape(`field ${level.next} of structure "${level.path}"`);
    }
    const path = level.path === '' ? name : `${level.path}.${name}`;
    if (!isName(type) || !isCount(size) || !isCount(count)) {
      throw this.#shape(`field "${path}"`);
    }
    if (level.element === count) {
      level.next += 1;
      level.element = 0;
      return;
    }
    // The whole array is counted before its first element is made.
    if (level.element === 0) {
      this.#countFields(count, size, type);
    }
    level.element += 1;
    if (size > level.end - this.#at) {
      const statement = `Field "${path}" of "${this.#section.name}" takes ${size} bytes, and there are ${level.end - this.#at}`;
      throw this.#error('DEVICE_LENGTH', statement, size);
    }
    const at = this.#at;
    const inner = innerStructure(field, type, size);
    if (inner === undefined && type === 'struct') {
      throw this.#shape(`structure "${path}"`);
    }
    const value = inner === undefined ? this.#value(type, at, size, path) : this.#enter(inner, path, at + size, true);
    // What a structure takes is counted by its own fields.
    this.#at += inner === undefined ? size : 0;
    const decoded = { type, at, bytes: size, value };
    const same = level.fields.get(name);
    if (same === undefined) {
      level.fields.set(name, [decoded]);
    } else {
      same.push(decoded);
    }
  }

  #countFields(count: number, size: number, type: string): void {
    this.#count += count;
    this.#emptyCount += size === 0 ? count : 0;
    this.#structureCount += type === 'struct' || type === 'tmp' ? count : 0;
    for (const [found, limit, what] of [
      [this.#count, FIELD_LIMIT, 'fields'],
      [this.#emptyCount, EMPTY_FIELD_LIMIT, 'fields without bytes'],
      [this.#structureCount, STRUCTURE_LIMIT, 'structures'],
    ] as const) {
      if (found > limit) {
        const statement = `Device section "${this.#section.name}" has more than ${limit} ${what}`;
        throw this.#error('DEVICE_FIELDS_TOO_MANY', statement, limit);
      }
    }
  }

  #value(type: string, at: number, size: number, path: string): FieldValue {
    const body = this.#body;
    const bits = size * 8;
    if (SIGNED.has(type) && isIntegerSize(size)) {
      return BigInt.asIntN(bits, unsigned(body, at, size));
    }
    if (UNSIGNED.has(type) && isIntegerSize(size)) {
      return unsigned(body, at, size);
    }
    if (type === 'bool' && size === 1) {
      return body[at] !== 0;
    }
    if (type === 'nullptr' && size === 1) {
      if (body[at] !== NULL_MARK) {
        const statement = `Element "${path}" of "${this.#section.name}" is described as a null pointer, and is ${body[at]}`;
        throw this.#error('DEVICE_FIELD', statement, body[at]);
      }
      return null;
    }
    return body.subarray(at, at + size);
  }

  #subsection(level: Level, description: Described): void {
    const body = this.#body;
    const { vmsd_name: name } = description;
    if (!isName(name)) {
      throw this.#shape(`a subsection of "${level.path}"`);
    }
    const nameAt = this.#at + 2;
    const versionAt = nameAt + name.length;
    const found =
      versionAt + 4 <= level.end && body[this.#at] === SUBSECTION && body[this.#at + 1] === name.length
        ? latin1(body, nameAt, versionAt)
        : undefined;
    if (found !== name) {
      const statement = `Subsection "${name}" of "${this.#section.name}" is described, and does not stand there`;
      throw this.#error('DEVICE_SUBSECTION', statement, name);
    }
    this.#at = versionAt + 4;
    this.#count += 1;
    const group = this.#enter(description, name, level.end, false);
    level.subsections.set(name, { version: be32(body, versionAt), group });
  }

  #shape(what: string): Error {
    const statement = `The VM description of "${this.#section.name}" does not describe ${what} as QEMU does`;
    return this.#error('DESCRIPTION_SHAPE', statement, this.#section.name);
  }

  #error(code: string, statement: string, value: number | string): Error {
    return invalid(code, statement, this.#section.offset + this.#at, { value });
  }
}

/**
 * The structure that a field consists of. That of a `tmp`, which QEMU computes for the stream alone, stands in the field itself;
 * lists do the same with one structure for all their elements, and stay bytes.
 */
const innerStructure = (field: Described, type: string, size: number): Described | undefined => {
  if (type === 'struct') {
    const { struct } = field;
    return typeof struct === 'object' && struct !== null ? struct : undefined;
  }
  return type === 'tmp' && plainBytes(field) === size ? field : undefined;
};

/** Bytes of a structure without subsections; undefined if that is not what it is. */
const plainBytes = ({ fields, subsections }: Described): number | undefined => {
  if (!Array.isArray(fields) || subsections !== undefined) {
    return undefined;
  }
  let bytes = 0;
  for (const field of fields) {
    const { size, array_len: count = 1 } = asObject(field);
    bytes += isCount(size) && isCount(count) ? size * count : Number.NaN;
  }
  return bytes;
};

const isName = (value: unknown): value is string => typeof value === 'string' && value.length <= NAME_LIMIT;

const isIntegerSize = (size: number): boolean => size === 1 || size === 2 || size === 4 || size === 8;

const unsigned = (bytes: Uint8Array, at: number, size: number): bigint => {
  let value = 0;
  for (let index = 0; index < Math.min(size, 4); index += 1) {
    value = value * 0x100 + bytes[at + index]!;
  }
  return size === 8 ? (BigInt(value) << 32n) | BigInt(be32(bytes, at + 4)) : BigInt(value);
};
