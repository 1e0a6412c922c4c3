// The section that holds a guest is taken out of the others, and only where it is known to wait.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { testDevice } from '../../../test/streams.js';
import { ByteWriter } from '../byte-writer.js';
import type { DeviceSection } from './device-sections.js';
import { walkSections } from './device-sections.js';
import { buildDeviceTail, type DeviceState, deviceStates } from './device-tail.js';
import { splitGate } from './gate-section.js';
import { parseDescription } from './vm-description.js';

/** Body of `kvm-tpr-opt`: 33 bytes of ROM state, then five words, of which the first is the state. */
const vapic = (state: number): DeviceState => ({
  name: 'kvm-tpr-opt',
  instance: 0,
  version: 1,
  body: new ByteWriter(64).bytes(new Uint8Array(33).fill(7)).be32(state).bytes(new Uint8Array(16).fill(9)).copy(),
});

const sectionsOf = (sections: Uint8Array, description: string): DeviceSection[] => {
  const ended = new ByteWriter(sections.length + 1).bytes(sections).u8(0).copy();
  return walkSections(ended, 0, { description: parseDescription(description, 0).devices }).devices;
};

test('the section comes out whole, the others stay in their order', () => {
  for (const early of [[], [testDevice('virtio-mem-early', 40)]]) {
    const all = [
      testDevice('cpu', 300),
      vapic(2),
      testDevice('0000:00:03.0/virtio-blk', 900),
      testDevice('globalstate', 104),
    ];
    const tail = buildDeviceTail(all, early);
    const earlyCount = early.length;
    const late = sectionsOf(tail.sections, tail.description);
    const devices = [...(earlyCount > 0 ? sectionsOf(tail.early, tail.description) : []), ...late];
    const { devices: rest, gate } = splitGate({ tail, devices })!;
    const [gateSection] = sectionsOf(gate, tail.description);
    assert.equal(gateSection?.name, 'kvm-tpr-opt');
    assert.deepEqual(
      deviceStates({ ...tail, early: new Uint8Array(), sections: gate }, [gateSection!])[0]?.body,
      all[1]!.body,
    );
    assert.deepEqual(
      sectionsOf(rest.sections, tail.description).map(({ name }) => name),
      ['cpu', '0000:00:03.0/virtio-blk', 'globalstate'],
    );
    assert.equal(rest.sections.length + gate.length, tail.sections.length);
    assert.deepEqual(rest.early, tail.early);
  }
});

test('a guest without the section, or whose ROM was never there, has no gate', () => {
  for (const devices of [
    [testDevice('cpu', 300)],
    [testDevice('cpu', 300), vapic(0)],
    [testDevice('kvm-tpr-opt', 12)],
  ]) {
    const tail = buildDeviceTail(devices);
    assert.equal(splitGate({ tail, devices: sectionsOf(tail.sections, tail.description) }), undefined);
  }
});
