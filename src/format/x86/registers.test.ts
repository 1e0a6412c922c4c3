// Registers out of `cpu` sections: where each comes from, what mode they add up to, and guests that have none to give.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { type DescribedTestDevice, describedStream } from '../../../test/described-stream.js';
import { type CpuOptions, type CpuValues, cpuDevices, linuxKernelCpu } from '../../../test/x86-cpu.js';
import { openSnapshot } from '../open-snapshot.js';
import type { StreamSummary } from '../stream/stream-handler.js';
import { GENERAL_REGISTERS, SEGMENT_REGISTERS, type X86Registers, x86Registers } from './registers.js';

const summaryOf = (devices: readonly DescribedTestDevice[], description?: string): StreamSummary => {
  const bytes = describedStream(devices, description);
  return openSnapshot((at, target) => target.set(bytes.subarray(at, at + target.length)), bytes.length).summary;
};

const registersOf = (values: CpuValues, options?: CpuOptions): X86Registers =>
  x86Registers(summaryOf(cpuDevices(values, options)), 'pc-q35-10.0')[0]!;

test('every register has its own value', () => {
  const values: Record<string, bigint | number> = {};
  let next = 0x1111;
  const fresh = (name: string): number => {
    next += 1;
    values[name] = next;
    return next;
  };
  const segment = (name: string) => ({
    selector: fresh(`${name}.selector`),
    base: BigInt(fresh(`${name}.base`)),
    limit: fresh(`${name}.limit`),
    flags: fresh(`${name}.flags`),
  });
  const expected = {
    general: Object.fromEntries(GENERAL_REGISTERS.map((name, index) => [name, BigInt(fresh(`regs[${index}]`))])),
    segments: Object.fromEntries(SEGMENT_REGISTERS.map((name, index) => [name, segment(`segs[${index}]`)])),
    ldt: segment('ldt'),
    tr: segment('tr'),
    gdt: { base: BigInt(fresh('gdt.base')), limit: fresh('gdt.limit') },
    idt: { base: BigInt(fresh('idt.base')), limit: fresh('idt.limit') },
    rip: BigInt(fresh('eip')),
    rflags: BigInt(fresh('eflags')),
    cr0: BigInt(fresh('cr[0]')),
    cr2: BigInt(fresh('cr[2]')),
    cr3: BigInt(fresh('cr[3]')),
    cr4: BigInt(fresh('cr[4]')),
    dr: Array.from({ length: 8 }, (_, index) => BigInt(fresh(`dr[${index}]`))),
    efer: BigInt(fresh('efer')),
    star: BigInt(fresh('star')),
    lstar: BigInt(fresh('lstar')),
    cstar: BigInt(fresh('cstar')),
    fmask: BigInt(fresh('fmask')),
    kernelGsBase: BigInt(fresh('kernelgsbase')),
  };
  const { cpu, halted, registerBits, mode, codeBits, cpl, smm, nested, pagingLevels, ...registers } =
    registersOf(values);
  assert.deepEqual(registers, expected);
  assert.deepEqual([cpu, halted, registerBits], [0, false, 64]);
  // The order is that of the numbers in machine code.
  assert.deepEqual(GENERAL_REGISTERS.slice(0, 5), ['rax', 'rcx', 'rdx', 'rbx', 'rsp']);
});

describe('modes', () => {
  const long = linuxKernelCpu;
  const cases: [
    name: string,
    values: CpuValues,
    mode: string,
    codeBits: number,
    levels: number,
    cpl: number,
    smm: boolean,
  ][] = [
    ['after a reset', { 'cr[0]': 0x6000_0010, eip: 0xfff0 }, 'real', 16, 0, 0, false],
    ['a 64-bit kernel', long, 'long', 64, 4, 0, false],
    ['five levels', { ...long, 'cr[4]': 0x16b0 }, 'long', 64, 5, 0, false],
    ['a 64-bit program', { ...long, hflags: 0x3 }, 'long', 64, 4, 3, false],
    [
      'a 32-bit program under it',
      { ...long, hflags: 0x3, 'segs[1].flags': 0xc0_fb00 },
      'compatibility',
      32,
      4,
      3,
      false,
    ],
    ['32-bit, without paging', { 'cr[0]': 0x11, 'segs[1].flags': 0xc0_9b00 }, 'protected', 32, 0, 0, false],
    ['32-bit, two levels', { 'cr[0]': 0x8000_0011n, 'segs[1].flags': 0xc0_9b00 }, 'protected', 32, 2, 0, false],
    ['32-bit, PAE', { 'cr[0]': 0x8000_0011n, 'cr[4]': 0x20, 'segs[1].flags': 0xc0_9b00 }, 'protected', 32, 3, 0, false],
    ['16-bit protected mode', { 'cr[0]': 0x11, 'segs[1].flags': 0x9b00 }, 'protected', 16, 0, 0, false],
    ['virtual 8086', { 'cr[0]': 0x8000_0011n, eflags: 0x2_0202, hflags: 3 }, 'virtual-8086', 16, 2, 3, false],
    ['system management', { 'cr[0]': 0x10, hflags: 0x8_0000 }, 'real', 16, 0, 0, true],
  ];
  for (const [name, values, mode, codeBits, levels, cpl, smm] of cases) {
    test(name, () => {
      const registers = registersOf(values);
      assert.deepEqual(
        [registers.mode, registers.codeBits, registers.pagingLevels, registers.cpl, registers.smm],
        [mode, codeBits, levels, cpl, smm],
      );
    });
  }
});

