// `device` from outside the process: lists, trees, JSON, and the names under which a section is found.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { type CommandResult, runCommand } from '../../test/command.js';
import { describedStream } from '../../test/described-stream.js';
import { libvirtHead } from '../../test/libvirt-images.js';
import type { DeviceSection } from '../format/stream/device-sections.js';
import { RamferryError } from '../memory/errors.js';
import { findSections } from './device-names.js';
import { hexdump } from './hexdump.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-device-'));
after(() => fs.rmSync(folder, { recursive: true }));

const save = (name: string, bytes: Uint8Array): string => {
  const file = path.join(folder, name);
  fs.writeFileSync(file, bytes);
  return file;
};

const cpu = (instance: number) => ({
  name: 'cpu',
  instance,
  version: 12,
  body: Buffer.from(`${'00'.repeat(15)}0${instance}ffffffff${'00'.repeat(7)}63`, 'hex'),
  description: {
    fields: [
      { name: 'regs', array_len: 2, type: 'uint64', size: 8 },
      { name: 'pending', type: 'int32', size: 4 },
      { name: 'timer', type: 'timer', size: 8 },
    ],
  },
});

const memory = {
  name: 'vmmouse',
  body: Buffer.concat([Buffer.from('queue of a mouse!'), Buffer.from([0, 9])]),
  description: {
    fields: [
      { name: 'queue', array_len: 17, type: 'uint8', size: 1 },
      { name: 'status', type: 'uint16', size: 2 },
    ],
  },
};

const network = {
  name: '0000:00:03.0/e1000e',
  body: Buffer.concat([Buffer.alloc(400), Buffer.alloc(2)]),
  description: {
    fields: [
      { name: 'config', type: 'pci config', size: 400 },
      {
        name: 'queue',
        type: 'struct',
        size: 2,
        struct: {
          vmsd_name: 'q',
          version: 1,
          fields: [
            { name: 'on', type: 'bool', size: 1 },
            { name: 'evil\n\x1b[2J', type: 'uint8', size: 1 },
          ],
        },
      },
    ],
  },
};

const bytes = describedStream([cpu(0), cpu(1), network, memory]);
const file = save('guest.mig', bytes);

const json = ({ stdout }: CommandResult): Record<string, unknown> => JSON.parse(stdout) as Record<string, unknown>;

test('without a name: the sections, as `inspect` lists them', async () => {
  const text = await runCommand('device', file);
  assert.deepEqual([text.status, text.stderr], [0, '']);
  assert.match(text.stdout, /^ +2 {2}cpu +0 +12 +0x[0-9a-f]+ +28$/m);
  const document = json(await runCommand('device', file, '--json'));
  assert.deepEqual(document['devices'], json(await runCommand('inspect', file, '--json'))['devices']);
  assert.equal(document['described'], true);
});

