// One virtual address space out of those of all vCPUs, as a core file can have only one.

import { RamferryError } from '../../memory/errors.js';
import type { PhysicalMemory } from '../physical-memory.js';
import { PageTables, type VirtualMapping, WalkedTables, type WalkLimits } from './page-tables.js';
import type { X86Registers } from './registers.js';

/** Most pieces of memory that the tables of all vCPUs may lead to. */
const MAPPING_LIMIT = 2 ** 20;

/** What is mapped, and by whom. */
export interface VirtualMemory {
  /** By virtual address, without overlaps. */
  readonly mappings: readonly VirtualMapping[];
  /** Numbers of the vCPUs whose page tables were read, and of those that had none to read. */
  readonly cpus: readonly number[];
  readonly skippedCpus: readonly number[];
}

/**
 * What the vCPUs have mapped. The kernel's half is that of all of them, since a kernel may show different parts of itself to them;
 * the other half is that of the first vCPU alone, for each may run a program of its own at the same addresses.
 * @param kernel page tables of the kernel itself, which has mapped what no vCPU may have, while all run programs
 * @param limits of all walks together; by default a million tables and a million pieces
 * @throws RamferryError `failed`, `NOT_PAGED`, if no vCPU has page tables of its own, and as `PageTables.mappings`
 */
export const virtualMemory = (
  memory: PhysicalMemory,
  registers: readonly X86Registers[],
  kernel?: PageTables,
  limits: WalkLimits = {},
): VirtualMemory => {
  const paged = registers.filter((cpu) => cpu.pagingLevels > 0 && isItself(cpu));
  if (paged.length === 0) {
    throw noTables(registers);
  }
  const [first, ...others] = paged.map((cpu) => new PageTables(memory, cpu)) as [PageTables, ...PageTables[]];
  const options = { mappings: MAPPING_LIMIT, ...limits, walked: new WalkedTables() };
  const all = [[...first.mappings(options)]];
  const seen = new Set([first.root]);
  for (const tables of kernel === undefined ? others : [...others, kernel]) {
    if (!seen.has(tables.root)) {
      seen.add(tables.root);
      all.push([...tables.mappings({ ...options, isUpperHalf: true })]);
    }
  }
  const mappings = together(all);
  const cpus = paged.map(({ cpu }) => cpu);
  return { mappings, cpus, skippedCpus: registers.map(({ cpu }) => cpu).filter((cpu) => !cpus.includes(cpu)) };
};

/** Whether the page tables of a vCPU are those of the guest's kernel or programs, as opposed to its firmware's or its guests'. */
const isItself = ({ smm, nested }: X86Registers): boolean => !smm && !nested;

const noTables = (registers: readonly X86Registers[]): RamferryError => {
  const reasons = registers.map(({ cpu, mode, smm, nested }) => {
    const why = smm ? 'in system management mode' : nested ? 'a guest of its own' : `without paging, in ${mode} mode`;
    return `vCPU ${cpu} ran ${why}`;
  });
  const shown = reasons.slice(0, 4).join(', ') + (reasons.length > 4 ? ', and so on' : '');
  return new RamferryError(
    'failed',
    'NOT_PAGED',
    registers.length === 0
      ? 'The file has no registers, and so no page tables.'
      : `No vCPU has page tables of the guest: ${shown}.`,
  );
};

/** All lists in one; where several have something it is that of the first. By halves: there are thousands of them, or a million pieces. */
const together = (lists: readonly VirtualMapping[][]): readonly VirtualMapping[] => {
  let left = lists.filter((list, index) => index === 0 || list.length > 0);
  while (left.length > 1) {
    const pairs: VirtualMapping[][] = [];
    for (let index = 0; index < left.length; index += 2) {
      const second = left[index + 1];
      pairs.push(second === undefined ? left[index]! : filled(left[index]!, second));
    }
    left = pairs;
  }
  return left[0]!;
};

/** Both lists in one; where both have something it is that of the first. */
const filled = (mappings: readonly VirtualMapping[], more: readonly VirtualMapping[]): VirtualMapping[] => {
  const result: VirtualMapping[] = [];
  let index = 0;
  const endOf = ({ virtual, bytes }: VirtualMapping): bigint => virtual + BigInt(bytes);
  for (const each of more) {
    let from = each.virtual;
    const end = endOf(each);
    const keep = (to: bigint): void => {
      if (to > from) {
        result.push({ virtual: from, physical: each.physical + Number(from - each.virtual), bytes: Number(to - from) });
      }
    };
    while (index < mappings.length && mappings[index]!.virtual < end) {
      const there = mappings[index]!;
      if (endOf(there) > from) {
        keep(there.virtual);
        from = endOf(there);
      }
      if (endOf(there) > end) {
        break;
      }
      result.push(there);
      index += 1;
    }
    keep(end);
  }
  for (; index < mappings.length; index += 1) {
    result.push(mappings[index]!);
  }
  return result;
};
