// The writer against the byte vectors of spec/qemu-wire-format.md 9, which QEMU 10.0 captured or accepted.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { testConfiguration } from '../../../test/streams.js';
import { ByteWriter } from '../byte-writer.js';
import { uuidBytes, uuidText } from './configuration.js';
import { Command, ElementType } from './constants.js';
import { type DeviceTail, pickRamSectionId } from './device-tail.js';
import * as write from './write.js';

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const vector = (text: string): string => text.replaceAll(/\s/g, '');

test('header and configuration', () => {
  assert.equal(
    hex(write.streamHeader(testConfiguration({ machine: 'pc-q35-10.0' }))),
    vector('5145564d 00000003 07 0000000b 70632d7133352d31302e30'),
  );
  const capabilities = Buffer.from('configuration/capabilities').toString('hex');
  assert.equal(
    hex(write.streamHeader(testConfiguration({ machine: 'pc-q35-10.0', capabilities: ['mapped-ram'] }))),
    vector(
      `5145564d 00000003 07 0000000b 70632d7133352d31302e30 05 1a ${capabilities} 00000001 00000001 0a 6d61707065642d72616d`,
    ),
  );
});

test('commands', () => {
  assert.equal(hex(write.command(Command.OPEN_RETURN_PATH)), vector('08 0001 0000'));
  assert.equal(hex(write.ping(1)), vector('08 0002 0004 00000001'));
  const advise = new ByteWriter().be64(4096).be64(4096).copy();
  assert.equal(
    hex(write.command(Command.POSTCOPY_ADVISE, advise)),
    vector('08 0003 0010 0000000000001000 0000000000001000'),
  );
  assert.equal(hex(write.command(Command.SWITCHOVER_START)), vector('08 000b 0000'));
});

test('RAM section, page records, end', () => {
  assert.equal(
    hex(write.ramStart(1, [{ name: 'pc.ram', usedLength: 0x1_2345_6000 }])),
    vector(`01 00000001 03 72616d 00000000 00000004
      0000000123456004 06 70632e72616d 0000000123456000 0000000000000010 7e 00000001`),
  );
  assert.equal(hex(write.ramPart(ElementType.SECTION_PART, 1)), vector('02 00000001'));
  const out = new ByteWriter();
  write.zeroRecord(out, 0, 'pc.ram');
  write.zeroRecord(out, 0x1000);
  write.normalRecord(out, 0x2000, Uint8Array.of(1, 2, 3));
  write.xbzrleRecord(out, 0x12_3456_7000, Uint8Array.of(0, 1, 1));
  assert.equal(
    hex(out.copy()),
    vector(
      '0000000000000002 06 70632e72616d 00 0000000000001022 00 0000000000002028 010203 0000001234567060 01 0003 000101',
    ),
  );
  assert.equal(hex(write.ramBodyEnd(1)), vector('0000000000000010 7e 00000001'));
  assert.equal(hex(write.streamEnd('')), vector('00 06 00000000'));
});

test('x-ignore-shared adds the guest address of each block', () => {
  const bytes = write.ramStart(1, [{ name: 'a', usedLength: 4096, address: 0xc0000 }], ['x-ignore-shared']);
  assert.ok(hex(bytes).includes(vector('01 61 0000000000001000 00000000000c0000')));
});

test('names that QEMU would not write are refused', () => {
  for (const name of ['', 'x'.repeat(256), 'pc\0ram', 'ä']) {
    assert.throws(() => write.ramStart(1, [{ name, usedLength: 4096 }]), { kind: 'usage', code: 'USAGE_NAME' });
  }
  const block = { name: 'pc.ram', usedLength: 4096 };
  assert.throws(() => write.ramStart(1, [block, block]), { kind: 'usage', code: 'USAGE_DUPLICATE_BLOCK' });
});

test('a UUID is its text in bytes', () => {
  const text = '00112233-4455-6677-8899-aabbccddeeff';
  assert.equal(hex(uuidBytes(text)), text.replaceAll('-', ''));
  assert.equal(uuidText(uuidBytes(text)), text);
  assert.throws(() => uuidBytes('0011'), { code: 'USAGE_UUID' });
});

test('the RAM section id is not 0 and used by no section of the tail', () => {
  const section = (id: number): ByteWriter =>
    write.footer(write.sectionHeader(new ByteWriter(), ElementType.SECTION_FULL, id, 'x', 0, 1), id);
  const tail = (early: number[], late: number[]): DeviceTail => ({
    early: Buffer.concat(early.map((id) => section(id).view)),
    sections: Buffer.concat(late.map((id) => section(id).view)),
    description: '',
  });
  assert.equal(pickRamSectionId(tail([], [])), 1);
  assert.equal(pickRamSectionId(tail([], [0, 2])), 1);
  assert.equal(pickRamSectionId(tail([2], [0, 1, 3, 5])), 4);
});
