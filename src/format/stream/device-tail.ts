// All non-RAM sections of a stream, as bytes: ramferry passes device state through untouched (spec/qemu-wire-format.md
// 1.10) and never interprets it.

import { ByteWriter } from '../byte-writer.js';
import { DEFAULT_TARGET_PAGE_SIZE, ElementType } from './constants.js';
import { type DeviceSection, FOOTER_BYTES } from './device-sections.js';
import { footer, sectionHeader } from './write.js';

/** Device state as stream bytes, with the description that says where each section ends. */
export interface DeviceTail {
  /** FULL sections that go between RAM START and the first PART (virtio-mem's early section), footers included; often empty. */
  readonly early: Uint8Array;
  /**
   * START, PART and END sections of other devices than RAM, footers included, in the order of the stream: they go behind
   * RAM START. Undefined where there are none.
   */
  readonly iterable?: Uint8Array | undefined;
  /** Its sections do not end with footers: those of machine types up to 2.3, which no other machine type loads. */
  readonly lacksFooters?: true | undefined;
  /** FULL sections after RAM END, footers included, without the EOF element. */
  readonly sections: Uint8Array;
  /** The VM description: the JSON text that follows EOF; empty if the stream had none. */
  readonly description: string;
}

/** State of one device of a guest that is not QEMU's. */
export interface DeviceState {
  /** Section name, e.g. `ramferry/workload`. */
  readonly name: string;
  readonly instance: number;
  readonly version: number;
  readonly body: Uint8Array;
}

/** Section ids of a built tail start here: 0 is no good (1.5), and 1 is left to RAM, as in a QEMU of x86. */
const FIRST_SECTION_ID = 2;

/**
 * Makes the tail of a guest of our own; `early` goes before RAM. Each device is described as one opaque buffer, so that any
 * reader can cut it.
 */
export const buildDeviceTail = (
  devices: readonly DeviceState[],
  early: readonly DeviceState[] = [],
  pageSize: number = DEFAULT_TARGET_PAGE_SIZE,
): DeviceTail => {
  const sections = new ByteWriter(4096);
  const earlySections = new ByteWriter();
  const described: string[] = [];
  [...early, ...devices].forEach(({ name, instance, version, body }, index) => {
    const out = index < early.length ? earlySections : sections;
    sectionHeader(out, ElementType.SECTION_FULL, FIRST_SECTION_ID + index, name, instance, version).bytes(body);
    footer(out, FIRST_SECTION_ID + index);
    const size = body.length;
    described.push(
      `{"name": ${JSON.stringify(name)}, "instance_id": ${instance}, "size": ${size}, ` +
        `"fields": [{"name": "data", "size": ${size}, "type": "buffer"}]}`,
    );
  });
  return {
    early: earlySections.copy(),
    sections: sections.copy(),
    description: `{"page_size": ${pageSize}, "devices": [${described.join(', ')}]}`,
  };
};

/**
 * The state of each device of a tail, as `buildDeviceTail` was given it. `devices` are all sections of the tail in
 * their order, early ones first, as the reader lists them.
 */
export const deviceStates = (tail: DeviceTail, devices: readonly DeviceSection[]): DeviceState[] => {
  const bytes = new ByteWriter(tail.early.length + tail.sections.length).bytes(tail.early).bytes(tail.sections).copy();
  const positions = bodyPositions(devices, tail);
  return devices.map(({ name, instance, version, bytes: length }, index) => {
    const body = positions[index]!;
    return { name, instance, version, body: bytes.slice(body, body + length) };
  });
};

/** Where each section's body stands in the tail's bytes: the early ones, and behind them the others. */
export const bodyPositions = (
  devices: readonly DeviceSection[],
  { lacksFooters }: Pick<DeviceTail, 'lacksFooters'>,
): number[] => {
  const footerBytes = lacksFooters ? 0 : FOOTER_BYTES;
  let at = 0;
  return devices.map(({ name, bytes: length }) => {
    const body = at + 1 + 4 + 1 + name.length + 4 + 4;
    at = body + length + footerBytes;
    return body;
  });
};

/**
 * A section id for RAM that no section of the tail uses. Never 0: a QEMU destination would take a PART of section 0
 * for one of a device it has not loaded yet (1.5).
 *
 * Needs no knowledge of where sections end: a FULL section with id S holds the bytes `04 be32(S)`, and one that iterates
 * `01 be32(S)`, so an id that never follows such a byte is free. Device data that looks like a section header only costs an id.
 */
export const pickRamSectionId = (tail: DeviceTail): number => {
  const taken = new Set<number>();
  const take = (bytes: Uint8Array, type: number): void => {
    for (let at = bytes.indexOf(type); at >= 0; at = bytes.indexOf(type, at + 1)) {
      // Ids count up from 0 in registration order; those beyond 16 bits are data, and so is a header cut by the end.
      if (bytes[at + 1] === 0 && bytes[at + 2] === 0 && at + 4 < bytes.length) {
        taken.add(bytes[at + 3] * 0x100 + bytes[at + 4]);
      }
    }
  };
  take(tail.early, ElementType.SECTION_FULL);
  take(tail.sections, ElementType.SECTION_FULL);
  take(tail.iterable ?? new Uint8Array(), ElementType.SECTION_START);
  let id = 1;
  while (taken.has(id)) {
    id += 1;
  }
  return id;
};

/** What goes behind RAM START: early sections, and those that iterate as RAM does. */
export const inFrontOfPages = ({ early, iterable }: DeviceTail): Uint8Array =>
  iterable === undefined ? early : new ByteWriter(early.length + iterable.length).bytes(early).bytes(iterable).copy();
