// `read` from outside the process: by guest-physical address, by virtual address, in a RAM block; what is not there is said.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { runCommand } from '../../test/command.js';
import { PAGING, TestTables } from '../../test/page-tables.js';
import { clockDevice, pcStream } from '../../test/pc-memory.js';
import { patternPage } from '../../test/streams.js';
import { cpuDevices } from '../../test/x86-cpu.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-read-'));
after(() => fs.rmSync(folder, { recursive: true }));

const MIB = 2 ** 20;
const PAGE = 4096;

const save = (name: string, bytes: Uint8Array): string => {
  const file = path.join(folder, name);
  fs.writeFileSync(file, bytes);
  return file;
};

const long = {
  'cr[0]': 0x8005_0033n,
  'cr[3]': 0x10_0000n,
  'cr[4]': 0x6b0,
  efer: 0xd01,
  'segs[1].flags': 0xaf_9b00,
};

/** Two pages that are neighbours by virtual address, in the other order in memory. */
const tables = new TestTables(PAGING[4], 0x10_0000);
tables.map(0xffff_8000_0000_1000n, 0x5000n);
tables.map(0xffff_8000_0000_2000n, 0x4000n);

const low = patternPage(4);
const high = patternPage(5);
low.set(Buffer.from('…end\0'), 0);
high.set(Buffer.from('text that goes on'), PAGE - 17);

const file = save(
  'guest.mig',
  pcStream({
    machine: 'pc-i440fx-10.0',
    blocks: [
      { name: 'pc.ram', usedLength: 48 * MIB },
      { name: 'vga.vram', usedLength: MIB },
    ],
    devices: [clockDevice(32 * MIB, 16 * MIB), ...cpuDevices(long), ...cpuDevices({}, { instance: 1 })],
    pages: [
      ...tables.pagesOf('pc.ram'),
      { block: 'pc.ram', offset: 0x4000, content: low },
      { block: 'pc.ram', offset: 0x5000, content: high },
      { block: 'pc.ram', offset: 32 * MIB, content: patternPage(9) },
      { block: 'vga.vram', offset: PAGE, content: patternPage(7) },
    ],
  }),
);

const hexOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

interface Read {
  readonly asked: string;
  readonly address?: number;
  readonly virtual?: string;
  readonly block?: string;
  readonly offset?: number;
  readonly hex?: string;
  readonly text?: string;
  readonly error?: { readonly code: string };
}

const ask = async (
  ...args: readonly string[]
): Promise<{ status: number | null; reads: readonly Read[]; code: string | undefined }> => {
  const { status, stdout } = await runCommand('read', file, ...args, '--json');
  const { reads = [], error } = JSON.parse(stdout) as { reads?: Read[]; error?: { code: string } };
  return { status, reads, code: error?.code };
};

test('guest-physical addresses, above 4 GiB as well; offsets in RAM blocks; zero pages', async () => {
  const { status, reads } = await ask('0x4ffe', '0x100000000', 'vga.vram+0x1004', '8192', '--length', '4');
  assert.equal(status, 0);
  assert.deepEqual(reads, [
    {
      asked: '0x4ffe',
      address: 0x4ffe,
      block: 'pc.ram',
      offset: 0x4ffe,
      hex: hexOf(low.subarray(-2)) + hexOf(high.subarray(0, 2)),
    },
    {
      asked: '0x100000000',
      address: 2 ** 32,
      block: 'pc.ram',
      offset: 32 * MIB,
      hex: hexOf(patternPage(9).subarray(0, 4)),
    },
    { asked: 'vga.vram+0x1004', block: 'vga.vram', offset: 0x1004, hex: hexOf(patternPage(7).subarray(4, 8)) },
    { asked: '8192', address: 8192, block: 'pc.ram', offset: 8192, hex: '00000000' },
  ]);
});

test('virtual addresses, across pages that are no neighbours in memory', async () => {
  const { reads } = await ask('0xffff800000001ffd', '--virtual', '--length', '6');
  const { virtual, address, hex } = reads[0]!;
  assert.deepEqual([virtual, address], ['0xffff800000001ffd', 0x5ffd]);
  assert.equal(hex, hexOf(high.subarray(-3)) + hexOf(low.subarray(0, 3)));
  const text = await ask('0xffff800000001fef', '--cpu', '0', '--string');
  assert.equal(text.reads[0]!.text, 'text that goes on…end');
});

