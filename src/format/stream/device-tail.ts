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

/** Makes the tail of a guest of our own. Each device is described as one opaque buffer, so that any reader can cut it. */
export const buildDeviceTail = (devices: readonly DeviceState[]): DeviceTail => {
  const out = new ByteWriter(4096);
  const described: string[] = [];
  devices.forEach(({ name, instance, version, body }, index) => {
    sectionHeader(out, ElementType.SECTION_FULL, FIRST_SECTION_ID + index, name, instance, version).bytes(body);
    footer(out, FIRST_SECTION_ID + index);
    const size = body.length;
    described.push(
      `{"name": ${JSON.stringify(name)}, "instance_id": ${instance}, "size": ${size}, ` +
        `"fields": [{"name": "data", "size": ${size}, "type": "buffer"}]}`,
    );
  });
  return {
    early: new Uint8Array(),
    sections: out.copy(),
    description: `{"page_size": ${DEFAULT_TARGET_PAGE_SIZE}, "devices": [${described.join(', ')}]}`,
  };
};

/**
 * The state of each device of a tail, as `buildDeviceTail` was given it. `devices` are all sections of the tail in
 * their order, early ones first, as the reader lists them.
 */
export const deviceStates = (tail: DeviceTail, devices: readonly DeviceSection[]): DeviceState[] => {
  const bytes = new ByteWriter(tail.early.length + tail.sections.length).bytes(tail.early).bytes(tail.sections).copy();
  let at = 0;
  return devices.map(({ name, instance, version, bytes: length }) => {
    const body = at + 1 + 4 + 1 + name.length + 4 + 4;
    at = body + length + FOOTER_BYTES;
    return { name, instance, version, body: bytes.slice(body, body + length) };
  });
};
