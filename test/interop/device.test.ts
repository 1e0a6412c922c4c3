// Device state by name, of files that real QEMUs wrote: every field of every section against an independent decoder.

import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { libvirtHead } from '../libvirt-images.js';
import { corpusStream } from './corpus.js';
import { interopTest, type Lab } from './lab.js';
import { Ramferry } from './ramferry.js';
import { type ReferenceValue, referenceFields } from './reference-fields.js';
import { readDescription, readReference, readWhole } from './reference-reader.js';
import { ALL_RELEASES } from './releases.js';

interface ShownDevice {
  readonly name: string;
  readonly instance: number;
  readonly fields: unknown;
}

const shownDevices = async (lab: Lab, file: string): Promise<ShownDevice[]> => {
  const { status, stdout, stderr } = await Ramferry.run(lab, 'device', file, '*', '--json');
  assert.equal(status, 0, `${stdout.slice(0, 1000)}\n${stderr}`);
  return (JSON.parse(stdout) as { devices: ShownDevice[] }).devices;
};

const referenceDevices = (file: string): ShownDevice[] => {
  const bytes = readWhole(file);
  const description = readDescription(bytes);
  return readReference(file).sections.map(({ name, instance, offset, bytes: length }) => {
    const device = description.find((entry) => entry.name === name && entry.instance_id === instance)!;
    return { name, instance, fields: referenceFields(device, bytes.subarray(offset, offset + length)) };
  });
};

/** Values, so that a comparison of nothing does not pass. */
const countValues = (value: ReferenceValue | unknown): number =>
  typeof value === 'object' && value !== null
    ? Object.values(value).reduce((sum: number, each) => sum + countValues(each), 0)
    : 1;

const compare = async (lab: Lab, file: string, atLeast: number): Promise<void> => {
  const expected = referenceDevices(file);
  const shown = await shownDevices(lab, file);
  assert.ok(countValues(expected.map(({ fields }) => fields)) > atLeast);
  // As text: the order of the names counts too.
  for (const [index, { name, instance, fields }] of expected.entries()) {
    const ours = shown[index]!;
    assert.deepEqual([ours.name, ours.instance], [name, instance]);
    assert.equal(
      JSON.stringify(ours.fields, undefined, 1),
      JSON.stringify(fields, undefined, 1),
      `${name}/${instance}`,
    );
  }
  assert.equal(shown.length, expected.length);
};

interopTest(
  'device: every field of a machine with many devices, as an independent decoder has it',
  async (lab) => compare(lab, (await corpusStream(lab, 'devices')).file, 50_000),
  ALL_RELEASES,
);

interopTest(
  'device: every field of a guest that ran, as an independent decoder has it',
  async (lab) => compare(lab, (await corpusStream(lab, 'plain')).file, 2500),
  ['11'],
);

interopTest(
  'device: the fields of a stream, its libvirt image, and the mapped-ram file made of it are the same',
  async (lab) => {
    const { file } = await corpusStream(lab, 'devices');
    const image = lab.path('guest.save');
    writeFileSync(image, Buffer.concat([libvirtHead({ format: 0 }), readFileSync(file)]));
    const mapped = lab.path('guest.mapped');
    assert.equal((await Ramferry.run(lab, 'convert', file, mapped, '--to', 'mapped-ram')).status, 0);
    const fieldsOf = async (each: string): Promise<unknown> =>
      (await shownDevices(lab, each)).map(({ fields }) => fields);
    const expected = await fieldsOf(file);
    assert.deepEqual(await fieldsOf(image), expected);
    assert.deepEqual(await fieldsOf(mapped), expected);
  },
  ['11'],
);
