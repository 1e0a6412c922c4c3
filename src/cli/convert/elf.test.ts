// What an ELF core has besides memory: registers, VMCOREINFO, virtual addresses, or why it has none.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { runCommand } from '../../../test/command.js';
import { PAGING, TestTables } from '../../../test/page-tables.js';
import { clockDevice, pcStream, type TestPc } from '../../../test/pc-memory.js';
import { patternPage } from '../../../test/streams.js';
import { cpuDevices, linuxKernelCpu } from '../../../test/x86-cpu.js';

const RAM_BYTES = 16 * 2 ** 20;

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-elf-'));
after(() => fs.rmSync(folder, { recursive: true }));

const saved = (name: string, pc: Partial<TestPc> = {}): string => {
  const file = path.join(folder, name);
  const blocks = [{ name: 'pc.ram', usedLength: RAM_BYTES }];
  fs.writeFileSync(file, pcStream({ blocks, devices: [clockDevice(RAM_BYTES)], ...pc }));
  return file;
};

const core = path.join(folder, 'core');

interface Answer {
  readonly core: Record<string, unknown>;
  readonly error?: { readonly code: string };
}

const run = async (...args: string[]): Promise<{ status: number | null; document: Answer; stdout: string }> => {
  const { status, stdout } = await runCommand('convert', ...args);
  return { status, stdout, document: (args.includes('--json') ? JSON.parse(stdout) : {}) as Answer };
};

const convert = (input: string, ...args: string[]) => run(input, core, '--to', 'elf', ...args);

/** Segments as [virtual, physical, file offset, bytes], and notes by name with their lengths. */
const readCore = () => {
  const file = fs.readFileSync(core);
  const u64 = (at: number): bigint => file.readBigUInt64LE(at);
  const headers = Array.from({ length: file.readUInt16LE(56) }, (_, index) => 64 + index * 56);
  const [note, ...loads] = headers as [number, ...number[]];
  const notes: [string, number][] = [];
  const end = Number(u64(note + 8) + u64(note + 32));
  for (let at = Number(u64(note + 8)); at < end; ) {
    const [nameBytes, bytes] = [file.readUInt32LE(at), file.readUInt32LE(at + 4)] as const;
    notes.push([file.toString('latin1', at + 12, at + 11 + nameBytes), bytes]);
    at += 12 + Math.ceil(nameBytes / 4) * 4 + Math.ceil(bytes / 4) * 4;
  }
  return {
    file,
    machine: file.readUInt16LE(18),
    notes,
    segments: loads.map((at) => [u64(at + 16), u64(at + 24), u64(at + 8), u64(at + 32)] as const),
    alignments: loads.map((at) => u64(at + 48)),
  };
};

const KERNEL = 0xffff_8880_0000_0000n;
const content = patternPage(7);
const tables = new TestTables(PAGING[4], 0x10_0000);
tables.map(KERNEL, 0x5000n);

const linux: Partial<TestPc> = {
  devices: [
    clockDevice(RAM_BYTES),
    ...cpuDevices({ ...linuxKernelCpu, 'cr[3]': tables.root }),
    ...cpuDevices({ eip: 0xfff0 }, { instance: 1, halted: true }),
  ],
  pages: [...tables.pagesOf('pc.ram'), { block: 'pc.ram', offset: 0x5000, content }],
};

test('registers of every vCPU, in the order of dump-guest-memory, and headers by which crash takes it for a dump', async () => {
  const { document } = await convert(saved('linux.mig', linux), '--json');
  assert.deepEqual(document.core, {
    cpus: [
      { cpu: 0, mode: 'long' },
      { cpu: 1, mode: 'real' },
    ],
    vmcoreinfoBytes: 0,
    notes: [],
  });
  const { notes, machine, segments, alignments } = readCore();
  assert.deepEqual(notes, [
    ['CORE', 336],
    ['CORE', 336],
    ['QEMU', 440],
    ['QEMU', 440],
    ['ramferry', 19],
  ]);
  assert.equal(machine, 62);
  assert.deepEqual(segments, [[0n, 0n, 4096n, BigInt(RAM_BYTES)]]);
  // With any other, crash looks for no KASLR.
  assert.deepEqual(alignments, [0n]);
});

test('--virtual: what is mapped is at its virtual address, and all memory at its physical one', async () => {
  const { document, status } = await convert(saved('linux.mig', linux), '--virtual', '--json');
  assert.equal(status, 0);
  assert.deepEqual(document.core['virtual'], {
    mappings: 1,
    mappedBytes: 4096,
    unmappedBytes: RAM_BYTES - 4096,
  });
  const { segments, file } = readCore();
  const [[virtual, physical, offset, bytes]] = segments as [(typeof segments)[number]];
  assert.deepEqual([virtual, physical, bytes], [KERNEL, 0x5000n, 4096n]);
  assert.deepEqual(file.subarray(Number(offset), Number(offset) + 4096), Buffer.from(content));
  assert.deepEqual(
    segments.map((each) => each[1]).sort((a, b) => Number(a - b)),
    [0n, 0x5000n, 0x6000n],
  );
  const text = await convert(saved('linux.mig', linux), '--virtual');
  assert.match(
    text.stdout,
    /registers +2 vCPUs\n +VMCOREINFO +none\n +virtual +1 mapping of 4.00 KiB, 16.0 MiB not mapped/,
  );
});

test('a file without a description has memory, and says why it has no registers', async () => {
  const input = saved('undescribed.mig', { ...linux, description: '' });
  const { document } = await convert(input, '--json');
  assert.deepEqual(document.core, {
    cpus: [],
    vmcoreinfoBytes: 0,
    notes: [
      'No registers: The file has no VM description that can be read: what its device sections consist of is not known.',
    ],
  });
  assert.deepEqual(readCore().notes, [['ramferry', 19]]);
  const { stdout } = await convert(input);
  assert.match(stdout, /registers +none\n +VMCOREINFO +none\n +note +No registers: The file has no VM description/);
});

test('virtual addresses that nobody has are refused, and no core is left', async () => {
  fs.rmSync(core, { force: true });
  for (const [input, code] of [
    [saved('undescribed.mig', { ...linux, description: '' }), 'NO_DESCRIPTION'],
    [saved('unpaged.mig', { devices: [clockDevice(RAM_BYTES), ...cpuDevices({ eip: 0xfff0 })] }), 'NOT_PAGED'],
  ] as const) {
    const { document, status } = await convert(input, '--virtual', '--json');
    assert.equal(document.error!.code, code);
    assert.equal(status, 1);
    assert.equal(fs.existsSync(core), false);
  }
  const { document } = await run('x', 'y', '--to', 'lime', '--virtual', '--json');
  assert.equal(document.error!.code, 'VIRTUAL_OPTION');
});