test('a device as a tree: numbers, timers, buffers that are cut unless --full says otherwise', async () => {
  const { status, stdout } = await runCommand('device', file, 'cpu/1');
  assert.equal(status, 0);
  assert.match(stdout, /^cpu \(instance 1, version 12, 28 bytes at 0x[0-9a-f]+\)\n/);
  assert.match(stdout, /^ {2}regs {5}2 x uint64\n {4}0: 0x0000000000000000 0x0000000000000001\n/m);
  assert.match(stdout, /^ {2}pending {2}0xffffffff {2}-1\n {2}timer {4}timer, expires at 99 ns\n$/m);
  assert.doesNotMatch(stdout, /instance 0/);

  const cut = (await runCommand('device', file, 'e1000e')).stdout;
  assert.match(
    cut,
    /^ {2}config {2}pci config, 400 bytes\n {4}0000 {2}(00 ){8} (00 ){8} \|\.{16}\|\n {4}\*\n {4}00f0 .*\n {4}… 144 more bytes \(--full\)$/m,
  );
  // An array of bytes is read like a buffer.
  assert.match(
    (await runCommand('device', file, 'vmmouse')).stdout,
    /^ {2}queue {3}17 x uint8\n {4}0000 .* \|queue of a mouse\|\n {4}0010 {2}21 .*\|!\|\n {2}status {2}0x0009$/m,
  );
  // What the file calls a field stays on its line, whatever is in it.
  assert.match(cut, /^ {2}queue {3}on false {2}evil\\n\\x1b\[2J 0x00$/m);
  assert.match((await runCommand('device', file, 'e1000e', '--full')).stdout, /^ {4}0180 .*\n {2}queue/m);
});

test('JSON: the fields as analyze-migration.py of QEMU prints them; every instance of a name', async () => {
  const { devices } = json(await runCommand('device', file, 'cpu', '--json')) as { devices: Record<string, unknown>[] };
  assert.deepEqual(
    devices.map(({ section, name, instance, version, vmsd, fields }) => ({
      section,
      name,
      instance,
      version,
      vmsd,
      fields,
    })),
    [0, 1].map((instance) => ({
      section: 2 + instance,
      name: 'cpu',
      instance,
      version: 12,
      vmsd: 'cpu',
      fields: {
        regs: ['0x0000000000000000', `0x000000000000000${instance}`],
        pending: '0xffffffff (-1)',
        timer: '00 00 00 00 00 00 00 63',
      },
    })),
  );
});

test('--raw: the bytes', async () => {
  const { devices } = json(await runCommand('device', file, 'cpu/0', '--raw', '--json')) as {
    devices: { hex: string }[];
  };
  assert.equal(devices[0]?.hex, cpu(0).body.toString('hex'));
  assert.match((await runCommand('device', file, 'cpu/0', '--raw')).stdout, /^ {2}0010 {2}ff ff ff ff 00/m);
});

test('a name that is not there: status 2, and names near it', async () => {
  const { status, stdout } = await runCommand('device', file, 'e100', '--json');
  const { error } = JSON.parse(stdout) as { error: { code: string; hint: string } };
  assert.deepEqual(
    [status, error.code, error.hint],
    [2, 'NO_SUCH_DEVICE', 'near it: 0000:00:03.0/e1000e, cpu, vmmouse'],
  );
});

test('a file without description: the list says so, a device fails, its bytes are there', async () => {
  const without = save('without.mig', describedStream([cpu(0)], ''));
  const listed = await runCommand('device', without);
  assert.deepEqual([listed.status, /warning: The file has no VM description/.test(listed.stdout)], [0, true]);
  const shown = await runCommand('device', without, 'cpu', '--json');
  assert.equal(shown.status, 1);
  assert.equal((json(shown)['error'] as { code: string }).code, 'NO_DESCRIPTION');
  assert.equal((await runCommand('device', without, 'cpu', '--raw')).status, 0);
});

test('one section that the description does not fit: the others are shown, status 3', async () => {
  const broken = { ...network, description: { fields: [{ name: 'a', size: 402 }] } };
  const result = await runCommand('device', save('broken.mig', describedStream([broken, cpu(0)])), '*', '--json');
  const { devices, error } = json(result) as {
    devices: Record<string, unknown>[];
    error: { code: string; offset: number };
  };
  assert.equal(result.status, 3);
  assert.equal(error.code, 'DESCRIPTION_SHAPE');
  assert.equal((devices[0]!['error'] as { offset: number }).offset, error.offset);
  assert.ok('fields' in devices[1]!);
});

test('more fields than an answer has room for, in many sections: status 2', async () => {
  const bytes = Buffer.alloc(999_999);
  const large = (instance: number) => ({
    name: 'large',
    instance,
    body: bytes,
    description: { fields: [{ name: 'a', array_len: bytes.length, type: 'uint8', size: 1 }] },
  });
  const many = save('many.mig', describedStream([large(0), large(1), large(2)]));
  const result = await runCommand('device', many, 'large', '--json');
  assert.deepEqual([result.status, (json(result)['error'] as { code: string }).code], [2, 'TOO_MUCH_DEVICE_STATE']);
});

test('of a libvirt image, offsets are those of the file', async () => {
  const image = Buffer.concat([libvirtHead({ format: 0 }), bytes]);
  const { devices } = json(await runCommand('device', save('guest.save', image), 'cpu/1', '--json')) as {
    devices: { offset: number }[];
  };
  assert.deepEqual(image.subarray(devices[0]!.offset, devices[0]!.offset + 28), cpu(1).body);
});

test('names: exact before all, an instance, wildcards, the end of one name', () => {
  const section = (name: string, instance = 0): DeviceSection => ({
    section: 0,
    name,
    instance,
    version: 1,
    offset: 0,
    bytes: 0,
  });
  const sections = [
    section('cpu'),
    section('cpu', 1),
    section('cpu_common'),
    section('a/net'),
    section('b/net'),
    section('b/net', 1),
    section('hub/1'),
    section('hub', 1),
  ];
  const found = (wanted: string): string[] =>
    findSections(sections, wanted).map(({ name, instance }) => `${name}#${instance}`);
  assert.deepEqual(found('cpu'), ['cpu#0', 'cpu#1']);
  assert.deepEqual(found('cpu/1'), ['cpu#1']);
  assert.deepEqual(found('cpu*'), ['cpu#0', 'cpu#1', 'cpu_common#0']);
  assert.deepEqual(found('?/net'), ['a/net#0', 'b/net#0', 'b/net#1']);
  assert.deepEqual(found('*/net/1'), ['b/net#1']);
  assert.deepEqual(found('common'), ['cpu_common#0']);
  assert.deepEqual(found('hub/1'), ['hub/1#0']);
  assert.deepEqual(found('net/1'), ['b/net#1']);
  for (const [wanted, code] of [
    ['net', 'DEVICE_AMBIGUOUS'],
    ['cpu/2', 'NO_SUCH_DEVICE'],
    ['x*', 'NO_SUCH_DEVICE'],
    ['', 'DEVICE_AMBIGUOUS'],
  ] as const) {
    assert.throws(
      () => found(wanted),
      (error) => error instanceof RamferryError && error.code === code && error.kind === 'usage',
      wanted,
    );
  }
  // A pattern that makes a backtracking matcher try every split.
  const start = performance.now();
  assert.throws(() => findSections([section('a'.repeat(255))], `${'a*'.repeat(120)}b`), { code: 'NO_SUCH_DEVICE' });
  assert.ok(performance.now() - start < 5000);
});

test('a hexdump: addresses, text, repeated lines as a star, the last line always', () => {
  const dumped = Buffer.concat([Buffer.from('ELF'), Buffer.alloc(64), Buffer.from('!')]);
  assert.deepEqual(hexdump(dumped, 0x1_0000_0000n), [
    `100000000  45 4c 46 00 00 00 00 00  00 00 00 00 00 00 00 00  |ELF.............|`,
    `100000010  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|`,
    '*',
    `100000040  00 00 00 21                                       |...!|`,
  ]);
});
