// Notes with registers, read back by the offsets that debuggers have for them. That QEMU writes the same is in
// test/interop/cores.test.ts.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { describedStream } from '../../../test/described-stream.js';
import { type CpuOptions, type CpuValues, cpuDevices, linuxKernelCpu } from '../../../test/x86-cpu.js';
import { openSnapshot } from '../open-snapshot.js';
import { cpuNotes } from './cpu-notes.js';
import { GENERAL_REGISTERS, type X86Registers, x86Registers } from './registers.js';

const registersOf = (...cpus: [CpuValues, CpuOptions?][]): X86Registers[] => {
  const bytes = describedStream(cpus.flatMap(([values, options]) => cpuDevices(values, options)));
  const { summary } = openSnapshot((at, target) => target.set(bytes.subarray(at, at + target.length)), bytes.length);
  return x86Registers(summary, 'pc');
};

const readNote = (note: Uint8Array) => {
  const view = new DataView(note.buffer, note.byteOffset, note.length);
  const [nameBytes, bytes, type] = [0, 4, 8].map((at) => view.getUint32(at, true)) as [number, number, number];
  const start = 12 + Math.ceil(nameBytes / 4) * 4;
  assert.equal(note.length, start + Math.ceil(bytes / 4) * 4);
  const name = new TextDecoder().decode(note.subarray(12, 12 + nameBytes));
  return { name, type, bytes, view: new DataView(note.buffer, note.byteOffset + start, bytes) };
};

/** No processor has one of more than 16 bits, but a file may. */
const SELECTOR = 0x5_0100;

/** Every register has a value of its own, the lower half of which is one, too. */
const values: Record<string, bigint> = {
  ...Object.fromEntries(Object.entries(linuxKernelCpu).map(([k, v]) => [k, BigInt(v)])),
};
GENERAL_REGISTERS.forEach((_, index) => {
  values[`regs[${index}]`] = 0x1111_0000_2222_0000n + BigInt(index) * 0x1_0000_0001n;
});
['cs', 'ds', 'es', 'fs', 'gs', 'ss', 'ldt', 'tr', 'gdt', 'idt'].forEach((_, index) => {
  const place = ['segs[1]', 'segs[3]', 'segs[0]', 'segs[4]', 'segs[5]', 'segs[2]', 'ldt', 'tr', 'gdt', 'idt'][index]!;
  values[`${place}.selector`] = BigInt(index < 8 ? SELECTOR + index : 0);
  values[`${place}.limit`] = BigInt(0x200 + index);
  values[`${place}.flags`] = BigInt(index === 0 ? 0xa0_9b00 : index < 8 ? 0x300 + index : 0);
  values[`${place}.base`] = 0xffff_0000_0000_0400n + BigInt(index);
});
values['kernelgsbase'] = 0xffff_0000_0000_0555n;

test('NT_PRSTATUS of a 64-bit vCPU has all registers where the kernel has them', () => {
  const cpus = registersOf([values], [values, { instance: 4 }]);
  const notes = cpuNotes(cpus).map(readNote);
  assert.deepEqual(
    notes.map(({ name, type, bytes }) => [name, type, bytes]),
    [
      ['CORE\0', 1, 336],
      ['CORE\0', 1, 336],
      ['QEMU\0', 0, 440],
      ['QEMU\0', 0, 440],
    ],
  );
  assert.deepEqual([notes[0]!.view.getInt32(32, true), notes[1]!.view.getInt32(32, true)], [1, 5]);
  const { view } = notes[0]!;
  const { general, rip, rflags, segments } = cpus[0]!;
  const names = [
    'r15',
    'r14',
    'r13',
    'r12',
    'rbp',
    'rbx',
    'r11',
    'r10',
    'r9',
    'r8',
    'rax',
    'rcx',
    'rdx',
    'rsi',
    'rdi',
  ] as const;
  const selector = (name: keyof typeof segments): bigint => BigInt(segments[name].selector);
  const expected = [
    ...names.map((name) => general[name]),
    0n,
    ...[rip, selector('cs'), rflags, general.rsp, selector('ss'), segments.fs.base, segments.gs.base],
    ...(['ds', 'es', 'fs', 'gs'] as const).map(selector),
  ];
  assert.deepEqual(
    expected.map((_, index) => view.getBigUint64(112 + index * 8, true)),
    expected,
  );
  assert.equal(view.getBigUint64(328, true), 0n);
});

test("QEMU's note has segments and control registers, too", () => {
  const [cpu] = registersOf([values]) as [X86Registers];
  const { view } = readNote(cpuNotes([cpu])[1]!);
  assert.deepEqual([view.getUint32(0, true), view.getUint32(4, true)], [1, 440]);
  const u64 = (at: number): bigint => view.getBigUint64(at, true);
  const order = [
    'rax',
    'rbx',
    'rcx',
    'rdx',
    'rsi',
    'rdi',
    'rsp',
    'rbp',
    'r8',
    'r9',
    'r10',
    'r11',
    'r12',
    'r13',
    'r14',
    'r15',
  ] as const;
  assert.deepEqual(
    order.map((_, index) => u64(8 + index * 8)),
    order.map((name) => cpu.general[name]),
  );
  assert.deepEqual([u64(136), u64(144)], [cpu.rip, cpu.rflags]);
  for (let index = 0; index < 10; index += 1) {
    const at = 152 + index * 24;
    const u32 = [0, 4, 8, 12].map((each) => view.getUint32(at + each, true));
    const flags = index === 0 ? 0xa0_9b00 : index < 8 ? 0x300 + index : 0;
    assert.deepEqual(u32, [index < 8 ? SELECTOR + index : 0, 0x200 + index, flags, 0], `segment ${index}`);
    assert.equal(u64(at + 16), 0xffff_0000_0000_0400n + BigInt(index));
  }
  assert.deepEqual([392, 400, 408, 416, 424, 432].map(u64), [cpu.cr0, 0n, cpu.cr2, cpu.cr3, cpu.cr4, cpu.kernelGsBase]);
});

test('the first vCPU decides whether the notes are those of a 32-bit machine', () => {
  // Long mode is enabled, and not active without paging.
  const short: CpuValues = { ...values, efer: 0x100, 'cr[0]': 0x11 };
  const cpus = registersOf([short], [values, { instance: 1 }]);
  const notes = cpuNotes(cpus).map(readNote);
  assert.deepEqual(
    notes.map(({ bytes }) => bytes),
    [144, 144, 440, 440],
  );
  const { view } = notes[1]!;
  assert.equal(view.getInt32(24, true), 2);
  const { general, rip, rflags, segments } = cpus[1]!;
  const low = (value: bigint): number => Number(BigInt.asUintN(32, value));
  const short16 = (name: keyof typeof segments): number => segments[name].selector & 0xffff;
  const names = ['rbx', 'rcx', 'rdx', 'rsi', 'rdi', 'rbp', 'rax'] as const;
  const expected = [
    ...names.map((name) => low(general[name])),
    ...(['ds', 'es', 'fs', 'gs'] as const).map(short16),
    ...[0, low(rip), short16('cs'), low(rflags), low(general.rsp), short16('ss')],
  ];
  assert.deepEqual(
    expected.map((_, index) => view.getUint32(72 + index * 4, true)),
    expected,
  );
});
