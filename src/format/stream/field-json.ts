// Device state as a document: the one that scripts/analyze-migration.py of QEMU prints for a section, so that what reads that
// reads ours. Integers are text of hexadecimal digits, as many as the field has, with the decimal value where it is negative;
// bytes are pairs of digits with blanks between them.

import type { DeviceFields } from './device-fields.js';
import type { DeviceField, FieldGroup } from './field-group.js';

/** A JSON document of fields by name. */
export type FieldsDocument = { readonly [name: string]: FieldDocument };
export type FieldDocument = string | boolean | FieldsDocument | readonly FieldDocument[];

/**
 * The fields of a section as analyze-migration.py has them.
 * @param bytesText text of a field that is bytes; default all of them
 */
export const fieldsDocument = (
  { fields, body }: DeviceFields,
  bytesText: (bytes: Uint8Array) => string = hexPairs,
): FieldsDocument => {
  // As deep as the decoder lets structures nest, which is not what a file decides.
  const groupDocument = ({ fields: byName, subsections }: FieldGroup): FieldsDocument => {
    const entries: [string, FieldDocument][] = [];
    for (const [name, same] of byName) {
      entries.push([name, same.length === 1 ? fieldDocument(same[0]!) : same.map(fieldDocument)]);
    }
    for (const [name, { group }] of subsections) {
      entries.push([name, groupDocument(group)]);
    }
    return Object.fromEntries(entries);
  };
  const fieldDocument = ({ type, at, bytes, value }: DeviceField): FieldDocument => {
    if (typeof value === 'boolean') {
      return value;
    }
    if (value === null) {
      return 'nullptr';
    }
    if (typeof value === 'bigint' && type !== 'timer') {
      const digits = `0x${BigInt.asUintN(bytes * 8, value)
        .toString(16)
        .padStart(bytes * 2, '0')}`;
      return value < 0n ? `${digits} (${value})` : digits;
    }
    return typeof value === 'object' && !(value instanceof Uint8Array) && type === 'struct'
      ? groupDocument(value)
      : bytesText(body.subarray(at, at + bytes));
  };
  return groupDocument(fields);
};

/** `00 7f ff`. */
const hexPairs = (bytes: Uint8Array): string =>
  Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join(' ');
