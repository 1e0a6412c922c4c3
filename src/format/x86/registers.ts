// Registers of x86 vCPUs out of their `cpu` sections, from version 11 on, which is all that QEMU itself still loads: older ones
// would have other fields.

import { RamferryError } from '../../memory/errors.js';
import { DescribedDevices, type DeviceFields, noDescription } from '../stream/device-fields.js';
import type { FieldGroup } from '../stream/field-group.js';
import type { StreamSummary } from '../stream/stream-handler.js';

/** The general registers by the numbers that instructions have for them, which is QEMU's order. */
export const GENERAL_REGISTERS = [
  ...(['rax', 'rcx', 'rdx', 'rbx', 'rsp', 'rbp', 'rsi', 'rdi'] as const),
  ...(['r8', 'r9', 'r10', 'r11', 'r12', 'r13', 'r14', 'r15'] as const),
] as const;
export type GeneralRegister = (typeof GENERAL_REGISTERS)[number];

/** Segment registers, in QEMU's order. */
export const SEGMENT_REGISTERS = ['es', 'cs', 'ss', 'ds', 'fs', 'gs'] as const;
export type SegmentRegister = (typeof SEGMENT_REGISTERS)[number];

/** A segment register with the part of the descriptor that the processor keeps. */
export interface Segment {
  readonly selector: number;
  readonly base: bigint;
  readonly limit: number;
  /** Bits 8 to 23 are those of the descriptor's second word: type, DPL, present, L, D/B, G. */
  readonly flags: number;
}

/** GDTR or IDTR. */
export interface DescriptorTable {
  readonly base: bigint;
  readonly limit: number;
}

/** How instructions run: `compatibility` is 16- or 32-bit code under a 64-bit kernel. */
export type ProcessorMode = 'real' | 'virtual-8086' | 'protected' | 'compatibility' | 'long';

/** One vCPU as it was saved. */
export interface X86Registers {
  /** Index of the vCPU, from 0; with hot-plugged processors there may be gaps. */
  readonly cpu: number;
  /** Waits for an interrupt, or was never started. */
  readonly halted: boolean;
  /** Width of a register: 32 for qemu-system-i386, where `r8` to `r15` do not exist and are 0. */
  readonly registerBits: 32 | 64;
  readonly general: Readonly<Record<GeneralRegister, bigint>>;
  readonly rip: bigint;
  readonly rflags: bigint;
  readonly segments: Readonly<Record<SegmentRegister, Segment>>;
  readonly ldt: Segment;
  readonly tr: Segment;
  readonly gdt: DescriptorTable;
  readonly idt: DescriptorTable;
  readonly cr0: bigint;
  readonly cr2: bigint;
  readonly cr3: bigint;
  readonly cr4: bigint;
  /** DR0 to DR7. */
  readonly dr: readonly bigint[];
  readonly efer: bigint;
  readonly star: bigint;
  readonly lstar: bigint;
  readonly cstar: bigint;
  readonly fmask: bigint;
  readonly kernelGsBase: bigint;
  readonly mode: ProcessorMode;
  /** Width of the code that runs. */
  readonly codeBits: 16 | 32 | 64;
  /** Current privilege level. */
  readonly cpl: number;
  /** In system management mode, where memory at SMBASE is not what others see. */
  readonly smm: boolean;
  /** Runs a guest of its own, which control registers and addresses are of. */
  readonly nested: boolean;
  /** Levels of the page tables: 2, 3 with PAE, 4, 5; 0 while paging is off. */
  readonly pagingLevels: 0 | 2 | 3 | 4 | 5;
}

/** Bits of CR0, CR4, EFER, RFLAGS, segment flags and hidden flags that decide modes. */
const CR0_PROTECTED = 1n << 0n;
const CR0_PAGING = 1n << 31n;
const CR4_PAE = 1n << 5n;
const CR4_FIVE_LEVELS = 1n << 12n;
const EFER_LONG_ACTIVE = 1n << 10n;
const RFLAGS_VIRTUAL_8086 = 1n << 17n;
const SEGMENT_LONG = 1 << 21;
const SEGMENT_BIG = 1 << 22;
const HIDDEN_CPL = 3;
const HIDDEN_SMM = 1 << 19;
const HIDDEN_GUEST = 1 << 21;

