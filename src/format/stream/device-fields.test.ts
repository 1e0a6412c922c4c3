// Fields by name: what each type means, arrays, structures, subsections, and where description and bytes disagree.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { random } from '../../../test/random.js';
import { StreamBuilder } from '../../../test/streams.js';
import { RamferryError } from '../../memory/errors.js';
import { ByteWriter } from '../byte-writer.js';
import { openSnapshot } from '../open-snapshot.js';
import { DescribedDevices, type DeviceFields, deviceFields } from './device-fields.js';
import type { DeviceSection } from './device-sections.js';
import { EMPTY_FIELD_LIMIT, FIELD_LIMIT, FieldDecoder, STRUCTURE_LIMIT } from './field-decoder.js';
import type { FieldGroup } from './field-group.js';
import { fieldsDocument } from './field-json.js';
import type { StreamSummary } from './stream-handler.js';
import type { Described } from './vm-description.js';
import { footer, sectionHeader } from './write.js';

interface TestField {
  readonly name: string;
  readonly type: string;
  readonly size: number;
  readonly array_len?: number;
  readonly index?: number;
  readonly struct?: object;
  readonly fields?: readonly TestField[];
}

const field = (name: string, type: string, size: number, more: Partial<TestField> = {}): TestField => ({
  name,
  type,
  size,
  ...more,
});

const sectionOf = (bytes: number): DeviceSection => ({
  section: 7,
  name: 'dev',
  instance: 0,
  version: 1,
  offset: 1000,
  bytes,
});

const decodeFields = (description: Described, body: Uint8Array, section: DeviceSection): FieldGroup =>
  new FieldDecoder(body, section).decode(description);

/** Decodes `hexadecimal` bytes that stand at byte 1000 of a file. */
const decode = (description: Described, hexadecimal: string): FieldGroup => {
  const body = Buffer.from(hexadecimal.replaceAll(' ', ''), 'hex');
  return decodeFields(description, body, sectionOf(body.length));
};

const documentOf = (description: Described, hexadecimal: string): object => {
  const body = Buffer.from(hexadecimal.replaceAll(' ', ''), 'hex');
  const section = sectionOf(body.length);
  return fieldsDocument({ section, vmsd: '', body, fields: decodeFields(description, body, section), count: 0 });
};

test('integers of every size, with and without sign; "equal" and "le" are what QEMU checks, not how it writes', () => {
  const fields = [
    field('i8', 'int8', 1),
    field('u8', 'uint8 equal', 1),
    field('i16', 'int16', 2),
    field('u16', 'uint16', 2),
    field('i32', 'int32 le', 4),
    field('u32', 'uint32', 4),
    field('i64', 'int64', 8),
    field('u64', 'uint64', 8),
    field('same', 'int64 equal', 8),
  ];
  const bytes = 'ff ff 8000 8000 fffffffe fffffffe 8000000000000000 ffffffffffffffff fffffffffffffffe';
  const group = decode({ fields }, bytes);
  assert.deepEqual(
    fields.map(({ name }) => group.integer(name)),
    [-1n, 255n, -32768n, 32768n, -2n, 0xfffffffen, -(2n ** 63n), 2n ** 64n - 1n, 2n ** 64n - 2n],
  );
  assert.deepEqual(documentOf({ fields }, bytes), {
    i8: '0xff (-1)',
    u8: '0xff',
    i16: '0x8000 (-32768)',
    u16: '0x8000',
    i32: '0xfffffffe (-2)',
    u32: '0xfffffffe',
    i64: '0x8000000000000000 (-9223372036854775808)',
    u64: '0xffffffffffffffff',
    same: '0xfffffffffffffffe',
  });
});

test('booleans, timers, null pointers, bytes of known and unknown types', () => {
  const fields = [
    field('yes', 'bool', 1),
    field('no', 'bool', 1),
    field('timer', 'timer', 8),
    field('nothing', 'nullptr', 1),
    field('buffer', 'buffer', 3),
    field('config', 'pci config', 2),
    field('empty', 'bitmap', 0),
  ];
  const bytes = '02 00 ffffffffffffffff 30 010203 8086';
  const group = decode({ fields }, bytes);
  assert.deepEqual([group.value('yes'), group.value('no'), group.value('nothing')], [true, false, null]);
  assert.equal(group.integer('timer'), -1n);
  assert.deepEqual([...group.bytes('buffer')], [1, 2, 3]);
  assert.deepEqual(documentOf({ fields }, bytes), {
    yes: true,
    no: false,
    timer: 'ff ff ff ff ff ff ff ff',
    nothing: 'nullptr',
    buffer: '01 02 03',
    config: '80 86',
    empty: '',
  });
});

