// What people read of a vCPU's registers.

import { type DescriptorTable, SEGMENT_REGISTERS, type Segment, type X86Registers } from '../format/x86/registers.js';
import { formatTable } from './format.js';
import type { Colors } from './terminal.js';

/** Registers in the order in which they are read; those of the second half exist only in 64-bit guests. */
export const listed = (registers: X86Registers): [name: string, value: bigint][] => {
  const { general, rip, rflags, registerBits } = registers;
  const order = ['rax', 'rbx', 'rcx', 'rdx', 'rsi', 'rdi', 'rbp', 'rsp'] as const;
  const more = ['r8', 'r9', 'r10', 'r11', 'r12', 'r13', 'r14', 'r15'] as const;
  const names = registerBits === 64 ? [...order, ...more] : order;
  return [...names.map((name): [string, bigint] => [name, general[name]]), ['rip', rip], ['rflags', rflags]];
};

/** Control registers, and EFER. */
export const controls = ({ cr0, cr2, cr3, cr4, efer }: X86Registers): [name: string, value: bigint][] => [
  ['cr0', cr0],
  ['cr2', cr2],
  ['cr3', cr3],
  ['cr4', cr4],
  ['efer', efer],
];

/** Bits that have names, highest first. */
type BitNames = readonly (readonly [bit: number, name: string])[];

const RFLAGS_BITS: BitNames = [
  ...([
    [21, 'ID'],
    [18, 'AC'],
    [17, 'VM'],
    [16, 'RF'],
    [14, 'NT'],
    [11, 'OF'],
    [10, 'DF'],
    [9, 'IF'],
  ] as const),
  ...([
    [8, 'TF'],
    [7, 'SF'],
    [6, 'ZF'],
    [4, 'AF'],
    [2, 'PF'],
    [0, 'CF'],
  ] as const),
];
const CR0_BITS: BitNames = [
  ...([
    [31, 'PG'],
    [30, 'CD'],
    [29, 'NW'],
    [18, 'AM'],
    [16, 'WP'],
    [5, 'NE'],
    [4, 'ET'],
    [3, 'TS'],
  ] as const),
  ...([
    [2, 'EM'],
    [1, 'MP'],
    [0, 'PE'],
  ] as const),
];
const CR4_BITS: BitNames = [
  ...([
    [24, 'PKS'],
    [23, 'CET'],
    [22, 'PKE'],
    [21, 'SMAP'],
    [20, 'SMEP'],
    [18, 'OSXSAVE'],
    [17, 'PCIDE'],
  ] as const),
  ...([
    [16, 'FSGSBASE'],
    [14, 'SMXE'],
    [13, 'VMXE'],
    [12, 'LA57'],
    [11, 'UMIP'],
    [10, 'OSXMMEXCPT'],
  ] as const),
  ...([
    [9, 'OSFXSR'],
    [8, 'PCE'],
    [7, 'PGE'],
    [6, 'MCE'],
    [5, 'PAE'],
    [4, 'PSE'],
    [3, 'DE'],
    [2, 'TSD'],
  ] as const),
  ...([
    [1, 'PVI'],
    [0, 'VME'],
  ] as const),
];
const EFER_BITS: BitNames = [
  ...([
    [14, 'FFXSR'],
    [13, 'LMSLE'],
    [12, 'SVME'],
    [11, 'NXE'],
    [10, 'LMA'],
    [8, 'LME'],
    [0, 'SCE'],
  ] as const),
];

const bitNames: Readonly<Record<string, BitNames>> = {
  rflags: RFLAGS_BITS,
  cr0: CR0_BITS,
  cr4: CR4_BITS,
  efer: EFER_BITS,
};

const bitsText = (value: bigint, names: BitNames | undefined): string =>
  (names ?? [])
    .filter(([bit]) => (value >> BigInt(bit)) % 2n === 1n)
    .map(([, name]) => name)
    .join(' ');

/** One vCPU: its mode, and tables of its registers. */
export const cpuText = (registers: X86Registers, colors: Colors): string => {
  const { cpu, halted, segments, ldt, tr, gdt, idt, registerBits } = registers;
  const digits = registerBits / 4;
  const hex = (value: bigint): string => value.toString(16).padStart(digits, '0');
  const pairs = listed(registers).filter(([name]) => name !== 'rflags');
  const grid: string[][] = [];
  for (let index = 0; index < pairs.length; index += 3) {
    grid.push(pairs.slice(index, index + 3).flatMap(([name, value]) => [`  ${name}`, hex(value)]));
  }
  const flagged = [...listed(registers).slice(-1), ...controls(registers)];
  const segment = (name: string, { selector, base, limit, flags }: Segment): string[] => [
    `  ${name}`,
    selector.toString(16).padStart(4, '0'),
    hex(base),
    limit.toString(16).padStart(8, '0'),
    flags.toString(16).padStart(8, '0'),
    segmentText(flags),
  ];
  const table = (name: string, { base, limit }: DescriptorTable): string[] => [
    ...[`  ${name}`, '', hex(base), limit.toString(16).padStart(8, '0'), '', ''],
  ];
  return [
    `${colors.bold(`vCPU ${cpu}`)}: ${modeText(registers)}${halted ? ', halted' : ''}\n\n`,
    formatTable(
      grid.map((row) => [...row, '', '', '', ''].slice(0, 6)),
      ['left', 'left', 'left', 'left', 'left', 'left'],
    ),
    '\n',
    formatTable(
      flagged.map(([name, value]) => [`  ${name}`, hex(value), bitsText(value, bitNames[name])]),
      ['left', 'left', 'left'],
    ),
    '\n',
    formatTable(
      [
        ['  segment', 'sel', 'base', 'limit', 'flags', ''],
        ...SEGMENT_REGISTERS.map((name) => segment(name, segments[name])),
        segment('ldt', ldt),
        segment('tr', tr),
        table('gdt', gdt),
        table('idt', idt),
      ],
      ['left', 'left', 'left', 'left', 'left', 'left'],
    ),
  ].join('');
};

const modeText = ({ mode, codeBits, cpl, smm, nested, pagingLevels }: X86Registers): string =>
  [
    mode === 'long' ? 'long mode' : `${mode} mode, ${codeBits}-bit code`,
    pagingLevels === 0 ? 'paging off' : `${pagingLevels}-level paging`,
    `CPL ${cpl}`,
    ...(smm ? ['system management mode'] : []),
    ...(nested ? ['in a guest of its own'] : []),
  ].join(', ');

/** What a descriptor is, by the bits that the processor keeps of it. */
const segmentText = (flags: number): string => {
  const has = (bit: number): boolean => (flags & (1 << bit)) !== 0;
  if (!has(15)) {
    return 'not present';
  }
  const level = `DPL ${(flags >> 13) & 3}`;
  if (!has(12)) {
    return `${level}, system type ${(flags >> 8) & 15}`;
  }
  const width = has(21) ? 64 : has(22) ? 32 : 16;
  return has(11) ? `${level}, code, ${width}-bit` : `${level}, data${has(9) ? '' : ', read-only'}`;
};
