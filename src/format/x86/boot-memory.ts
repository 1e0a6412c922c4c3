// Where the RAM lies that a PC has from the start (hw/i386 in QEMU):
//
//   offset in RAM   0 ┌──────────┐   0   guest-physical
//                     │ low      │
//                 low ├──────────┤ low
//                     │          │  ╲   the hole, with the PCI devices and the firmware
//                     │ high     │   4 GiB, or 1 TiB for some guests with AMD processors
//                     └──────────┘
//
// RAM is one block, or one for each NUMA node, in the order of the nodes.

import { RamferryError } from '../../memory/errors.js';
import type { StreamSummary } from '../stream/stream-handler.js';
import type { AffinityRange } from './acpi-memory.js';
import { CMOS_HIGH_MODULUS, CMOS_UNIT, type CmosMemory, cmosMemory } from './cmos-memory.js';

const GIB = 2 ** 30;
const FOUR_GIB = 4 * GIB;

/**
 * QEMU 7.1 and later put high memory at 1 TiB, for AMD processors, if anything could lie behind this: room for PCI devices counts
 * as well, by default 32 GiB.
 */
const AMD_HOLE = 0xfd_0000_0000;
const PCI_ROOM = 64 * GIB;

/** The machine types whose RAM lies as drawn above. */
const PC = /^(pc|q35|isapc|microvm)$|^pc-/;

/** A microvm may have no clock, but its RAM is always split here. */
const MICROVM = { machine: 'microvm', low: 3 * GIB } as const;

/** RAM bytes [offset, offset + bytes) that a block of their own may be. */
export interface BootNode {
  readonly node: number;
  readonly offset: number;
  readonly bytes: number;
}

/** RAM bytes [offset, offset + bytes) lie at `address`. */
export interface BootRange {
  readonly address: number;
  readonly offset: number;
  readonly bytes: number;
}

/** The RAM that a PC has from the start. */
export class BootMemory {
  readonly low: number;
  readonly high: number;
  readonly highAddress: number;
  /** The parts that can be blocks of their own, ascending; only one where the guest has no NUMA nodes. */
  readonly nodes: readonly BootNode[];

  constructor(low: number, high: number, highAddress = FOUR_GIB, nodes: readonly BootNode[] = []) {
    this.low = low;
    this.high = high;
    this.highAddress = highAddress;
    this.nodes = nodes.length > 0 ? nodes : [{ node: 0, offset: 0, bytes: low + high }];
  }

  get bytes(): number {
    return this.low + this.high;
  }

  /** Where the RAM bytes [offset, offset + bytes) lie: one range, or one on either side of the hole. */
  rangesOf(offset: number, bytes: number): BootRange[] {
    const below = Math.max(0, Math.min(bytes, this.low - offset));
    return [
      { address: offset, offset, bytes: below },
      { address: this.highAddress + Math.max(0, offset - this.low), offset: offset + below, bytes: bytes - below },
    ].filter((range) => range.bytes > 0);
  }

  /** Where in RAM an address lies that is in it. */
  offsetOf(address: number): number {
    return address < this.low ? address : this.low + address - this.highAddress;
  }
}

/** @throws RamferryError `usage` for a machine whose RAM may lie otherwise */
export const checkMachine = (machine: string): void => {
  if (!PC.test(machine)) {
    throw new RamferryError(
      'usage',
      'MACHINE_ADDRESSES',
      `Where the RAM of machine type "${machine}" lies is not known: guest-physical addresses are known for pc, q35, isapc and microvm.`,
      { value: machine, hint: 'convert --to raw needs no addresses' },
    );
  }
};

/** What the file says of the RAM that was there from the start. */
export interface BootEvidence {
  readonly machine: string;
  readonly summary: StreamSummary;
  /** Entries of the SRAT, where there is one. */
  readonly affinity: readonly AffinityRange[] | undefined;
  /** Length of the block that RAM is, where it can be told without knowing anything else. */
  readonly wholeBytes: number | undefined;
}

/**
 * The guest's RAM, from what the file says.
 * @throws RamferryError `usage` if that is not enough, or if it contradicts itself
 */
export const bootMemory = ({ machine, summary, affinity, wholeBytes }: BootEvidence): BootMemory => {
  const cmos = cmosMemory(summary);
  const listed = affinity?.filter(({ kind }) => kind === 'boot') ?? [];
  if (listed.length > 0) {
    const memory = listedMemory(listed);
    return checked(memory, cmos);
  }
  if (cmos === undefined && (machine !== MICROVM.machine || wholeBytes === undefined)) {
    throw cannotTell('The file has no section "mc146818rtc", which says how much RAM lies below 4 GiB.');
  }
  const bytes = wholeBytes ?? cmos!.low + cmos!.high;
  const lowest = cmos === undefined ? MICROVM.low : cmos.high === 0 && bytes < FOUR_GIB ? bytes : cmos.low;
  const low = Math.min(lowest, bytes);
  const memory = checked(new BootMemory(low, bytes - low), cmos);
  if (memory.high > 0 && FOUR_GIB + memory.high > AMD_HOLE - PCI_ROOM) {
    throw cannotTell(`Where ${memory.bytes} bytes of RAM lie depends on the processor, which the file does not say.`);
  }
  return memory;
};

/** The RAM that an SRAT lists: what is in between its entries below 4 GiB, as the room for video memory, is RAM as well. */
const listedMemory = (listed: readonly AffinityRange[]): BootMemory => {
  const sorted = [...listed].sort((a, b) => a.address - b.address);
  const end = ({ address, bytes }: AffinityRange): number => address + bytes;
  const below = sorted.filter(({ address }) => address < FOUR_GIB);
  const above = sorted.filter(({ address }) => address >= FOUR_GIB);
  const low = below.length === 0 ? 0 : end(below.at(-1)!);
  const highAddress = above[0]?.address ?? FOUR_GIB;
  const high = above.length === 0 ? 0 : end(above.at(-1)!) - highAddress;
  if (low > FOUR_GIB || high !== above.reduce((sum, { bytes }) => sum + bytes, 0)) {
    throw cannotTell('The ACPI tables list RAM with gaps above 4 GiB, or across it.');
  }
  const memory = new BootMemory(low, high, highAddress);
  const starts = new Map<number, number>();
  for (const { node, address } of sorted) {
    starts.set(node, starts.get(node) ?? (starts.size === 0 ? 0 : memory.offsetOf(address)));
  }
  const nodes = [...starts].map(([node, offset], index, all) => ({
    node,
    offset,
    bytes: (all[index + 1]?.[1] ?? memory.bytes) - offset,
  }));
  return new BootMemory(low, high, highAddress, nodes);
};

/** A guest can write to its CMOS: what is in there has to agree with what else is known. */
const checked = (memory: BootMemory, cmos: CmosMemory | undefined): BootMemory => {
  const { low, high } = memory;
  const rounded = (bytes: number): number => bytes - (bytes % CMOS_UNIT);
  if (cmos !== undefined && (rounded(low) !== cmos.low || rounded(high) % CMOS_HIGH_MODULUS !== cmos.high)) {
    throw cannotTell(
      `The CMOS memory says that ${cmos.low} bytes of RAM lie below 4 GiB and ${cmos.high} above, but the file has ${low} and ${high}.`,
    );
  }
  return memory;
};

/** The error about a guest whose RAM could lie in more than one way. */
export const cannotTell = (statement: string): RamferryError =>
  new RamferryError('usage', 'RAM_ADDRESSES', `${statement} Where RAM lies cannot be told.`, {
    hint: 'convert --to raw needs no addresses',
  });