test('an array is a list, whether it is described once, element by element, or in pieces; so are fields of one name', () => {
  const inner = {
    vmsd_name: 'x',
    version: 1,
    fields: [field('a', 'uint8', 1), field('b', 'uint8', 1, { array_len: 2 })],
  };
  const fields = [
    field('once', 'uint16', 2, { array_len: 3 }),
    field('each', 'struct', 3, { index: 0, struct: inner }),
    field('each', 'struct', 3, { index: 1, struct: inner }),
    field('pieces', 'nullptr', 1, { array_len: 2 }),
    field('unused', 'unused_buffer', 1),
    field('pieces', 'uint8', 1),
    field('unused', 'unused_buffer', 2),
    field('one', 'uint8', 1, { array_len: 1 }),
    field('none', 'uint8', 1, { array_len: 0 }),
  ];
  const bytes = '0001 0002 0003 0a0b0c 1a1b1c 30 30 00 07 0000 09';
  assert.deepEqual(documentOf({ fields }, bytes), {
    once: ['0x0001', '0x0002', '0x0003'],
    each: [
      { a: '0x0a', b: ['0x0b', '0x0c'] },
      { a: '0x1a', b: ['0x1b', '0x1c'] },
    ],
    pieces: ['nullptr', 'nullptr', '0x07'],
    unused: ['00', '00 00'],
    one: '0x09',
  });
  const group = decode({ fields }, bytes);
  assert.equal(group.count('pieces'), 3);
  assert.equal(group.group('each', 1).integer('b', 1), 0x1cn);
  assert.throws(() => group.integer('each'), { code: 'DEVICE_FIELD_MISSING' });
  assert.throws(() => group.integer('none'), { code: 'DEVICE_FIELD_MISSING' });
});

test('subsections, within a structure and within one another, with the version that was saved', () => {
  const description = {
    fields: [
      field('s', 'struct', 13, {
        struct: {
          vmsd_name: 's',
          fields: [field('a', 'uint8', 1)],
          subsections: [{ vmsd_name: 's/opt', fields: [field('b', 'uint8', 1)] }],
        },
      }),
    ],
    subsections: [
      { vmsd_name: 'dev/x', fields: [field('c', 'uint8', 1)], subsections: [{ vmsd_name: 'dev/x/y', fields: [] }] },
      { vmsd_name: 'dev/z', fields: [field('d', 'uint8', 1)] },
    ],
  };
  const header = (name: string, version: number): string =>
    Buffer.from(new ByteWriter().u8(5).str8(name).be32(version).copy()).toString('hex');
  const bytes = `01 ${header('s/opt', 2)} 02 ${header('dev/x', 3)} 03 ${header('dev/x/y', 4)} ${header('dev/z', 5)} 06`;
  const group = decode(description, bytes);
  assert.equal(group.subsections.get('dev/x')?.version, 3);
  assert.equal(group.subsections.get('dev/x')?.group.subsections.get('dev/x/y')?.version, 4);
  assert.deepEqual(documentOf(description, bytes), {
    s: { a: '0x01', 's/opt': { b: '0x02' } },
    'dev/x': { c: '0x03', 'dev/x/y': {} },
    'dev/z': { d: '0x06' },
  });
  const wrong = bytes.replace(header('dev/z', 5), header('dev/w', 5));
  assert.throws(() => decode(description, wrong), {
    code: 'DEVICE_SUBSECTION',
    offset: 1000 + 1 + 11 + 1 + 11 + 1 + 13,
    value: 'dev/z',
  });
});

test('what QEMU computes for the stream has fields of its own; a list, whose one description is for all elements, is bytes', () => {
  const inner = [field('mantissa', 'uint64', 8), field('exponent', 'uint16', 2)];
  const fields = [field('tmp', 'tmp', 10, { fields: inner }), field('queue', 'qtailq', 12, { fields: inner })];
  const bytes = '8000000000000000 3fff 01 8000000000000000 3fff 00';
  const group = decode({ fields }, bytes);
  assert.equal(group.group('tmp').integer('exponent'), 0x3fffn);
  assert.equal(group.bytes('queue').length, 12);
  assert.deepEqual(documentOf({ fields }, bytes), {
    tmp: '80 00 00 00 00 00 00 00 3f ff',
    queue: '01 80 00 00 00 00 00 00 00 3f ff 00',
  });
});

