// What device state looks like once it has names.

import { RamferryError } from '../../memory/errors.js';

/**
 * What a field holds: integers and timers are bigints, whatever their size; `null` is a pointer to nothing in an array of
 * pointers; bytes are everything whose meaning only the device knows.
 */
export type FieldValue = bigint | boolean | null | Uint8Array | FieldGroup;

export interface DeviceField {
  /** As the description names it: `uint32`, `struct`, `timer`, `pci config`. */
  readonly type: string;
  /** Where it stands in the section's body, and how many bytes it takes. */
  readonly at: number;
  readonly bytes: number;
  readonly value: FieldValue;
}

/**
 * A structure: fields and subsections by name, in their order.
 *
 * A name may stand for several fields. They are the elements of an array, or an array that QEMU saved piece by piece, or
 * unused bytes here and there.
 */
export class FieldGroup {
  readonly fields: ReadonlyMap<string, readonly DeviceField[]>;
  /** By full name, e.g. `cpu/msr_smi_count`: the optional parts that were saved. */
  readonly subsections: ReadonlyMap<string, Subsection>;

  constructor(fields: ReadonlyMap<string, readonly DeviceField[]>, subsections: ReadonlyMap<string, Subsection>) {
    this.fields = fields;
    this.subsections = subsections;
  }

  /** How many fields have that name. */
  count(name: string): number {
    return this.fields.get(name)?.length ?? 0;
  }

  /** The value of a field, undefined if there is none of that name. */
  value(name: string, index = 0): FieldValue | undefined {
    return this.fields.get(name)?.[index]?.value;
  }

  /** @throws RamferryError `invalid` if it is not there, or no integer */
  integer(name: string, index = 0): bigint {
    const value = this.value(name, index);
    if (typeof value !== 'bigint') {
      throw missing(name, index, 'an integer');
    }
    return value;
  }

  /** @throws RamferryError `invalid` if it is not there, or no structure */
  group(name: string, index = 0): FieldGroup {
    const value = this.value(name, index);
    if (!(value instanceof FieldGroup)) {
      throw missing(name, index, 'a structure');
    }
    return value;
  }

  /** @throws RamferryError `invalid` if it is not there, or not only bytes */
  bytes(name: string, index = 0): Uint8Array {
    const value = this.value(name, index);
    if (!(value instanceof Uint8Array)) {
      throw missing(name, index, 'bytes');
    }
    return value;
  }
}

/** An optional part of a structure. */
export interface Subsection {
  readonly version: number;
  readonly group: FieldGroup;
}

const missing = (name: string, index: number, what: string): RamferryError =>
  new RamferryError(
    'invalid',
    'DEVICE_FIELD_MISSING',
    `The device state has no field "${name}"${index === 0 ? '' : `, element ${index},`} that is ${what}.`,
    { value: name, hint: 'Another version of QEMU may save this device with other fields.' },
  );
