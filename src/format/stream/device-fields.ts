// The fields of device sections by name, as the VM description has them (spec/qemu-wire-format.md 1.3, 1.6, 1.9.1). What each
// type means agrees with scripts/analyze-migration.py of QEMU; what it shows as bytes and is known to be more is more here.

import { RamferryError } from '../../memory/errors.js';
import { parseJson } from '../parse-json.js';
import type { DeviceSection } from './device-sections.js';
import { bodyPositions } from './device-tail.js';
import { FieldDecoder } from './field-decoder.js';
import type { FieldGroup } from './field-group.js';
import type { StreamSummary } from './stream-handler.js';
import { asObject, type DescribedDevice, deviceKeys, parseDescription } from './vm-description.js';

/** One device section with its fields. */
export interface DeviceFields {
  readonly section: DeviceSection;
  /** Name of the description, which is that of the device's type, e.g. `e1000e`; empty where there is none. */
  readonly vmsd: string;
  /** The bytes that the fields are made of. */
  readonly body: Uint8Array;
  readonly fields: FieldGroup;
  /** How many fields there are, every element of every array counted. */
  readonly count: number;
}

/**
 * The device sections of an opened file, with the fields of each.
 *
 * Nothing is decoded before it is asked for, and nothing is kept: every call of `fields` decodes one section anew.
 */
export class DescribedDevices {
  /** All device sections of the file, in its order, those before RAM first. */
  readonly sections: readonly DeviceSection[];
  readonly #summary: StreamSummary;
  /** Where the body of each section stands in the tail. */
  readonly #positions: ReadonlyMap<DeviceSection, number>;
  /** How the description is asked for each section. */
  readonly #keys: ReadonlyMap<DeviceSection, string>;
  #described: ReadonlyMap<string, DescribedDevice> | undefined;

  /** @param summary that of an opened file: `snapshot.summary` */
  constructor(summary: StreamSummary) {
    this.#summary = summary;
    this.sections = summary.devices;
    const positions = bodyPositions(summary.devices, summary.tail);
    this.#positions = new Map(summary.devices.map((section, index) => [section, positions[index]!]));
    const keyOf = deviceKeys();
    this.#keys = new Map(summary.devices.map((section) => [section, keyOf(section.name, section.instance)]));
  }

  /** Whether the file says what its sections consist of. Without a VM description only their bytes are known. */
  get isDescribed(): boolean {
    return this.#summary.tail.description !== '';
  }

  /** The sections of that name, one for each instance. */
  named(name: string): DeviceSection[] {
    return this.sections.filter((section) => section.name === name);
  }

  /** The body of a section, which must be one of `sections`. */
  body(section: DeviceSection): Uint8Array {
    const { early, sections } = this.#summary.tail;
    const position = this.#positions.get(section)!;
    return position < early.length
      ? early.subarray(position, position + section.bytes)
      : sections.subarray(position - early.length, position - early.length + section.bytes);
  }

  /**
   * Decodes a section, which must be one of `sections`.
   * @throws RamferryError `invalid` if the description disagrees with its bytes, or leaves it out; `failed` if there is none
   */
  fields(section: DeviceSection): DeviceFields {
    const described = this.#descriptionOf(section);
    const { vmsd_name: vmsd } = described;
    const body = this.body(section);
    const decoder = new FieldDecoder(body, section);
    const fields = decoder.decode(described);
    return { section, vmsd: typeof vmsd === 'string' ? vmsd : '', body, fields, count: decoder.count };
  }

  #descriptionOf(section: DeviceSection): ReturnType<typeof asObject> {
    const { description } = this.#summary.tail;
    if (description === '') {
      throw noDescription();
    }
    this.#described ??= parseDescription(description, 0).devices;
    const described = this.#described.get(this.#keys.get(section)!);
    if (described === undefined) {
      const { name, instance, offset } = section;
      throw new RamferryError(
        'invalid',
        'DEVICE_NOT_DESCRIBED',
        `The VM description does not describe device section "${name}" (instance ${instance}), at byte ${offset}.`,
        { offset, value: name },
      );
    }
    return asObject(parseJson(description.slice(...described.text)));
  }
}

/** The error about a file whose sections nobody describes. */
export const noDescription = (): RamferryError =>
  new RamferryError(
    'failed',
    'NO_DESCRIPTION',
    'The file has no VM description that can be read: what its device sections consist of is not known.',
    { hint: 'QEMU leaves it out in postcopy, and for machines with suppress-vmdesc=on; verify says if it is damaged.' },
  );

/**
 * The fields of one device of an opened file, e.g. `deviceFields(snapshot.summary, 'cpu', 1)`.
 * @throws RamferryError `usage` if the file has no such section, and as `DescribedDevices.fields`
 */
export const deviceFields = (summary: StreamSummary, name: string, instance = 0): DeviceFields => {
  const devices = new DescribedDevices(summary);
  const section = devices.named(name).find((each) => each.instance === instance);
  if (section === undefined) {
    throw new RamferryError(
      'usage',
      'NO_SUCH_DEVICE',
      `The file has no device section "${name}" (instance ${instance}).`,
      {
        value: name,
      },
    );
  }
  return devices.fields(section);
};
