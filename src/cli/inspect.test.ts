// `inspect` from outside the process: its JSON, its text, and what it makes of files that are damaged or something else.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { type CommandResult, RunningCommand, runCommand } from '../../test/command.js';
import { libvirtHead } from '../../test/libvirt-images.js';
import { richMappedRamFile } from '../../test/mapped-ram-builder.js';
import { patternPage, richStream, StreamBuilder, testConfiguration } from '../../test/streams.js';
import { ByteWriter } from '../format/byte-writer.js';
import { ElementType } from '../format/stream/constants.js';
import { ramBodyEnd, ramPart, ramStart, streamHeader, zeroRecord } from '../format/stream/write.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-inspect-'));
after(() => fs.rmSync(folder, { recursive: true }));

const save = (name: string, bytes: Uint8Array): string => {
  const file = path.join(folder, name);
  fs.writeFileSync(file, bytes);
  return file;
};

const inspectJson = async (
  ...args: string[]
): Promise<{ result: CommandResult; document: Record<string, unknown> }> => {
  const result = await runCommand('inspect', '--json', ...args);
  return { result, document: JSON.parse(result.stdout) };
};

test('--json --digest: exactly the document of DESIGN section 4', async () => {
  const { bytes, memory } = richStream();
  const file = save('rich.mig', bytes);
  const { result, document } = await inspectJson(file, '--digest');
  assert.deepEqual([result.status, result.stderr], [0, '']);
  const { devices, ...rest } = document as { devices: Record<string, unknown>[] };
  const sha256 = (name: string): string => createHash('sha256').update(memory.get(name)!).digest('hex');
  const block = (name: string, presentPages: number, zeroPages: number, absentPages: number): object => {
    const usedLength = memory.get(name)!.length;
    return { name, usedLength, pageSize: 4096, presentPages, zeroPages, absentPages, sha256: sha256(name) };
  };
  assert.deepEqual(rest, {
    file,
    container: 'qemu',
    format: 'stream',
    streamVersion: 3,
    machine: 'pc-i440fx-10.0',
    uuid: '00112233-4455-6677-8899-aabbccddeeff',
    targetPageSize: 4096,
    capabilities: [],
    complete: true,
    warnings: [],
    memoryDevices: [{ name: '0000:00:03.0', regionSize: 2 ** 28, blockSize: 2 ** 21, pluggedSize: 0 }],
    ram: { totalBytes: 69 * 4096, pageSize: 4096, presentPages: 5, zeroPages: 3, absentPages: 61 },
    blocks: [block('pc.ram', 3, 2, 59), block('0000:00:02.0/vga.vram', 1, 1, 2), block('/rom@etc/acpi/rsdp', 1, 0, 0)],
  });
  assert.equal(devices.length, 5);
  const { offset, ...timer } = devices[1]!;
  assert.deepEqual(timer, { section: 3, name: 'timer', instance: 0, version: 1, bytes: 24 });
  assert.deepEqual(bytes.subarray(offset as number, (offset as number) + 24), patternPage(29, 24));
});

test('the text names every block and section; the digests are where they are asked for', async () => {
  const file = save('text.mig', richStream().bytes);
  const { status, stdout } = await runCommand('inspect', file);
  assert.equal(status, 0);
  assert.match(stdout, /^.*text\.mig: QEMU migration stream, version 3, complete\n\n {2}machine +pc-i440fx-10\.0\n/);
  assert.match(stdout, /^pc\.ram +256 KiB +64 +3 +2 +59$/m);
  assert.match(stdout, /^ +4 {2}cpu +0 +1 +0x[0-9a-f]+ +5,000$/m);
  assert.doesNotMatch(stdout, /[0-9a-f]{64}/);
  assert.ok(!stdout.includes('\x1b'));
  assert.match((await runCommand('inspect', file, '--digest')).stdout, /^[0-9a-f]{64} {2}pc\.ram$/m);
});

test('--pages: a map, as text and as numbers', async () => {
  const file = save('map.mig', richStream().bytes);
  const { stdout } = await runCommand('inspect', file, '--pages');
  assert.match(stdout, /^pc\.ram, 256 KiB\n {7}0 B {2}\S{3}/m);
  const { document } = await inspectJson(file, '--pages');
  const [ram] = document['blocks'] as { map: { pagesPerCell: number; presentPages: number[]; zeroPages: number[] } }[];
  assert.equal(ram?.map.pagesPerCell, 1);
  assert.deepEqual(
    ram?.map.presentPages.flatMap((count, page) => (count === 0 ? [] : [page])),
    [1, 2, 5],
  );
});

test('mapped-ram: counts, digests, and stale pages in the map', async () => {
  const { bytes, memory } = richMappedRamFile();
  const file = save('rich.mapped', bytes);
  const { result, document } = await inspectJson(file, '--digest', '--pages');
  assert.deepEqual([result.status, result.stderr], [0, '']);
  const { container, format, complete, capabilities, ram, blocks } = document as Record<string, unknown> & {
    blocks: { name: string; sha256: string; map: { stalePages: number[] } }[];
  };
  assert.deepEqual([container, format, complete, capabilities], ['qemu', 'mapped-ram', true, ['mapped-ram']]);
  assert.deepEqual(ram, { totalBytes: 366 * 4096, pageSize: 4096, presentPages: 12, zeroPages: 0, absentPages: 354 });
  for (const { name, sha256 } of blocks) {
    assert.equal(sha256, createHash('sha256').update(memory.get(name)!).digest('hex'));
  }
  const stale = blocks[0]!.map.stalePages.flatMap((count, cell) => (count === 0 ? [] : [cell]));
  assert.deepEqual(stale, [5, 100]);
  const { stdout } = await runCommand('inspect', file, '--pages');
  assert.match(stdout, /: QEMU mapped-ram file, version 3, complete$/m);
  assert.match(stdout, /3 pages stale/);
});

