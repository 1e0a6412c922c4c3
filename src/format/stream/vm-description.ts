// The VM description: JSON text after EOF that gives the length of every field of every device section, and with it the
// only exact way to tell where a device section ends (spec/qemu-wire-format.md 1.7, 1.9.1).
//
// The text comes from the peer and can be large: a QEMU with 1,000 vCPUs describes each of them in some 30 KB. So the
// document is never parsed as a whole: a scanner that keeps only its position walks the outer object, and JSON.parse
// sees one device at a time.

import { invalid } from '../invalid.js';

/** Length of one described section's body, in stream bytes. */
export interface DescribedDevice {
  readonly name: string;
  readonly instance: number;
  readonly bytes: number;
}

/** Longest text accepted: twice what QEMU writes for 1,000 vCPUs. */
export const DESCRIPTION_LIMIT_BYTES = 64 * 1024 * 1024;

/** Longest description of a single device; the largest known, a vCPU with every optional state, takes 30 KB. */
const DEVICE_LIMIT_BYTES = 4 * 1024 * 1024;

/** Most devices; QEMU itself runs out of section ids for fewer. */
export const DEVICE_LIMIT = 65_536;

/** Subsections nest two or three deep in QEMU. */
const SUBSECTION_DEPTH_LIMIT = 32;

/** How the devices of one machine are looked up: by name and instance, never by position (early ones come first). */
export const deviceKey = (name: string, instance: number): string => `${instance} ${name}`;

/**
 * Reads a VM description. Errors carry `offset`, the stream offset of the text.
 * @returns the described devices by `deviceKey`, in the order of the text.
 */
export const parseDescription = (text: string, offset: number): Map<string, DescribedDevice> => {
  const devices = new Map<string, DescribedDevice>();
  const scanner = new Scanner(text, offset);
  scanner.forEachMember((key) => {
    if (key !== 'devices') {
      scanner.skipValue();
      return;
    }
    scanner.forEachElement(() => {
      const start = scanner.at;
      scanner.skipValue();
      if (scanner.at - start > DEVICE_LIMIT_BYTES || devices.size >= DEVICE_LIMIT) {
        throw invalid(
          'DESCRIPTION_TOO_LARGE',
          'The VM description describes more than a machine can have',
          offset + start,
        );
      }
      const device = describedDevice(scanner.parse(start), offset + start);
      const deviceId = deviceKey(device.name, device.instance);
      if (devices.has(deviceId)) {
        throw invalid('DESCRIPTION_DUPLICATE', `The VM description has device "${device.name}" twice`, offset + start, {
          value: device.name,
        });
      }
      devices.set(deviceId, device);
    });
  });
  return devices;
};

/** Walks JSON text without building anything and without recursion. */
class Scanner {
  at = 0;
  readonly #text: string;
  readonly #offset: number;

  constructor(text: string, offset: number) {
    this.#text = text;
    this.#offset = offset;
  }

  /** Calls `member` with each key of the object at the current position; `member` must step over the value. */
  forEachMember(member: (key: string) => void): void {
    this.#forEach('{', '}', () => {
      const start = this.at;
      this.skipValue();
      const key = this.parse(start);
      if (typeof key !== 'string' || this.#next() !== ':') {
        throw this.#error();
      }
      this.at += 1;
      this.#next();
      member(key);
    });
  }

  /** Calls `element` at each element of the array at the current position; `element` must step over it. */
  forEachElement(element: () => void): void {
    this.#forEach('[', ']', element);
  }

  /** Steps over one value of any kind. What it steps over is well formed only as far as brackets and strings go. */
  skipValue(): void {
    let depth = 0;
    do {
      const character = this.#next();
      if (character === '{' || character === '[') {
        depth += 1;
      } else if (character === '}' || character === ']') {
        depth -= 1;
      } else if (character === '"') {
        this.#skipString();
        continue;
      } else if (character !== ',' && character !== ':') {
        this.#skipWord();
        continue;
      }
      this.at += 1;
    } while (depth > 0);
    if (depth < 0) {
      throw this.#error();
    }
  }

  /** The value that `skipValue` stepped over from `start` to the current position. */
  parse(start: number): unknown {
    try {
      return JSON.parse(this.#text.slice(start, this.at));
    } catch {
      throw this.#error();
    }
  }

  #forEach(open: string, close: string, item: () => void): void {
    if (this.#next() !== open) {
      throw this.#error();
    }
    this.at += 1;
    if (this.#next() !== close) {
      for (item(); this.#next() === ','; item()) {
        this.at += 1;
        this.#next();
      }
    }
    if (this.#next() !== close) {
      throw this.#error();
    }
    this.at += 1;
  }

  /** Skips blanks; the character there, undefined at the end of the text. */
  #next(): string | undefined {
    while (this.#text[this.at] === ' ') {
      this.at += 1;
    }
    return this.#text[this.at];
  }

  #skipString(): void {
    for (this.at += 1; this.#text[this.at] !== '"'; this.at += 1) {
      if (this.#text[this.at] === '\\') {
        this.at += 1;
      }
      if (this.at >= this.#text.length) {
        throw this.#error();
      }
    }
    this.at += 1;
  }

  /** A number, `true`, `false` or `null`. */
  #skipWord(): void {
    const start = this.at;
    while (/[-+.\w]/.test(this.#text[this.at] ?? '')) {
      this.at += 1;
    }
    if (this.at === start) {
      throw this.#error();
    }
  }

  #error(): Error {
    return invalid(
      'DESCRIPTION_NOT_JSON',
      'The VM description is not JSON of the expected shape',
      this.#offset + this.at,
    );
  }
}

const describedDevice = (value: unknown, offset: number): DescribedDevice => {
  const device = asObject(value);
  const { name, instance_id: instance } = device;
  if (typeof name !== 'string' || !isCount(instance)) {
    throw invalid('DESCRIPTION_SHAPE', 'The VM description has a device without name or instance_id', offset);
  }
  const bytes = structureBytes(device, 0);
  if (!isCount(bytes)) {
    const statement = `The VM description gives no length for device "${name}"`;
    throw invalid('DESCRIPTION_SHAPE', statement, offset, { value: name });
  }
  return { name, instance, bytes };
};

/** What is read of a device, a subsection, a field. Nothing of it is known to be there, nor to be of the right type. */
interface Described {
  readonly name?: unknown;
  readonly instance_id?: unknown;
  readonly vmsd_name?: unknown;
  readonly fields?: unknown;
  readonly subsections?: unknown;
  readonly size?: unknown;
  readonly array_len?: unknown;
}

const asObject = (value: unknown): Described => (typeof value === 'object' && value !== null ? value : {});

/**
 * Bytes of a structure: its fields (a field's size includes everything nested in it), then for each subsection the
 * type byte, the name with its length byte, the version, and its own structure. NaN if any of it is not as expected.
 */
const structureBytes = (structure: Described, depth: number): number => {
  const { fields = [], subsections = [] } = structure;
  if (!Array.isArray(fields) || !Array.isArray(subsections) || depth > SUBSECTION_DEPTH_LIMIT) {
    return Number.NaN;
  }
  let bytes = 0;
  for (const field of fields) {
    const { size, array_len: count = 1 } = asObject(field);
    bytes += isCount(size) && isCount(count) ? size * count : Number.NaN;
  }
  for (const subsection of subsections.map(asObject)) {
    const { vmsd_name: name } = subsection;
    bytes += typeof name === 'string' ? 6 + name.length + structureBytes(subsection, depth + 1) : Number.NaN;
  }
  return bytes;
};

/** A non-negative integer that a number holds exactly. */
const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
