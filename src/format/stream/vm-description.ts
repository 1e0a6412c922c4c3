// The VM description: JSON text after EOF that gives the length of every field of every device section, and with it the
// only exact way to tell where a device section ends (spec/qemu-wire-format.md 1.7, 1.9.1).
//
// The text comes from the peer and can be large: a QEMU with 1,000 vCPUs describes each of them in some 30 KB. So the
// document is never parsed as a whole: a scanner that keeps only its position walks the outer object, and JSON.parse
// sees one device at a time.

import { invalid } from '../invalid.js';
import { JsonScanner } from './json-scanner.js';

/** What the description says of one section. Its fields stay text until somebody asks for them (device-fields.ts). */
export interface DescribedDevice {
  readonly name: string;
  readonly instance: number;
  /** Length of the section's body, in stream bytes. */
  readonly bytes: number;
  /** Where its JSON object stands in the text: start and end. */
  readonly text: readonly [start: number, end: number];
}

/** Longest text accepted: twice what QEMU writes for 1,000 vCPUs. */
export const DESCRIPTION_LIMIT_BYTES = 64 * 1024 * 1024;

/** Longest description of a single device; the largest known, a vCPU with every optional state, takes 30 KB. */
const DEVICE_LIMIT_BYTES = 4 * 1024 * 1024;

/** Most devices; QEMU itself runs out of section ids for fewer. */
export const DEVICE_LIMIT = 65_536;

/** Structures and subsections nest three or four deep in QEMU. */
export const DESCRIPTION_DEPTH_LIMIT = 32;

/** How the devices of one machine are looked up: by name and instance, never by position (early ones come first). */
export const deviceKey = (name: string, instance: number): string => `${instance} ${name}`;

/**
 * Tells apart devices of the same name and instance: an ISA-only PC has two of some, and QEMU loads them in their order.
 * Called with each device in turn, it gives the key of that device.
 */
export const deviceKeys = (): ((name: string, instance: number) => string) => {
  const counts = new Map<string, number>();
  return (name, instance) => {
    const key = deviceKey(name, instance);
    const count = counts.get(key) ?? 0;
    counts.set(key, count + 1);
    return count === 0 ? key : `${key}\n${count}`;
  };
};

/** What a VM description says. */
export interface VmDescription {
  /** Bytes of a target page; undefined where the text does not say. */
  readonly pageSize: number | undefined;
  /** By the keys of `deviceKeys`, in the order of the text. */
  readonly devices: ReadonlyMap<string, DescribedDevice>;
}

/** Reads a VM description. Errors carry `offset`, the stream offset of the text. */
export const parseDescription = (text: string, offset: number): VmDescription => {
  const devices = new Map<string, DescribedDevice>();
  let pageSize: number | undefined;
  const keyOf = deviceKeys();
  const scanner = new JsonScanner(text, offset);
  scanner.forEachMember((key) => {
    if (key === 'page_size') {
      const start = scanner.at;
      scanner.skipValue();
      const value = scanner.at - start < 20 ? scanner.parse(start) : undefined;
      pageSize = isCount(value) ? value : undefined;
      return;
    }
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
      const device = describedDevice(scanner.parse(start), offset + start, [start, scanner.at]);
      devices.set(keyOf(device.name, device.instance), device);
    });
  });
  return { pageSize, devices };
};

const describedDevice = (value: unknown, offset: number, text: readonly [number, number]): DescribedDevice => {
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
  return { name, instance, bytes, text };
};

/** What is read of a device, a subsection, a field. Nothing of it is known to be there, nor to be of the right type. */
export interface Described {
  readonly name?: unknown;
  readonly instance_id?: unknown;
  readonly vmsd_name?: unknown;
  readonly fields?: unknown;
  readonly subsections?: unknown;
  readonly size?: unknown;
  readonly array_len?: unknown;
  readonly type?: unknown;
  readonly struct?: unknown;
  readonly version?: unknown;
}

export const asObject = (value: unknown): Described => (typeof value === 'object' && value !== null ? value : {});

/**
 * Bytes of a structure: its fields (a field's size includes everything nested in it), then for each subsection the
 * type byte, the name with its length byte, the version, and its own structure. NaN if any of it is not as expected.
 */
const structureBytes = (structure: Described, depth: number): number => {
  const { fields = [], subsections = [] } = structure;
  if (!Array.isArray(fields) || !Array.isArray(subsections) || depth > DESCRIPTION_DEPTH_LIMIT) {
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

/** Whether it is a non-negative integer that a number holds exactly. */
export const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
