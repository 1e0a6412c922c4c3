// `verify` from outside the process: whole files, odd ones, damaged ones.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { type CommandResult, runCommand } from '../../test/command.js';
import { headerOffset, richMappedRamFile } from '../../test/mapped-ram-builder.js';
import { patternPage, richStream, StreamBuilder, type TestRecord, testDevice } from '../../test/streams.js';
import type { DeviceState } from '../format/stream/device-tail.js';
import type { Finding } from './verify.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-verify-'));
after(() => fs.rmSync(folder, { recursive: true }));

interface Verdict {
  readonly valid: boolean;
  readonly checked: Record<string, number>;
  readonly findings: readonly Finding[];
  readonly error?: { readonly code: string; readonly offset: number; readonly file: string };
}

const verify = async (bytes: Uint8Array): Promise<{ file: string; result: CommandResult; verdict: Verdict }> => {
  const file = path.join(fs.mkdtempSync(path.join(folder, 'x')), 'x.mig');
  fs.writeFileSync(file, bytes);
  const result = await runCommand('verify', file, '--json');
  return { file, result, verdict: JSON.parse(result.stdout) };
};

/** A stream of a few pages: every page is there unless `records` leaves it out. */
const small = (
  devices: readonly DeviceState[],
  records: readonly TestRecord[] = [0, 1, 2, 3].map((page) => ({ block: 'pc.ram', page, kind: 'zero' })),
): Uint8Array =>
  new StreamBuilder()
    .header()
    .ramStart([{ name: 'pc.ram', usedLength: 4 * 4096 }])
    .part([{ block: 'pc.ram', page: 0, kind: 'normal', content: patternPage(1) }])
    .end(records)
    .devices(devices).bytes;

test('a whole file: status 0, nothing found, everything counted', async () => {
  const bytes = small([testDevice('cpu', 500), testDevice('timer', 24)]);
  const { file, result, verdict } = await verify(bytes);
  assert.deepEqual([result.status, result.stderr], [0, '']);
  assert.deepEqual(verdict, {
    file,
    container: 'qemu',
    format: 'stream',
    streamVersion: 3,
    machine: 'pc-i440fx-10.0',
    valid: true,
    checked: { bytes: bytes.length, ofBytes: bytes.length, ramSections: 3, pageRecords: 5, deviceSections: 2 },
    ram: { totalBytes: 16384, pageSize: 4096, presentPages: 0, zeroPages: 4, absentPages: 0 },
    findings: [],
  });
  const { status, stdout } = await runCommand('verify', file);
  assert.equal(status, 0);
  assert.match(stdout, /x\.mig: valid\n/);
  assert.match(stdout, / 3 sections, 5 page records\n/);
});

for (const [what, blockName, devices, severity] of [
  ['for no reason', 'pc.ram', ['cpu'], 'warning'],
  ['although another device is virtio-mem', 'pc.ram', ['cpu', '0000:00:07.0/virtio-mem'], 'warning'],
  ['as virtio-balloon may', 'pc.ram', ['0000:00:04.0/virtio-balloon'], 'note'],
  ['as virtio-mem may', '0000:00:07.0/vmem0', ['0000:00:07.0/virtio-mem'], 'note'],
] as const) {
  test(`pages left out ${what}: a ${severity}, still valid`, async () => {
    const { bytes } = new StreamBuilder()
      .header()
      .ramStart([{ name: blockName, usedLength: 4 * 4096 }])
      .end([{ block: blockName, page: 2, kind: 'normal', content: patternPage(1) }])
      .devices(devices.map((name) => testDevice(name, 40)));
    const { result, verdict } = await verify(bytes);
    assert.equal(result.status, 0);
    assert.equal(verdict.valid, true);
    assert.deepEqual(
      verdict.findings.map((finding) => [finding.severity, finding.code]),
      [[severity, 'ABSENT_PAGES']],
    );
    assert.match(verdict.findings[0]!.message, /^3 of 4 pages of RAM block /);
  });
}

