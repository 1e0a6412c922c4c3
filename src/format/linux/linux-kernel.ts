// Which Linux kernel a saved guest runs, and what it says about itself.

import { RamferryError } from '../../memory/errors.js';
import type { PhysicalMemory } from '../physical-memory.js';
import type { Snapshot } from '../snapshot.js';
import { findSymbols } from './kallsyms.js';
import { isRunning, type KernelMemory, type KernelVcpu, openKernel, type UtsName } from './kernel-memory.js';
import { bufferRecords, hasLogRecords, textRecords } from './log-buffer.js';
import { type LogRecord, logDamaged, MOST_LINES, MOST_RECORDS } from './log-record.js';
import { ringRecords } from './log-ring.js';
import type { FoundText, FoundVmcoreinfo } from './memory-scan.js';
import { parseVmcoreinfo } from './vmcoreinfo.js';
import { deviceVmcoreinfo } from './vmcoreinfo-device.js';

/** A kernel whose memory can be read at its own addresses. */
export interface OpenedKernel {
  readonly memory: KernelMemory;
  readonly uname: UtsName;
  /** Whether its VMCOREINFO is the one that the guest gave to QEMU's device, or was found in memory. */
  readonly foundBy: 'device' | 'search';
  /** Symbols that VMCOREINFO does not have. */
  readonly symbols: ReadonlyMap<string, bigint>;
}

/** Symbols out of the kernel's own table. */
const WANTED = new Set(['linux_banner', 'saved_command_line', 'sysctl_bootid']);

const COMMAND_LINE_LIMIT = 64 * 1024;
const BANNER_LIMIT = 1024;
const BOOT_ID_BYTES = 16;

const opened = (memory: KernelMemory, foundBy: OpenedKernel['foundBy']): OpenedKernel => ({
  memory,
  uname: memory.uname()!,
  foundBy,
  symbols: findSymbols(memory, WANTED),
});

/** The memory of the kernel that has written this VMCOREINFO; undefined if it is none, or its kernel is not there. */
export const kernelOfText = (
  text: Uint8Array,
  memory: PhysicalMemory,
  vcpus: readonly KernelVcpu[],
): KernelMemory | undefined => {
  const info = parseVmcoreinfo(text);
  return info && openKernel(memory, info, vcpus);
};

/** The memory of the kernel of one of these, in preference the one that runs: memory may hold what is left of others. */
export const kernelAmong = (
  found: readonly FoundVmcoreinfo[],
  memory: PhysicalMemory,
  vcpus: readonly KernelVcpu[],
): KernelMemory | undefined => {
  const kernels = found.flatMap(({ info }) => openKernel(memory, info, vcpus) ?? []);
  return kernels.find((each) => isRunning(each, vcpus)) ?? kernels[0];
};

/** The kernel whose VMCOREINFO QEMU's device knows; undefined if there is none. */
export const kernelOfDevice = (
  { summary }: Snapshot,
  memory: PhysicalMemory,
  vcpus: readonly KernelVcpu[],
): OpenedKernel | undefined => {
  const text = deviceVmcoreinfo(summary, memory);
  const kernel = text && kernelOfText(text, memory, vcpus);
  return kernel && opened(kernel, 'device');
};

/** The kernel of one of these, as `kernelAmong` chooses it. */
export const kernelOfScan = (
  found: readonly FoundVmcoreinfo[],
  memory: PhysicalMemory,
  vcpus: readonly KernelVcpu[],
): OpenedKernel | undefined => {
  const kernel = kernelAmong(found, memory, vcpus);
  return kernel && opened(kernel, 'search');
};

/** Where the kernel is, and how virtual addresses of its image become guest-physical ones. */
export interface KernelPlace {
  /** By how far KASLR moved its virtual addresses; undefined if the kernel does not say. */
  readonly kaslrOffset: bigint | undefined;
  /** `phys_base`: guest-physical = virtual - 0xffffffff80000000 + this. */
  readonly physicalBase: number;
  /** Where its text begins. */
  readonly textVirtual: bigint | undefined;
  readonly textAddress: number | undefined;
  /** Guest-physical address of its page tables. */
  readonly pageTables: number | undefined;
  readonly pagingLevels: 4 | 5;
}

