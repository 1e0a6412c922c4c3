// A stream whose device sections are described field by field, as QEMU's are.

import { ByteWriter } from '../src/format/byte-writer.js';
import type { DeviceTail } from '../src/format/stream/device-tail.js';
import { footer, sectionHeader } from '../src/format/stream/write.js';
import { StreamBuilder } from './streams.js';

export interface DescribedTestDevice {
  readonly name: string;
  readonly instance?: number;
  readonly version?: number;
  readonly body: Uint8Array;
  /** `fields` and `subsections` of the VM description. */
  readonly description: object;
}

/** The tail of a saved guest with these devices, and their description, or the one given instead. */
export const describedTail = (devices: readonly DescribedTestDevice[], description?: string): DeviceTail => {
  const sections = new ByteWriter();
  devices.forEach(({ name, instance = 0, version = 1, body }, index) => {
    footer(sectionHeader(sections, 4, 2 + index, name, instance, version).bytes(body), 2 + index);
  });
  const described = devices.map(({ name, instance = 0, version = 1, description: more }) => ({
    name,
    instance_id: instance,
    vmsd_name: name.slice(name.lastIndexOf('/') + 1),
    version,
    ...more,
  }));
  return {
    early: new Uint8Array(0),
    sections: sections.copy(),
    description: description ?? JSON.stringify({ page_size: 4096, devices: described }),
  };
};

/** A saved guest of one page with these devices, and the description, or the one given instead. */
export const describedStream = (devices: readonly DescribedTestDevice[], description?: string): Uint8Array =>
  new StreamBuilder()
    .header()
    .ramStart([{ name: 'pc.ram', usedLength: 4096 }])
    .end([{ block: 'pc.ram', page: 0, kind: 'zero' }])
    .tail(describedTail(devices, description)).bytes;
