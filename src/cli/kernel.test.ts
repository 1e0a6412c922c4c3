// `kernel` from outside the process, over the memory of kernels that tests invent; test/interop/kernel.test.ts has real ones.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { runCommand } from '../../test/command.js';
import {
  BANNER,
  emptyStream,
  putBuffer,
  RECORDS,
  RELEASE,
  TestLinux,
  VERSION,
  wholeLinux,
} from '../../test/linux-memory.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-kernel-'));
after(() => fs.rmSync(folder, { recursive: true }));

const save = (bytes: Uint8Array): string => {
  const file = path.join(fs.mkdtempSync(path.join(folder, 'guest-')), 'guest.mig');
  fs.writeFileSync(file, bytes);
  return file;
};

test('the text: what the kernel is, where it is, how long its log is', async () => {
  const { status, stdout, stderr } = await runCommand('kernel', save(wholeLinux().stream()));
  assert.deepEqual([status, stderr], [0, '']);
  const rows = new Map(stdout.split('\n').map((row) => [row.slice(0, 15).trim(), row.slice(15)]));
  assert.equal(rows.get('release'), RELEASE);
  assert.equal(rows.get('version'), VERSION);
  assert.equal(rows.get('banner'), BANNER);
  assert.equal(rows.get('boot line'), 'root=/dev/vda1 quiet from=memory');
  assert.equal(rows.get('boot id'), 'e4a9b86a-e099-481b-8425-010203040506');
  assert.equal(rows.get('KASLR offset'), '0x12400000');
  assert.equal(rows.get('text'), '0xffffffff93400000, in memory at 0x400000');
  assert.equal(rows.get('physical base'), '-0x13000000');
  assert.equal(rows.get('page tables'), '0x800000, 4 levels');
  assert.equal(rows.get('log'), '3 records, from 0.000000 to 4.220695 s after boot');
  assert.ok(!stdout.includes('also in memory'));
});

test('--log is what dmesg prints, tabs as spaces and control characters as text; --json has times and levels', async () => {
  const { status, stdout } = await runCommand('kernel', save(wholeLinux().stream()), '--log');
  assert.equal(status, 0);
  assert.equal(
    stdout,
    `[    0.000000] ${BANNER}\n[    0.000000] Command line: root=/dev/vda1 quiet\n` +
      '[    4.220695] from a   program\n[    4.220695] in two lines\\x1b[31m\n',
  );
});

test('--json has addresses as text, and with --log times and levels', async () => {
  const { stdout } = await runCommand('kernel', save(wholeLinux().stream()), '--log', '--json');
  const { lines, file, ...rest } = JSON.parse(stdout) as { lines: readonly object[]; file: string };
  assert.ok(file.endsWith('guest.mig'));
  assert.deepEqual(lines[2], { seconds: 4.220695, level: 3, facility: 1, text: RECORDS[2]!.text });
  assert.deepEqual(rest, {
    ...{ release: RELEASE, nodename: 'guest7', version: VERSION, machine: 'x86_64', buildId: '0123456789abcdef' },
    ...{
      banner: BANNER,
      commandLine: 'root=/dev/vda1 quiet from=memory',
      bootId: 'e4a9b86a-e099-481b-8425-010203040506',
    },
    ...{ vmcoreinfo: 'search', kaslrOffset: '0x12400000', physicalBase: '-0x13000000' },
    text: { virtual: '0xffffffff93400000', address: '0x400000' },
    ...{ pageTables: '0x800000', pagingLevels: 4 },
    log: { format: 'ring', records: 3, firstSeconds: 0, lastSeconds: 4.220695 },
    ...{ otherBanners: [], problems: [] },
  });
});

test('guests without Linux, and kernels without a log, say so', async () => {
  const { status, stderr } = await runCommand('kernel', save(emptyStream()));
  assert.equal(status, 1);
  assert.match(stderr, /No Linux kernel is in the memory of this guest/);
  const silent = await runCommand('kernel', save(new TestLinux().stream()), '--log');
  assert.equal(silent.status, 1);
  assert.match(silent.stderr, /The kernel does not say where its log is/);
});

test('of a damaged log, what is in front of the damage is shown', async () => {
  const linux = new TestLinux();
  const { buffer } = putBuffer(linux, [{ text: 'first' }, { text: 'second' }, { text: 'third' }]);
  linux.view(buffer).setUint16(24 + 8, 7, true);
  const { status, stdout, stderr } = await runCommand('kernel', save(linux.stream()), '--log');
  assert.deepEqual([status, stdout], [1, '[    0.000000] first\n']);
  assert.match(stderr, /The kernel's log cannot be read: the record at byte 24 would have 7 bytes\./);
});