export const placeOf = ({ memory }: OpenedKernel): KernelPlace => {
  const { info } = memory;
  const text = info.symbol('_stext');
  const tables = info.symbol('swapper_pg_dir') ?? info.symbol('init_top_pgt') ?? info.symbol('init_level4_pgt');
  return {
    kaslrOffset: info.kernelOffset,
    physicalBase: memory.physicalBase,
    textVirtual: text,
    textAddress: text === undefined ? undefined : memory.imageAddress(text),
    pageTables: tables === undefined ? undefined : memory.imageAddress(tables),
    pagingLevels: memory.pagingLevels,
  };
};

/** The banner at its own symbol. */
export const bannerOf = ({ memory, symbols }: OpenedKernel): string | undefined => {
  const address = symbols.get('linux_banner');
  const text = address === undefined ? undefined : memory.tryText(address, BANNER_LIMIT);
  return text?.startsWith('Linux version ') ? text.trimEnd() : undefined;
};

/** The banner of this release among those that were found. */
export const bannerAmong = ({ uname }: OpenedKernel, found: readonly FoundText[]): string | undefined =>
  found.find(({ text }) => text.startsWith(`Linux version ${uname.release} (`) && text.endsWith(uname.version))?.text;

/** The boot line as the kernel keeps it for /proc/cmdline. */
export const commandLineOf = ({ memory, symbols }: OpenedKernel): string | undefined => {
  const variable = symbols.get('saved_command_line');
  const address = variable === undefined ? undefined : memory.tryWord(variable);
  return address === undefined ? undefined : memory.tryText(address, COMMAND_LINE_LIMIT)?.trimEnd();
};

/** The boot line as the log has it, without what does not fit into one of its lines. */
export const commandLineIn = (log: readonly LogRecord[]): string | undefined => {
  const line = log.map(({ text }) => /^(?:Kernel c|C)ommand line: (.*)$/s.exec(text)).find((match) => match !== null);
  return line?.[1]?.trimEnd();
};

/** The boot id; undefined as well if no program has asked for it yet. */
export const bootIdOf = ({ memory, symbols }: OpenedKernel): string | undefined => {
  const address = symbols.get('sysctl_bootid');
  const view = address === undefined ? undefined : memory.tryView(address, BOOT_ID_BYTES);
  if (view === undefined || view.getBigUint64(0) === 0n) {
    return undefined;
  }
  const digits = [0, 8].map((at) => view.getBigUint64(at).toString(16).padStart(16, '0')).join('');
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
};

/** How the kernel keeps its log: in the ring of Linux 5.10, in the records of 3.5, or as text. */
export type LogFormat = 'ring' | 'records' | 'text';

export interface KernelLog {
  readonly format: LogFormat;
  readonly records: readonly LogRecord[];
  /** Why there are no more records than these. */
  readonly damage: RamferryError | undefined;
}

const formatOf = (memory: KernelMemory): LogFormat | undefined => {
  const { info } = memory;
  if (info.symbol('prb') !== undefined) {
    return 'ring';
  }
  return info.symbol('log_buf') === undefined ? undefined : hasLogRecords(memory) ? 'records' : 'text';
};

const readers: Readonly<Record<LogFormat, (memory: KernelMemory) => Generator<LogRecord>>> = {
  ring: ringRecords,
  records: bufferRecords,
  text: textRecords,
};

const lineBreaks = (text: string): number => {
  let count = 0;
  for (let at = text.indexOf('\n'); at !== -1; at = text.indexOf('\n', at + 1)) {
    count += 1;
  }
  return count;
};

/** The kernel's log; undefined if the kernel does not tell where it is. Of a damaged one, what is in front of the damage. */
export const logOf = ({ memory }: OpenedKernel): KernelLog | undefined => {
  const format = formatOf(memory);
  if (format === undefined) {
    return undefined;
  }
  const records: LogRecord[] = [];
  let lines = 0;
  let damage: RamferryError | undefined;
  try {
    for (const record of readers[format](memory)) {
      if (records.length === MOST_RECORDS) {
        throw logDamaged(`it has more than ${MOST_RECORDS} records`);
      }
      lines += lineBreaks(record.text) + 1;
      if (lines > MOST_LINES) {
        throw logDamaged(`it has more than ${MOST_LINES} lines`);
      }
      records.push(record);
    }
  } catch (error) {
    if (!(error instanceof RamferryError && error.code === 'KERNEL_LOG')) {
      throw error;
    }
    damage = error;
  }
  return { format, records, damage };
};
