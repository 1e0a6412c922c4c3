// `convert` to the formats with guest-physical addresses: each holds the same bytes at the same addresses.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { ADDRESSED_FORMATS, openKdump, unflatten } from '../../../test/addressed-files.js';
import { bin, runCommand } from '../../../test/command.js';
import { RELEASE, TestLinux, VERSION, vmcoreinfoDevice } from '../../../test/linux-memory.js';
import { clockDevice, pcStream } from '../../../test/pc-memory.js';
import { patternPage } from '../../../test/streams.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const FOUR_GIB = 4 * GIB;
const DIMM = 0x1_4000_0000;

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-by-address-'));
after(() => fs.rmSync(folder, { recursive: true }));

const at = (name: string): string => path.join(folder, name);

const BIOS_TAIL = 128 * 1024;

/** The others do not shrink. */
const compressible = new Uint8Array(Buffer.alloc(4096, 'guest memory '));

/** Where which page is, and whether it is in the file. */
const pages = [
  { block: 'pc.ram', offset: 0, address: 0 },
  { block: 'pc.ram', offset: 3 * GIB - 4096, address: 3 * GIB - 4096 },
  { block: 'pc.ram', offset: 3 * GIB, address: FOUR_GIB },
  { block: 'dimm0', offset: 8 * MIB - 4096, address: DIMM + 8 * MIB - 4096 },
  { block: 'pc.bios', offset: MIB - BIOS_TAIL, address: FOUR_GIB - BIOS_TAIL },
].map((page, seed) => ({ ...page, content: seed === 1 ? compressible : patternPage(seed + 1) }));

/** A PC across the hole, with a DIMM and firmware, of which nearly nothing is stored. */
const input = at('guest.mig');
fs.writeFileSync(
  input,
  pcStream({
    machine: 'pc-i440fx-10.0',
    blocks: [
      { name: 'pc.ram', usedLength: 3 * GIB + 64 * MIB },
      { name: 'dimm0', usedLength: 8 * MIB },
      { name: 'pc.bios', usedLength: MIB },
      { name: '0000:00:02.0/vga.vram', usedLength: MIB },
    ],
    devices: [clockDevice(3 * GIB, 64 * MIB)],
    pages,
  }),
);

/** Nothing of it lies above 4 GiB, so that a file by address is small. */
const smallGuest = (): string => {
  const file = at('small.mig');
  const stored = [0, 2 * MIB, 4 * MIB - 4096].map((offset) => ({
    block: 'pc.ram',
    offset,
    content: patternPage(offset + 1),
  }));
  fs.writeFileSync(
    file,
    pcStream({
      machine: 'pc-i440fx-10.0',
      blocks: [
        { name: 'pc.ram', usedLength: 4 * MIB },
        { name: 'pc.rom', usedLength: 128 * 1024 },
      ],
      devices: [clockDevice(4 * MIB)],
      pages: stored,
    }),
  );
  return file;
};

/** Bytes on the disk at most, for memory that is nearly all zero: a page of a dump has 24 bytes of its own. */
const mostBytes: Readonly<Record<string, number>> = { kdump: 20 * MIB };

for (const { args, read } of ADDRESSED_FORMATS) {
  const to = args.join(' ');
  const out = at(args[0]!);

  test(`--to ${to}: every byte at its address, holes and zeros without space`, async () => {
    const place = ['--at', `dimm0=${DIMM}`];
    const { status, stdout } = await runCommand('convert', input, out, '--to', ...args, ...place, '--json');
    assert.equal(status, 0, stdout);
    const { ranges, leftOut } = JSON.parse(stdout) as { ranges: object[]; leftOut: { block: string }[] };
    assert.deepEqual(ranges, [
      { block: 'pc.ram', address: 0, offset: 0, bytes: 3 * GIB },
      { block: 'pc.bios', address: FOUR_GIB - MIB, offset: 0, bytes: MIB },
      { block: 'pc.ram', address: FOUR_GIB, offset: 3 * GIB, bytes: 64 * MIB },
      { block: 'dimm0', address: DIMM, offset: 0, bytes: 8 * MIB },
    ]);
    assert.deepEqual(
      leftOut.map(({ block }) => block),
      ['0000:00:02.0/vga.vram'],
    );
    const bytesAt = read(out);
    for (const { address, content } of pages) {
      assert.deepEqual(bytesAt(address, 4096), Buffer.from(content), address.toString(16));
    }
    assert.deepEqual(bytesAt(4096, 4096), Buffer.alloc(4096));
    assert.deepEqual(bytesAt(3 * GIB, 4096), to === 'raw --by-address' ? Buffer.alloc(4096) : undefined);
    assert.equal(bytesAt(DIMM + 8 * MIB, 1), undefined);
    const { blocks } = fs.statSync(out);
    assert.ok(blocks * 512 <= (mostBytes[to] ?? 128 * 1024), `${blocks} blocks of 512 bytes`);
  });

  test(`--to ${to} --block: the firmware at both of its addresses`, async () => {
    const block = ['--to', ...args, '--block', 'pc.bios'];
    const { status, stderr } = await runCommand('convert', input, out, ...block);
    assert.equal(status, 0, stderr);
    const bytesAt = read(out);
    for (const address of [MIB - BIOS_TAIL, FOUR_GIB - BIOS_TAIL]) {
      assert.deepEqual(bytesAt(address, 4096), Buffer.from(pages.at(-1)!.content), address.toString(16));
    }
    assert.deepEqual(bytesAt(FOUR_GIB - MIB, 4096), Buffer.alloc(4096));
    assert.equal(bytesAt(FOUR_GIB, 1), undefined);
  });
  test(`--to ${to}: through a pipe, the same bytes`, async () => {
    const small = smallGuest();
    const { status, stderr } = await runCommand('convert', small, out, '--to', ...args);
    assert.equal(status, 0, stderr);
    const piped = execFileSync(process.execPath, [bin, 'convert', small, '-', '--to', ...args, '--quiet'], {
      maxBuffer: 64 * MIB,
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    assert.ok((to === 'kdump' ? unflatten(piped) : piped).equals(fs.readFileSync(out)), `${piped.length} bytes`);
  });
}

test('--to kdump: what Linux says about itself, known to the vmcoreinfo device or found in memory', async () => {
  const linux = new TestLinux();
  for (const devices of [[vmcoreinfoDevice()], []]) {
    fs.writeFileSync(at('linux.mig'), linux.stream({ devices }));
    const { status, stderr } = await runCommand('convert', at('linux.mig'), at('linux.kdump'), '--to', 'kdump');
    assert.equal(status, 0, stderr);
    const { uname, physBase, vmcoreinfo, notes } = openKdump(at('linux.kdump'));
    assert.deepEqual(uname, ['Linux', 'guest7', RELEASE, VERSION, 'x86_64', '']);
    assert.equal(physBase, linux.physicalBase);
    assert.equal(vmcoreinfo.toString(), linux.vmcoreinfo);
    assert.ok(notes.includes(vmcoreinfo) && notes.includes('VMCOREINFO\0'));
  }
});