describe('where description and bytes disagree, the error says where in the file', () => {
  const struct = (fields: unknown): object => ({ struct: { vmsd_name: 's', fields } });
  const cases: [name: string, code: string, offset: number, description: Described, bytes: string][] = [
    [
      'a field beyond the section',
      'DEVICE_LENGTH',
      1001,
      { fields: [field('a', 'uint8', 1), field('b', 'uint64', 8)] },
      '01 02',
    ],
    [
      'an array beyond the section',
      'DEVICE_LENGTH',
      1002,
      { fields: [field('a', 'uint8', 1, { array_len: 3 })] },
      '01 02',
    ],
    ['bytes that are no field', 'DEVICE_LENGTH', 1001, { fields: [field('a', 'uint8', 1)] }, '01 02'],
    [
      'a structure longer than its fields',
      'DEVICE_LENGTH',
      1001,
      { fields: [field('a', 'struct', 2, struct([field('b', 'uint8', 1)]))] },
      '01 02',
    ],
    [
      'a structure shorter than its fields',
      'DEVICE_LENGTH',
      1000,
      { fields: [field('a', 'struct', 1, struct([field('b', 'uint16', 2)])), field('c', 'uint8', 1)] },
      '01 02',
    ],
    ['a null pointer that is none', 'DEVICE_FIELD', 1000, { fields: [field('a', 'nullptr', 1)] }, '31'],
    [
      'a cut subsection',
      'DEVICE_SUBSECTION',
      1000,
      { fields: [], subsections: [{ vmsd_name: 'a/b', fields: [] }] },
      '05 03 612f62',
    ],
    ['a field without name', 'DESCRIPTION_SHAPE', 1000, { fields: [{ type: 'uint8', size: 1 }] }, '01'],
    ['a field without type', 'DESCRIPTION_SHAPE', 1000, { fields: [{ name: 'a', size: 1 }] }, '01'],
    ['a structure without one', 'DESCRIPTION_SHAPE', 1000, { fields: [field('a', 'struct', 1)] }, '01'],
    ['fields that are none', 'DESCRIPTION_SHAPE', 1000, { fields: [field('a', 'struct', 1, struct('x'))] }, '01'],
  ];
  for (const [name, code, offset, description, bytes] of cases) {
    test(name, () => {
      assert.throws(() => decode(description, bytes), { kind: 'invalid', code, offset });
    });
  }
});

describe('bounds', () => {
  test('elements without bytes', () => {
    const description = { fields: [field('a', 'buffer', 0, { array_len: Number.MAX_SAFE_INTEGER })] };
    assert.throws(() => decode(description, ''), { code: 'DEVICE_FIELDS_TOO_MANY' });
    const fields = Array.from({ length: EMPTY_FIELD_LIMIT + 1 }, () => field('a', 'buffer', 0));
    assert.equal(decode({ fields: fields.slice(1) }, '').count('a'), EMPTY_FIELD_LIMIT);
    assert.throws(() => decode({ fields }, ''), { code: 'DEVICE_FIELDS_TOO_MANY', value: EMPTY_FIELD_LIMIT });
  });

  test('few bytes in many structures', () => {
    let inner: object = { fields: [field('a', 'uint8', 1)] };
    for (let depth = 0; depth < 30; depth += 1) {
      inner = { fields: [field('s', 'struct', 1, { struct: inner })] };
    }
    const elements = Math.ceil(STRUCTURE_LIMIT / 31) + 1;
    const fields = [field('all', 'struct', 1, { array_len: elements, struct: inner })];
    assert.throws(() => decode({ fields }, '01'.repeat(elements)), {
      code: 'DEVICE_FIELDS_TOO_MANY',
      value: STRUCTURE_LIMIT,
    });
  });

  test('one array longer than any', () => {
    const fields = [field('a', 'uint8', 1, { array_len: FIELD_LIMIT + 1 })];
    assert.throws(() => decode({ fields }, '01'.repeat(FIELD_LIMIT + 1)), {
      code: 'DEVICE_FIELDS_TOO_MANY',
      value: FIELD_LIMIT,
    });
  });

  test('names longer than any', () => {
    for (const fields of [[field('a'.repeat(257), 'uint8', 1)], [field('a', 'b'.repeat(257), 1)]]) {
      assert.throws(() => decode({ fields }, '01'), { code: 'DESCRIPTION_SHAPE' });
    }
  });

  test('structures without end, one in another', () => {
    let inner: object = { fields: [] };
    for (let depth = 0; depth < 10_000; depth += 1) {
      inner = { fields: [{ name: 'x', type: 'struct', size: 0, struct: inner }] };
    }
    assert.throws(() => decode(inner, ''), { code: 'DESCRIPTION_SHAPE' });
  });
});