const OLDEST_VERSION = 11;

/** Most vCPUs, which is QEMU's own limit. */
const CPU_LIMIT = 4096;

/** Most fields of all sections of a name: with AMX, a vCPU has 9,000; what is common to all architectures are a dozen. */
const FIELD_LIMIT = { cpu: 16_000_000, cpu_common: 1_000_000 } as const;

/**
 * The registers of every vCPU of an opened file, in the order of their indexes.
 * @param summary `snapshot.summary`
 * @param machine `snapshot.configuration.machine`, for errors
 * @throws RamferryError `failed` if the file has none to give: no VM description (`NO_DESCRIPTION`), no vCPU (`NO_CPU_STATE`),
 *   another architecture (`NOT_X86`); `invalid` if the section is not what its description says
 */
export const x86Registers = (summary: StreamSummary, machine: string): X86Registers[] => {
  const devices = new DescribedDevices(summary);
  if (!devices.isDescribed) {
    throw noDescription();
  }
  const halted = new Map<number, boolean>();
  for (const { section, fields } of cpuSections(devices, 'cpu_common')) {
    halted.set(section.instance, fields.integer('halted') !== 0n);
  }
  const registers: X86Registers[] = [];
  for (const { section, fields } of cpuSections(devices, 'cpu')) {
    refuseOthers(fields, machine);
    if (section.version < OLDEST_VERSION) {
      throw new RamferryError(
        'failed',
        'CPU_VERSION',
        `Section "cpu" has version ${section.version}, and registers are known from version ${OLDEST_VERSION} on, at byte ${section.offset}.`,
        { offset: section.offset, value: section.version },
      );
    }
    registers.push(registersOf(fields, section.instance, halted.get(section.instance) ?? false));
  }
  if (registers.length === 0) {
    throw new RamferryError(
      'failed',
      'NO_CPU_STATE',
      `The file has no "cpu" section: no vCPU of machine "${machine}" is in it.`,
    );
  }
  return registers;
};

/** The sections of all vCPUs, in the order of their indexes: one at a time, since together they may take much memory. */
function* cpuSections(devices: DescribedDevices, name: keyof typeof FIELD_LIMIT): Generator<DeviceFields> {
  const sections = devices.named(name).sort((a, b) => a.instance - b.instance);
  let total = 0;
  for (const section of sections) {
    const decoded = devices.fields(section);
    total += decoded.count;
    if (sections.length > CPU_LIMIT || total > FIELD_LIMIT[name]) {
      throw new RamferryError(
        'invalid',
        'TOO_MANY_CPUS',
        `The file has ${sections.length} sections "${name}" with ${total} fields or more, which is more than any guest has, at byte ${section.offset}.`,
        { offset: section.offset, value: sections.length },
      );
    }
    yield decoded;
  }
}

/** Fields that tell an architecture, whose `cpu` sections are called so too. */
const architectures: readonly [field: string, architecture: string][] = [
  ['env.xregs', 'Arm'],
  ['env.psw.mask', 's390x'],
  ['env.CSR_CRMD', 'LoongArch'],
  ['env.mstatus', 'RISC-V'],
  ['env.nip', 'PowerPC'],
  ['env.dregs', 'm68k'],
  ['env.nwindows', 'SPARC'],
  ['env.active_tc', 'MIPS'],
];

const refuseOthers = (fields: FieldGroup, machine: string): void => {
  if (fields.count('env.eip') > 0 && fields.count('env.segs') === SEGMENT_REGISTERS.length) {
    return;
  }
  const architecture = architectures.find(([field]) => fields.count(field) > 0)?.[1] ?? 'of another architecture';
  throw new RamferryError(
    'failed',
    'NOT_X86',
    `Machine "${machine}" is ${architecture}: registers are read of x86 guests only.`,
    { value: machine },
  );
};

