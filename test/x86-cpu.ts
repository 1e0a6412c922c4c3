// `cpu` sections of x86 vCPUs as QEMU writes and describes them, for guests that tests invent.

import { ByteWriter } from '../src/format/byte-writer.js';
import type { DescribedTestDevice } from './described-stream.js';

/** Values by the names that QEMU has for the fields, without `env.`: `regs[4]`, `eip`, `segs[1].flags`, `cr[3]`, `efer`. All others are 0. */
export type CpuValues = Readonly<Record<string, bigint | number>>;

export interface CpuOptions {
  readonly instance?: number;
  readonly version?: number;
  readonly halted?: boolean;
  /** The section of a qemu-system-i386. */
  readonly is32Bit?: boolean;
}

interface Described {
  readonly name: string;
  readonly type: string;
  readonly size: number;
  readonly array_len?: number;
  readonly struct?: object;
}

/** The sections `cpu_common` and `cpu` of one vCPU. */
export const cpuDevices = (values: CpuValues, options: CpuOptions = {}): DescribedTestDevice[] => {
  const { instance = 0, version = 12, halted = false, is32Bit = false } = options;
  const out = new ByteWriter();
  const fields: Described[] = [];
  const used = new Set<string>();
  const put = (name: string, bits: 32 | 64): void => {
    used.add(name);
    const value = BigInt(values[name] ?? 0);
    if (bits === 32) {
      out.be32(Number(value));
    } else {
      out.be32(Number(value >> 32n)).be32(Number(value & 0xffff_ffffn));
    }
  };
  const register = is32Bit ? 32 : 64;
  const integer = (name: string, bits: 32 | 64): void => {
    fields.push({ name: `env.${name}`, type: `uint${bits}`, size: bits / 8 });
    put(name, bits);
  };
  const array = (name: string, count: number, bits: 32 | 64): void => {
    fields.push({ name: `env.${name}`, array_len: count, type: `uint${bits}`, size: bits / 8 });
    for (let index = 0; index < count; index += 1) {
      put(`${name}[${index}]`, bits);
    }
  };
  const segment = (name: string): void => {
    put(`${name}.selector`, 32);
    put(`${name}.base`, register);
    put(`${name}.limit`, 32);
    put(`${name}.flags`, 32);
  };
  const part = (name: string, bits: number): Described => ({ name, type: `uint${bits}`, size: bits / 8 });
  const segmentField: Omit<Described, 'name'> = {
    type: 'struct',
    struct: {
      vmsd_name: 'segment',
      version: 1,
      fields: [part('selector', 32), part('base', register), part('limit', 32), part('flags', 32)],
    },
    size: 12 + register / 8,
  };

  array('regs', is32Bit ? 8 : 16, register);
  integer('eip', register);
  integer('eflags', register);
  integer('hflags', 32);
  fields.push({ name: 'env.segs', array_len: 6, ...segmentField });
  for (let index = 0; index < 6; index += 1) {
    segment(`segs[${index}]`);
  }
  for (const name of ['ldt', 'tr', 'gdt', 'idt']) {
    fields.push({ name: `env.${name}`, ...segmentField });
    segment(name);
  }
  for (const name of ['cr[0]', 'cr[2]', 'cr[3]', 'cr[4]']) {
    integer(name, register);
  }
  array('dr', 8, register);
  if (!is32Bit) {
    for (const name of ['efer', 'star', 'lstar', 'cstar', 'fmask', 'kernelgsbase']) {
      integer(name, 64);
    }
  }
  const subsections: object[] = [];
  if (is32Bit && values['efer'] !== undefined) {
    out.u8(5).str8('cpu/efer32').be32(1);
    put('efer', 64);
    subsections.push({ vmsd_name: 'cpu/efer32', version: 1, fields: [{ name: 'env.efer', type: 'uint64', size: 8 }] });
  }
  for (const name of Object.keys(values)) {
    if (!used.has(name)) {
      throw new Error(`a cpu section has no "${name}"`);
    }
  }
  const common = new ByteWriter()
    .be32(halted ? 1 : 0)
    .be32(0)
    .copy();
  return [
    {
      name: 'cpu_common',
      instance,
      body: common,
      description: { fields: [part('halted', 32), part('interrupt_request', 32)] },
    },
    { name: 'cpu', instance, version, body: out.copy(), description: { fields, subsections } },
  ];
};

/** A vCPU in a 64-bit kernel, as Linux sets it up. */
export const linuxKernelCpu: CpuValues = {
  'regs[4]': 0xffffffff_81a03e98n,
  eip: 0xffffffff_81017a0bn,
  eflags: 0x246,
  hflags: 0x40_c0b0,
  'segs[1].selector': 0x10,
  'segs[1].limit': 0xffff_ffff,
  'segs[1].flags': 0xa0_9b00,
  'segs[5].base': 0xffff8e5f_8f800000n,
  'gdt.base': 0xfffffe00_00001000n,
  'gdt.limit': 0x7f,
  'cr[0]': 0x8005_0033n,
  'cr[2]': 0x7ffc_e87a7080n,
  'cr[3]': 0x29c_4000,
  'cr[4]': 0x6b0,
  efer: 0xd01,
};