/** A file with the sections `dev` 0 and 1, and the description given. */
const summaryOf = (description: string, body = new Uint8Array([1, 2])): StreamSummary => {
  const sections = new ByteWriter();
  for (const instance of [0, 1]) {
    footer(sectionHeader(sections, 4, 2 + instance, 'dev', instance, 1).bytes(body), 2 + instance);
  }
  const { bytes } = new StreamBuilder()
    .header()
    .ramStart([{ name: 'pc.ram', usedLength: 4096 }])
    .end()
    .tail({ early: new Uint8Array(0), sections: sections.copy(), description });
  return openSnapshot((at, target) => target.set(bytes.subarray(at, at + target.length)), bytes.length).summary;
};

const describedDevice = (instance: number, fields: readonly unknown[]): string =>
  JSON.stringify({ name: 'dev', instance_id: instance, vmsd_name: 'kind', version: 1, fields });

test('of an opened file: one device after the other, each when it is asked for', () => {
  const good = describedDevice(0, [field('a', 'uint8', 1), field('b', 'uint8', 1)]);
  // The second has lengths that add up, and a field without type: no reason not to open the file, nor not to show the first.
  const bad = describedDevice(1, [{ name: 'a', size: 2 }]);
  const summary = summaryOf(`{"devices": [${good}, ${bad}]}`);
  const devices = new DescribedDevices(summary);
  assert.ok(devices.isDescribed);
  assert.deepEqual(
    devices.named('dev').map(({ instance }) => instance),
    [0, 1],
  );
  const { vmsd, fields }: DeviceFields = devices.fields(devices.sections[0]!);
  assert.deepEqual([vmsd, fields.integer('a'), fields.integer('b')], ['kind', 1n, 2n]);
  assert.equal(deviceFields(summary, 'dev').fields.integer('b'), 2n);
  assert.throws(() => deviceFields(summary, 'dev', 1), {
    code: 'DESCRIPTION_SHAPE',
    offset: devices.sections[1]!.offset,
  });
  assert.throws(() => deviceFields(summary, 'dev', 2), { code: 'NO_SUCH_DEVICE', kind: 'usage' });
  assert.throws(() => deviceFields(summaryOf(''), 'dev'), { code: 'NO_DESCRIPTION' });
});

test('a description or a section that is mutated is decoded, or refused by name', () => {
  const fields = [
    field('a', 'uint32', 4, { array_len: 4 }),
    field('s', 'struct', 6, {
      struct: {
        vmsd_name: 's',
        fields: [field('x', 'int16', 2), field('p', 'nullptr', 1), field('y', 'bool', 1, { array_len: 3 })],
      },
    }),
    field('t', 'timer', 8),
  ];
  const description = JSON.stringify({
    fields,
    subsections: [{ vmsd_name: 'd/o', version: 1, fields: [field('z', 'buffer', 2)] }],
  });
  const body = Buffer.from(`${'01'.repeat(18)}30${'00'.repeat(11)}0503642f6f00000001beef`, 'hex');
  const next = random(20_261_130);
  const below = (limit: number): number => Math.floor(next() * limit);
  const pieces = [
    '0',
    '1',
    '-1',
    '9007199254740991',
    '"struct"',
    '"uint64"',
    '"nullptr"',
    '"tmp"',
    'null',
    '[]',
    '{}',
    '""',
    '{"toString": 1}',
    'true',
  ];
  let refused = 0;
  const runs = process.env['RAMFERRY_SLOW'] === '1' ? 100_000 : 5_000;
  for (let run = 0; run < runs; run += 1) {
    // One value of the description is another one, or a byte of the section is.
    const values = [...description.matchAll(/"(?:\w|\/)+"(?!:)|\d+/g)];
    const chosen = values[below(values.length)]!;
    const text = `${description.slice(0, chosen.index)}${pieces[below(pieces.length)]}${description.slice(chosen.index + chosen[0].length)}`;
    const bytes = Buffer.from(body);
    bytes[below(bytes.length)] = below(256);
    const cut = next() < 0.2 ? bytes.subarray(0, below(bytes.length)) : bytes;
    try {
      decodeFields(JSON.parse(next() < 0.7 ? text : description), cut, sectionOf(cut.length));
    } catch (error) {
      assert.ok(error instanceof RamferryError, `${error instanceof Error ? error.stack : error}`);
      assert.equal(error.kind, 'invalid');
      assert.ok(error.offset! >= 1000 && error.offset! <= 1000 + cut.length, error.message);
      refused += 1;
    }
  }
  assert.ok(refused > runs / 4 && refused < runs, `${refused} of ${runs} refused`);
});
