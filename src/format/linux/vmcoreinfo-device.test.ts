// The note that a guest has told its vmcoreinfo device, and all that can be wrong with it.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DescribedTestDevice } from '../../../test/described-stream.js';
import { clockDevice, pcStream } from '../../../test/pc-memory.js';
import { elfNote } from '../elf-note.js';
import { openSnapshot } from '../open-snapshot.js';
import { physicalMap } from '../physical-map.js';
import { PhysicalMemory } from '../physical-memory.js';
import { deviceVmcoreinfo } from './vmcoreinfo-device.js';

const RAM_BYTES = 16 * 2 ** 20;
const NOTE_AT = 0x12_3000;
const text = new TextEncoder().encode('OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffffffff82212340\n');

interface Told {
  readonly isSet?: boolean;
  readonly format?: number;
  readonly address?: number | bigint;
}

const device = ({ isSet = true, format = 1, address = NOTE_AT }: Told): DescribedTestDevice => {
  const body = new Uint8Array(17);
  const view = new DataView(body.buffer);
  view.setUint8(0, isSet ? 1 : 0);
  view.setUint16(3, format);
  view.setUint32(5, 4132);
  view.setBigUint64(9, BigInt(address));
  return { name: 'vmcoreinfo', body, description: { fields: [{ name: 'all', type: 'buffer', size: 17 }] } };
};

const read = (
  devices: readonly DescribedTestDevice[],
  note = elfNote('VMCOREINFO', 0, text),
  at = NOTE_AT,
): Uint8Array | undefined => {
  const content = new Uint8Array(Math.ceil(note.length / 4096) * 4096);
  content.set(note);
  const bytes = pcStream({
    blocks: [{ name: 'pc.ram', usedLength: RAM_BYTES }],
    devices: [clockDevice(RAM_BYTES), ...devices],
    pages: [{ block: 'pc.ram', offset: at, content }],
  });
  const snapshot = openSnapshot((at, target) => target.set(bytes.subarray(at, at + target.length)), bytes.length);
  return deviceVmcoreinfo(snapshot.summary, new PhysicalMemory(snapshot, physicalMap(snapshot)));
};

test('the text of the note is found, of any length that the kernel can give it', () => {
  assert.deepEqual(read([device({})]), text);
  const long = new Uint8Array(64 * 1024).fill(0x41);
  assert.deepEqual(read([device({})], elfNote('VMCOREINFO', 0, long)), long);
});

test('what is no such note is none', () => {
  assert.equal(read([]), undefined);
  assert.equal(read([device({ isSet: false })]), undefined);
  assert.equal(read([device({ format: 0 })]), undefined);
  assert.equal(read([device({ address: 0x20_0000 })]), undefined);
  assert.equal(read([device({ address: RAM_BYTES - 10 })]), undefined);
  assert.equal(read([device({ address: 0xffff_ffff_ffff_fff0n })]), undefined);
  const { body } = device({});
  assert.equal(read([{ ...device({}), body: body.subarray(0, 16) }]), undefined);
  assert.equal(read([{ ...device({}), body: new Uint8Array([...body, 0]) }]), undefined);
  assert.equal(read([device({})], elfNote('VMCOREINF0', 0, text)), undefined);
  assert.equal(read([device({})], elfNote('VMCOREINFO', 0, new Uint8Array(64 * 1024 + 1))), undefined);
  const claims = elfNote('VMCOREINFO', 0, text);
  new DataView(claims.buffer).setUint32(4, 0xffff_ffff, true);
  assert.equal(read([device({})], claims), undefined);
  // It goes on behind the end of memory.
  const last = RAM_BYTES - 4096;
  new DataView(claims.buffer).setUint32(4, 4096, true);
  assert.equal(read([device({ address: last })], claims, last), undefined);
  new DataView(claims.buffer).setUint32(4, 4096 - 24, true);
  assert.equal(read([device({ address: last })], claims, last)?.length, 4096 - 24);
});
