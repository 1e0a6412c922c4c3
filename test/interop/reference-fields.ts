// The fields of a device section, decoded a second time for comparison with ours: plain recursion over the VM description, and
// no error handling. It shares no code with src/format. Its output was compared with scripts/analyze-migration.py of QEMU 10.0
// on the whole corpus, and is the same to the letter.

import assert from 'node:assert/strict';
import type { DescribedField, Description } from './reference-reader.js';

export type ReferenceValue = string | boolean | ReferenceValue[] | { [name: string]: ReferenceValue };

const signedTypes = ['int8', 'int16', 'int32', 'int64', 'int32 equal', 'int32 le'];
const unsignedTypes = [
  'uint8',
  'uint16',
  'uint32',
  'uint64',
  'uint32 equal',
  'uint8 equal',
  'uint16 equal',
  'int64 equal',
];

/** Fields of the section whose body is `bytes`, which it must fill. */
export const referenceFields = (device: Description, bytes: Buffer): { [name: string]: ReferenceValue } => {
  let at = 0;
  const take = (size: number): Buffer => {
    assert.ok(at + size <= bytes.length);
    at += size;
    return bytes.subarray(at - size, at);
  };

  const value = ({ type, size, struct }: DescribedField): ReferenceValue => {
    if (struct !== undefined) {
      return structure(struct);
    }
    const taken = take(size);
    const digits = taken.toString('hex');
    if (signedTypes.includes(type)) {
      const negative = (taken[0]! & 0x80) !== 0;
      return `0x${digits}${negative ? ` (${BigInt(`0x${digits}`) - (1n << BigInt(8 * size))})` : ''}`;
    }
    if (unsignedTypes.includes(type)) {
      return `0x${digits}`;
    }
    if (type === 'bool') {
      return taken[0] !== 0;
    }
    return type === 'nullptr' ? 'nullptr' : (digits.match(/../g) ?? []).join(' ');
  };

  const structure = ({ fields = [], subsections = [] }: Description): { [name: string]: ReferenceValue } => {
    const lists = new Map<string, ReferenceValue[]>();
    for (const field of fields) {
      if (!lists.has(field.name)) {
        lists.set(field.name, []);
      }
      for (let element = 0; element < (field.array_len ?? 1); element++) {
        lists.get(field.name)!.push(value(field));
      }
    }
    const result = Object.fromEntries(
      [...lists].map(([name, list]) => [name, list.length === 1 ? list[0]! : list] as const),
    );
    for (const subsection of subsections) {
      assert.equal(take(1)[0], 0x05);
      const name = take(take(1)[0]!).toString('latin1');
      assert.equal(name, subsection.vmsd_name);
      take(4);
      result[name] = structure(subsection);
    }
    return result;
  };

  const result = structure(device);
  assert.equal(at, bytes.length);
  return result;
};