test('bytes behind the stream are a warning that says where they begin', async () => {
  const bytes = small([]);
  const { result, verdict } = await verify(Buffer.concat([bytes, Buffer.alloc(7)]));
  assert.equal(result.status, 0);
  assert.deepEqual(
    verdict.findings.map(({ severity, message }) => [severity, message]),
    [['warning', `7 bytes follow the stream, from byte ${bytes.length} on.`]],
  );
});

test('a device section that is not as long as described: found by its footer, a warning', async () => {
  const bytes = Buffer.from(small([testDevice('cpu', 500), testDevice('timer', 24)]));
  const at = bytes.indexOf('"size": 500');
  bytes.write('"size": 499', at);
  bytes.write('"size": 499', bytes.indexOf('"size": 500'));
  const { result, verdict } = await verify(bytes);
  assert.equal(result.status, 0);
  assert.match(verdict.findings[0]!.message, /1 sections? do(es)? not have the described length: "cpu"/);
});

test('a file cut anywhere is not valid, and it says how far it was read', async () => {
  const { bytes, tail } = richStream();
  const description = bytes.length - tail.description.length;
  for (const end of [9, 300, 20_000, description - 1000, description + 10]) {
    const { file, result, verdict } = await verify(bytes.subarray(0, end));
    assert.equal(result.status, 3, `cut at ${end}`);
    assert.deepEqual(
      [verdict.error?.code, verdict.error?.offset, verdict.error?.file],
      ['STREAM_INCOMPLETE', end, file],
    );
    if (end > 300) {
      assert.equal(verdict.valid, false);
      assert.deepEqual([verdict.findings[0]?.severity, verdict.findings[0]?.offset], ['error', end]);
      assert.ok(verdict.checked['bytes']! <= end && verdict.checked['bytes']! > end - 4200);
    }
  }
});

test('a damaged record: where, what, and how far it got', async () => {
  const clean = small([testDevice('cpu', 500)]);
  const bytes = clean.slice();
  // The last page record: be64 offset | flags, then the zero byte that fills the page.
  const at = Buffer.from(clean).lastIndexOf(Buffer.from('0000000000003022', 'hex'));
  bytes[at + 8] = 7;
  const { result, verdict } = await verify(bytes);
  assert.equal(result.status, 3);
  assert.deepEqual([verdict.valid, verdict.error?.code], [false, 'ZERO_PAGE_FILL']);
  assert.ok(Math.abs(verdict.error!.offset - at) <= 8);
  assert.deepEqual([verdict.checked['ramSections'], verdict.checked['pageRecords']], [2, 4]);
  assert.equal(verdict.checked['bytes'], at);
});

test('a damaged VM description: not valid, although QEMU loads it; its pages and sections are there', async () => {
  const { bytes, tail } = richStream();
  const at = bytes.length - tail.description.length + 20;
  bytes[at] = 0x7f;
  const { result, verdict } = await verify(bytes);
  assert.equal(result.status, 3);
  assert.deepEqual([verdict.valid, verdict.error?.code], [false, 'DESCRIPTION_NOT_JSON']);
  assert.ok(Math.abs(verdict.error!.offset - at) <= 20);
  assert.deepEqual([verdict.checked['bytes'], verdict.checked['deviceSections']], [bytes.length, 5]);
});

test('mapped-ram: whole, damaged, and one that is not complete', async () => {
  const whole = richMappedRamFile();
  const { result, verdict } = await verify(whole.bytes);
  assert.deepEqual([result.status, verdict.valid, verdict.findings], [0, true, []]);
  // Its VM description is cut, then all of its device state too.
  assert.equal((await verify(whole.bytes.subarray(0, -1))).result.status, 3);
  const cut = await verify(whole.bytes.subarray(0, whole.streamOffset));
  assert.deepEqual([cut.result.status, cut.verdict.error?.code], [3, 'STREAM_INCOMPLETE']);
  const offset = headerOffset(whole, 1);
  whole.bytes[offset + 3] = 2;
  const damaged = await verify(whole.bytes);
  assert.deepEqual(
    [damaged.result.status, damaged.verdict.error?.code, damaged.verdict.error?.offset],
    [3, 'MAPPED_RAM_VERSION', offset],
  );
});