const registersOf = (fields: FieldGroup, cpu: number, halted: boolean): X86Registers => {
  const registerBits = fields.fields.get('env.eip')![0]!.bytes === 4 ? 32 : 64;
  const general = Object.fromEntries(
    GENERAL_REGISTERS.map((name, index) => [
      name,
      index >= 8 && registerBits === 32 ? 0n : fields.integer('env.regs', index),
    ]),
  ) as Record<GeneralRegister, bigint>;
  const segments = Object.fromEntries(
    SEGMENT_REGISTERS.map((name, index) => [name, segmentOf(fields.group('env.segs', index))]),
  ) as Record<SegmentRegister, Segment>;
  // A 32-bit QEMU has no such registers, and keeps EFER in a subsection.
  const only64 = (name: string): bigint => (registerBits === 64 ? fields.integer(name) : 0n);
  const efer32 = fields.subsections.get('cpu/efer32')?.group.value('env.efer');
  const control = {
    cr0: fields.integer('env.cr[0]'),
    cr4: fields.integer('env.cr[4]'),
    efer: typeof efer32 === 'bigint' ? efer32 : only64('env.efer'),
    rflags: fields.integer('env.eflags'),
  };
  const hidden = Number(fields.integer('env.hflags'));
  return {
    cpu,
    halted,
    registerBits,
    general,
    rip: fields.integer('env.eip'),
    segments,
    ldt: segmentOf(fields.group('env.ldt')),
    tr: segmentOf(fields.group('env.tr')),
    gdt: tableOf(fields.group('env.gdt')),
    idt: tableOf(fields.group('env.idt')),
    ...control,
    cr2: fields.integer('env.cr[2]'),
    cr3: fields.integer('env.cr[3]'),
    dr: Array.from({ length: 8 }, (_, index) => fields.integer('env.dr', index)),
    star: only64('env.star'),
    lstar: only64('env.lstar'),
    cstar: only64('env.cstar'),
    fmask: only64('env.fmask'),
    kernelGsBase: only64('env.kernelgsbase'),
    ...modeOf(control, segments.cs),
    cpl: hidden & HIDDEN_CPL,
    smm: (hidden & HIDDEN_SMM) !== 0,
    nested: (hidden & HIDDEN_GUEST) !== 0,
    pagingLevels: pagingLevelsOf(control),
  };
};

const segmentOf = (group: FieldGroup): Segment => ({
  selector: Number(group.integer('selector')),
  base: group.integer('base'),
  limit: Number(group.integer('limit')),
  flags: Number(group.integer('flags')),
});

const tableOf = (group: FieldGroup): DescriptorTable => ({
  base: group.integer('base'),
  limit: Number(group.integer('limit')),
});

type Control = Pick<X86Registers, 'cr0' | 'cr4' | 'efer' | 'rflags'>;

const modeOf = ({ cr0, efer, rflags }: Control, cs: Segment): Pick<X86Registers, 'mode' | 'codeBits'> => {
  if ((cr0 & CR0_PROTECTED) === 0n) {
    return { mode: 'real', codeBits: 16 };
  }
  if ((efer & EFER_LONG_ACTIVE) !== 0n && (cs.flags & SEGMENT_LONG) !== 0) {
    return { mode: 'long', codeBits: 64 };
  }
  if ((efer & EFER_LONG_ACTIVE) === 0n && (rflags & RFLAGS_VIRTUAL_8086) !== 0n) {
    return { mode: 'virtual-8086', codeBits: 16 };
  }
  const codeBits = (cs.flags & SEGMENT_BIG) === 0 ? 16 : 32;
  return { mode: (efer & EFER_LONG_ACTIVE) === 0n ? 'protected' : 'compatibility', codeBits };
};

const pagingLevelsOf = ({ cr0, cr4, efer }: Control): X86Registers['pagingLevels'] => {
  if ((cr0 & CR0_PAGING) === 0n) {
    return 0;
  }
  if ((efer & EFER_LONG_ACTIVE) !== 0n) {
    return (cr4 & CR4_FIVE_LEVELS) === 0n ? 4 : 5;
  }
  return (cr4 & CR4_PAE) === 0n ? 2 : 3;
};