test('a vCPU that runs a guest of its own says so', () => {
  assert.equal(registersOf({ ...linuxKernelCpu, hflags: 0x60_c0b0 }).nested, true);
  assert.equal(registersOf(linuxKernelCpu).nested, false);
});

test('of a 32-bit QEMU: eight registers, EFER from its subsection', () => {
  const registers = registersOf({ 'regs[7]': 0xffff_fff0, eip: 5, efer: 0x800 }, { is32Bit: true });
  assert.equal(registers.registerBits, 32);
  assert.deepEqual([registers.general.rdi, registers.general.r8, registers.efer], [0xffff_fff0n, 0n, 0x800n]);
  assert.equal(registersOf({}, { is32Bit: true }).efer, 0n);
});

test('several vCPUs, in the order of their indexes, some halted, with gaps', () => {
  const devices = [
    ...cpuDevices({ eip: 3 }, { instance: 3, halted: true }),
    ...cpuDevices({ eip: 1 }, { instance: 0, version: 11 }),
  ];
  const cpus = x86Registers(summaryOf(devices), 'pc');
  assert.deepEqual(
    cpus.map(({ cpu, rip, halted }) => [cpu, rip, halted]),
    [
      [0, 1n, false],
      [3, 3n, true],
    ],
  );
});

describe('guests without registers to give say why', () => {
  const cpu = (fields: readonly object[], body: number): DescribedTestDevice => ({
    name: 'cpu',
    body: new Uint8Array(body),
    description: { fields },
  });
  const cases: [
    name: string,
    code: string,
    message: RegExp,
    devices: readonly DescribedTestDevice[],
    description?: string,
  ][] = [
    ['no description', 'NO_DESCRIPTION', /no VM description/, cpuDevices({}), ''],
    [
      'no vCPU',
      'NO_CPU_STATE',
      /machine "virt-10.0"/,
      [{ name: 'timer', body: new Uint8Array(1), description: { fields: [{ name: 'a', type: 'uint8', size: 1 }] } }],
    ],
    [
      'another architecture',
      'NOT_X86',
      /"virt-10.0" is Arm/,
      [cpu([{ name: 'env.xregs', array_len: 32, type: 'uint64', size: 8 }], 256)],
    ],
    [
      'one that is not known',
      'NOT_X86',
      /"virt-10.0" is of another architecture/,
      [cpu([{ name: 'data', type: 'buffer', size: 4 }], 4)],
    ],
    ['an old version', 'CPU_VERSION', /version 10/, cpuDevices({}, { version: 10 })],
  ];
  for (const [name, code, message, devices, description] of cases) {
    test(name, () => {
      assert.throws(() => x86Registers(summaryOf(devices, description), 'virt-10.0'), {
        kind: 'failed',
        code,
        message,
      });
    });
  }

  test('more vCPUs than any guest', () => {
    const devices = Array.from({ length: 4097 }, (_, instance) => cpuDevices({}, { instance })[1]!);
    assert.throws(() => x86Registers(summaryOf(devices), 'pc'), {
      kind: 'invalid',
      code: 'TOO_MANY_CPUS',
      value: 4097,
    });
  });

  test('a register that the description does not name', () => {
    const [common, section] = cpuDevices({});
    const { fields } = section!.description as { fields: { name: string }[] };
    const renamed = fields.map((field) => (field.name === 'env.cr[3]' ? { ...field, name: 'env.cr3' } : field));
    assert.throws(() => x86Registers(summaryOf([common!, { ...section!, description: { fields: renamed } }]), 'pc'), {
      kind: 'invalid',
      code: 'DEVICE_FIELD_MISSING',
      message: /"env\.cr\[3\]"/,
    });
  });
});