test('a libvirt image; one that was not finished tells what is there, with status 3', async () => {
  const { bytes } = richStream();
  const whole = await inspectJson(save('whole.save', Buffer.concat([libvirtHead({ format: 0 }), bytes])));
  assert.deepEqual(
    [whole.result.status, whole.document['container'], whole.document['format'], whole.document['libvirt']],
    [0, 'libvirt', 'stream', { format: 'raw', wasRunning: false, dataOffset: 5092 }],
  );
  const head = libvirtHead({ format: 0, magic: 'LibvirtQemudPart' });
  const { result, document } = await inspectJson(save('part.save', Buffer.concat([head, bytes])));
  assert.deepEqual([result.status, document['machine'], document['complete']], [3, 'pc-i440fx-10.0', false]);
  assert.equal((document['error'] as { code: string }).code, 'LIBVIRT_INCOMPLETE');
});

test('a cut file: what there was up to the cut, and status 3', async () => {
  const { bytes } = richStream();
  const file = save('cut.mig', bytes.subarray(0, 20_000));
  const { result, document } = await inspectJson(file, '--digest', '--pages');
  assert.equal(result.status, 3);
  assert.deepEqual(
    [document['machine'], document['complete'], (document['blocks'] as unknown[]).length],
    ['pc-i440fx-10.0', false, 3],
  );
  const { error } = document as { error: { code: string; offset: number; file: string; message: string } };
  assert.deepEqual([error.code, error.offset, error.file], ['STREAM_INCOMPLETE', 20_000, file]);
  assert.match(error.message, /byte 20000/);
  const text = await runCommand('inspect', file);
  assert.equal(text.status, 3);
  assert.match(text.stdout, /not complete/);
  assert.match(text.stderr, /^ramferry: The stream ends inside its page records, at byte 20000\.\n$/);
});

test('a file without its VM description is complete; one that is cut in it is not; both have the same devices', async () => {
  const { bytes, tail } = richStream();
  const start = bytes.length - tail.description.length - 5;
  const without = await inspectJson(save('no-description.mig', bytes.subarray(0, start)));
  const cut = await inspectJson(save('cut-description.mig', bytes.subarray(0, start + 100)));
  assert.deepEqual([without.result.status, without.document['complete']], [0, true]);
  assert.deepEqual([cut.result.status, cut.document['complete']], [0, false]);
  for (const { document } of [without, cut]) {
    assert.equal((document['devices'] as unknown[]).length, 5);
    assert.match((document['warnings'] as string[]).join(), /VM description is (missing|cut)/);
  }
});

for (const [name, bytes, status, code] of [
  ['empty', new Uint8Array(), 3, 'EMPTY_FILE'],
  ['compressed', Buffer.from('425a6839314159265359', 'hex'), 3, 'COMPRESSED_FILE'],
  ['noise', patternPage(1), 3, 'NOT_A_STREAM'],
  ['magic only', richStream().bytes.subarray(0, 6), 3, 'STREAM_INCOMPLETE'],
  ['mapped-ram', streamHeader(testConfiguration({ capabilities: ['mapped-ram'] })), 3, 'STREAM_INCOMPLETE'],
  ['an element of type 0x55', new StreamBuilder().header().raw(Uint8Array.of(0x55)).bytes, 3, 'UNKNOWN_ELEMENT'],
] as const) {
  test(`not a whole stream: ${name}`, async () => {
    const file = save(name.replaceAll(' ', '-'), bytes);
    const { result, document } = await inspectJson(file);
    assert.equal(result.status, status);
    const { error } = document as { error: { code: string; file: string; offset: number } };
    assert.deepEqual([error.code, error.file], [code, file]);
    assert.ok(error.offset >= 0 && error.offset <= bytes.length);
  });
}

test('what is no file: a folder, a device, nothing', async () => {
  for (const [file, status, code] of [
    [folder, 2, 'NOT_A_FILE'],
    ['/dev/null', 2, 'NOT_A_FILE'],
    [path.join(folder, 'nothing'), 1, 'NOT_FOUND'],
  ] as const) {
    const { result, document } = await inspectJson(file);
    assert.deepEqual([result.status, (document['error'] as { code: string }).code], [status, code]);
  }
});

// What a file claims costs nothing but where the claim is what was asked for, and that can be cancelled.
test('a small file that claims to be a huge guest', async () => {
  const usedLength = 2 ** 48;
  const file = save(
    'huge.mig',
    new StreamBuilder()
      .header()
      .raw(ramStart(1, [{ name: 'huge', usedLength }]))
      .raw(ramPart(ElementType.SECTION_END, 1))
      .raw(zeroRecord(new ByteWriter(), usedLength - 4096, 'huge').copy())
      .raw(ramBodyEnd(1))
      .devices([]).bytes,
  );
  const { stdout } = await runCommand('inspect', file, '--pages');
  assert.match(stdout, /^huge +256 TiB +68,719,476,736 +0 +1 +68,719,476,735$/m);
  const running = new RunningCommand(['inspect', file, '--digest', '--json']);
  await new Promise((resolve) => running.child.stderr!.once('data', resolve));
  running.child.kill('SIGINT');
  const { status, stdout: cancelled, stderr } = await running.ended;
  assert.equal(status, 1);
  assert.equal(JSON.parse(cancelled).error.code, 'CANCELLED');
  assert.match(stderr, /^hashing, 0 %, .*ETA/);
});