test('the text: a hexdump that counts as the address does', async () => {
  const { status, stdout, stderr } = await runCommand('read', file, '0x5ff0', 'pc.ram+0x2000', '--length', '48');
  assert.deepEqual([status, stderr], [0, '']);
  assert.match(
    stdout,
    /^0x5ff0 {2}address 0x5ff0, pc\.ram\+0x5ff0\n000000005ff0 {2}65 78 74 20 .*\|ext that goes on\|\n/,
  );
  assert.match(stdout, /^pc\.ram\+0x2000 {2}pc\.ram\+0x2000\n000000002000 {2}00 00 .*\n\*\n000000002020 /m);
});

test('bytes as they are, to a file and to stdout', async () => {
  const out = path.join(folder, 'bytes');
  const { stdout } = await runCommand('read', file, '0x4000', '0x5000', '--length', '4K', '--out', out);
  assert.equal(stdout, `${out}: 8192 bytes\n`);
  assert.deepEqual(fs.readFileSync(out), Buffer.concat([low, high]));
  const piped = await runCommand('read', file, '0x5fef', '--length', '4', '--out', '-');
  assert.deepEqual([piped.status, piped.stdout], [0, 'text']);
});

test('one place that is not there does not hide the others', async () => {
  const { status, reads, code } = await ask('0x3000000', '0x4000', '--length', '2');
  assert.deepEqual([status, code, reads[0]!.error?.code], [1, 'NO_MEMORY', 'NO_MEMORY']);
  assert.equal(reads[1]!.hex, hexOf(low.subarray(0, 2)));
  assert.equal((await ask('vga.vram+0xfffff', '--length', '2')).code, 'NO_MEMORY');
  assert.equal((await ask('0x1234', '--virtual')).code, 'NOT_MAPPED');
  assert.equal((await ask('0x1234', '--cpu', '1')).code, 'NOT_PAGED');
  const alone = await runCommand('read', file, '0x3000000');
  assert.deepEqual([alone.status, alone.stdout], [1, '']);
  assert.match(alone.stderr, /no memory at address 0x3000000\.\n$/);
});

test('without a length it is what there is, up to 256 bytes; nothing is left out of what was asked for', async () => {
  const lengths = async (...args: readonly string[]): Promise<number[]> =>
    (await ask(...args)).reads.map(({ hex }) => hex!.length / 2);
  assert.deepEqual(await lengths('0x4ffe', '0x100fffff0', 'vga.vram+0xfff81'), [256, 16, 127]);
  assert.deepEqual(await lengths('0xffff800000002f81', '--virtual'), [127]);
  assert.equal((await ask('0x101000000')).code, 'NO_MEMORY');
  assert.equal((await ask('0x100fffff0', '--length', '256')).code, 'NO_MEMORY');
  const { status, stderr } = await runCommand('read', file, '0x4000', '--length', '0');
  assert.equal(status, 2);
  assert.match(stderr, /It must be at least 1\./);
  assert.match((await runCommand('read', file, '0xffff800000002f81')).stderr, /one that is virtual needs --virtual/);
});

test('wrong usage has a code, and harms no file', async () => {
  const failure = async (...args: readonly string[]): Promise<[number | null, string | undefined]> => {
    const { status, code } = await ask(...args);
    return [status, code];
  };
  assert.deepEqual(await failure('0xz'), [2, 'INVALID_ADDRESS']);
  assert.deepEqual(await failure('none+0'), [2, 'NO_SUCH_BLOCK']);
  assert.deepEqual(await failure('0x20000000000001'), [2, 'INVALID_ADDRESS']);
  assert.deepEqual(await failure('0', '--cpu', '7'), [2, 'NO_SUCH_CPU']);
  assert.deepEqual(await failure('0', '--length', '1G'), [2, 'TOO_MUCH_MEMORY']);
  assert.deepEqual(await failure('0', '--string', '--out', 'x'), [2, 'OPTION_CONFLICT']);
  assert.deepEqual(await failure('0', '--out', file), [2, 'OUTPUT_IS_INPUT']);
  const out = path.join(folder, 'kept');
  fs.writeFileSync(out, 'kept');
  assert.deepEqual(await failure('0x3000000', '--out', out), [1, 'NO_MEMORY']);
  assert.equal(fs.readFileSync(out, 'utf8'), 'kept');
});

test('memory in front of device state that is cut is read by block, with a warning; addresses are not known', async () => {
  const whole = fs.readFileSync(file);
  const cut = save('cut.mig', whole.subarray(0, whole.indexOf('mc146818rtc') + 40));
  const { status, stdout, stderr } = await runCommand('read', cut, 'pc.ram+0x4000', '--length', '4096', '--json');
  assert.equal(status, 0);
  assert.equal((JSON.parse(stdout) as { reads: { hex: string }[] }).reads[0]!.hex, hexOf(low));
  assert.match(stderr, /warning: .*The memory before it is whole; no device state is read\./);
  assert.notEqual((await runCommand('read', cut, '0x4000')).status, 0);
});
