// `ramferry registers FILE`: the registers of each vCPU of a saved guest.

import {
  type DescriptorTable,
  SEGMENT_REGISTERS,
  type Segment,
  type X86Registers,
  x86Registers,
} from '../format/x86/registers.js';
import { RamferryError } from '../memory/errors.js';
import { shellCommand } from '../memory/shell-command.js';
import { type FileOptions, INDEX_HELP, pageSizeOption, readWholeMemoryFile } from './read-memory-file.js';
import { controls, cpuText, listed } from './registers-text.js';
import { terminalColors } from './terminal.js';
import type { Verb } from './verb.js';

interface RegistersOptions extends FileOptions {
  readonly cpu?: string;
}

export const registers: Verb<RegistersOptions> = {
  configure: (command) =>
    command
      .option('--cpu <n>', 'only that vCPU')
      .addOption(pageSizeOption())
      .addHelpText('after', `\nOf x86 guests. What was saved of any vCPU, device FILE cpu shows.${INDEX_HELP}`),
  examples: [
    ['guest.mig', 'where each vCPU stood, in which mode, with all registers'],
    ['guest.mig --cpu 1 --json', 'one of them, for a program'],
  ],

  async run({ operands, options, signal, progress }) {
    const [file] = operands as [string];
    const wanted = options.cpu === undefined ? undefined : cpuNumber(options.cpu);
    const opened = await readWholeMemoryFile(file, { signal, progress }, options);
    try {
      const { summary, configuration } = opened.snapshot;
      const all = x86Registers(summary, configuration.machine);
      const shown = wanted === undefined ? all : all.filter(({ cpu }) => cpu === wanted);
      if (shown.length === 0) {
        throw new RamferryError('usage', 'NO_SUCH_CPU', `The guest has no vCPU ${wanted}.`, {
          value: wanted!,
          hint: `it has ${all.map(({ cpu }) => cpu).join(', ')}`,
        });
      }
      const colors = terminalColors(process.stdout);
      return {
        document: { file, machine: configuration.machine, cpus: shown.map(cpuDocument) },
        text: shown.map((each) => cpuText(each, colors)).join('\n'),
      };
    } catch (error) {
      throw error instanceof RamferryError && error.kind !== 'usage' ? withAdvice(error, file) : error;
    } finally {
      opened.close();
    }
  },
};

const withAdvice = (error: RamferryError, file: string): RamferryError =>
  error.with({
    file,
    ...(error.code === 'NOT_X86' && {
      hint: `What was saved of each vCPU, whatever the architecture: ${shellCommand`ramferry device ${file} cpu`}`,
    }),
  });

const cpuNumber = (text: string): number => {
  if (!/^\d{1,9}$/.test(text)) {
    throw new RamferryError('usage', 'INVALID_VALUE', `--cpu is the number of a vCPU, not "${text}".`, { value: text });
  }
  return Number(text);
};

const specific = ({ star, lstar, cstar, fmask, kernelGsBase, dr }: X86Registers): [name: string, value: bigint][] => [
  ['star', star],
  ['lstar', lstar],
  ['cstar', cstar],
  ['fmask', fmask],
  ['kernelGsBase', kernelGsBase],
  ...dr.map((value, index): [string, bigint] => [`dr${index}`, value]),
];

/** Numbers of 64 bits are text: JSON's would lose digits. */
const hexText = (value: bigint | number, digits: number): string => `0x${value.toString(16).padStart(digits, '0')}`;

const cpuDocument = (registers: X86Registers): object => {
  const { cpu, halted, mode, codeBits, cpl, smm, nested, pagingLevels, registerBits, segments, ldt, tr, gdt, idt } =
    registers;
  const digits = registerBits / 4;
  const segment = ({ selector, base, limit, flags }: Segment): object => ({
    selector: hexText(selector, 4),
    base: hexText(base, digits),
    limit: hexText(limit, 8),
    flags: hexText(flags, 8),
  });
  const table = ({ base, limit }: DescriptorTable): object => ({
    base: hexText(base, digits),
    limit: hexText(limit, 4),
  });
  const values = [...listed(registers), ...controls(registers), ...specific(registers)];
  return {
    ...{ cpu, halted, mode, codeBits, cpl, smm, nested, pagingLevels },
    registers: Object.fromEntries(values.map(([name, value]) => [name, hexText(value, digits)])),
    segments: Object.fromEntries([
      ...SEGMENT_REGISTERS.map((name) => [name, segment(segments[name])]),
      ['ldt', segment(ldt)],
      ['tr', segment(tr)],
    ]),
    gdt: table(gdt),
    idt: table(idt),
  };
};
