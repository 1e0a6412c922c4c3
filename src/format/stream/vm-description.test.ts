// Lengths from the VM description (spec/qemu-wire-format.md 1.9.1), and what passes for none.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseDescription } from './vm-description.js';

const lengths = (text: string): [string, number][] =>
  [...parseDescription(text, 0).devices.values()].map(({ name, instance, bytes }) => [`${name}/${instance}`, bytes]);

test('fields, arrays, nested structures, subsections within subsections', () => {
  const text = `{"configuration": {"vmsd_name": "configuration", "version": 1, "fields": [{"name": "len", "size": 4}]},
    "page_size": 4096, "devices": [
    {"name": "plain", "instance_id": 0, "size": 7, "fields": [{"name": "data", "size": 7, "type": "buffer"}]},
    {"name": "cpu", "instance_id": 3, "vmsd_name": "cpu", "version": 12, "fields": [
      {"name": "regs", "array_len": 16, "type": "uint64", "size": 8},
      {"name": "s", "type": "struct", "struct": {"vmsd_name": "s", "version": 1, "fields": [{"size": 99}]}, "size": 10}],
     "subsections": [{"vmsd_name": "cpu/a", "version": 1, "fields": [{"size": 1}],
       "subsections": [{"vmsd_name": "cpu/a/b", "version": 1, "fields": []}]}]},
    {"name": "say \\"]}\\\\", "instance_id": 0, "fields": []}]}`.replaceAll('\n', '');
  assert.deepEqual(lengths(text), [
    ['plain/0', 7],
    // 16 * 8 + 10, then 05, length byte, "cpu/a", version: 11 and its field, then 13 for "cpu/a/b".
    ['cpu/3', 138 + 11 + 1 + 13],
    ['say "]}\\/0', 0],
  ]);
});

test('a description without devices describes none', () => {
  assert.deepEqual(lengths('{}'), []);
  assert.deepEqual(lengths('{"devices": []}'), []);
});

test('what is not of that shape is refused', () => {
  const device = (inner: string): string => `{"devices": [{"name": "x", "instance_id": 0, ${inner}}]}`;
  for (const [code, text] of [
    ['DESCRIPTION_NOT_JSON', ''],
    ['DESCRIPTION_NOT_JSON', '[]'],
    ['DESCRIPTION_NOT_JSON', '{"devices"'],
    ['DESCRIPTION_NOT_JSON', '{"devices": 1}'],
    ['DESCRIPTION_NOT_JSON', '{"devices": [{]}'],
    ['DESCRIPTION_NOT_JSON', '{"devices": [{"name": tru}]}'],
    ['DESCRIPTION_NOT_JSON', '{"devices": [}'],
    ['DESCRIPTION_NOT_JSON', '{"a": "\\'],
    ['DESCRIPTION_SHAPE', '{"devices": [1]}'],
    ['DESCRIPTION_SHAPE', '{"devices": [null]}'],
    ['DESCRIPTION_SHAPE', '{"devices": [{"name": "x"}]}'],
    ['DESCRIPTION_SHAPE', '{"devices": [{"name": "x", "instance_id": -1}]}'],
    ['DESCRIPTION_SHAPE', device('"fields": 3')],
    ['DESCRIPTION_SHAPE', device('"fields": [3]')],
    ['DESCRIPTION_SHAPE', device('"fields": [{"size": -1}]')],
    ['DESCRIPTION_SHAPE', device('"fields": [{"size": 1.5}]')],
    ['DESCRIPTION_SHAPE', device('"fields": [{"size": 9007199254740991, "array_len": 2}]')],
    ['DESCRIPTION_SHAPE', device('"subsections": [{"fields": []}]')],
  ] as const) {
    assert.throws(() => parseDescription(text, 500), { kind: 'invalid', code }, text);
  }
});
