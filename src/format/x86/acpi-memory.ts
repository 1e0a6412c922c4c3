// What QEMU tells a guest's firmware about its memory, out of the block in which it keeps the ACPI tables. That block is no part
// of the guest's address space, so the guest cannot have changed it, and it is there before the firmware has run.

import { latin1 } from '../bytes.js';

/** A table begins with its signature and its length. */
const HEAD_BYTES = 8;
const SIGNATURE = /^[A-Z0-9_]{4}$/;

/** Where the entries of an SRAT begin. */
const SRAT_HEAD_BYTES = 48;
const MEMORY_AFFINITY = { type: 1, bytes: 40 } as const;

/** QEMU has 128 nodes and 256 slots for DIMMs at the most; what lists more is not QEMU's. */
const MOST_RANGES = 1024;

/** Flags of a memory entry. */
const ENABLED = 1;
const HOT_PLUGGABLE = 2;
const NON_VOLATILE = 4;

/** Guest-physical memory that an SRAT lists. */
export interface AffinityRange {
  /** The NUMA node. */
  readonly node: number;
  readonly address: number;
  readonly bytes: number;
  /** `boot`: RAM from the start; `pluggable`: where DIMMs are plugged in, whether there are some or not; `persistent`: an NVDIMM. */
  readonly kind: 'boot' | 'pluggable' | 'persistent';
}

/**
 * The memory ranges of the SRAT, in its order. QEMU makes one for guests with NUMA nodes or with room for DIMMs.
 * @param tables the bytes of QEMU's block `/rom@etc/acpi/tables`
 * @returns undefined if there is no SRAT, or none that can be read
 */
export const affinityRanges = (tables: Uint8Array): AffinityRange[] | undefined => {
  const srat = findTable(tables, 'SRAT');
  if (srat === undefined) {
    return undefined;
  }
  const view = new DataView(srat.buffer, srat.byteOffset, srat.length);
  const ranges: AffinityRange[] = [];
  for (let at = SRAT_HEAD_BYTES; at + 2 <= srat.length; ) {
    const bytes = srat[at + 1];
    if (bytes < 2 || at + bytes > srat.length) {
      return undefined;
    }
    if (srat[at] === MEMORY_AFFINITY.type && bytes >= MEMORY_AFFINITY.bytes) {
      const flags = view.getUint32(at + 28, true);
      const range = { address: exact(view, at + 8), bytes: exact(view, at + 16) };
      if (Number.isNaN(range.address + range.bytes)) {
        return undefined;
      }
      if ((flags & ENABLED) !== 0 && range.bytes > 0) {
        if (ranges.length === MOST_RANGES) {
          return undefined;
        }
        ranges.push({ node: view.getUint32(at + 2, true), ...range, kind: kindOf(flags) });
      }
    }
    at += bytes;
  }
  return ranges;
};

const kindOf = (flags: number): AffinityRange['kind'] =>
  (flags & NON_VOLATILE) !== 0 ? 'persistent' : (flags & HOT_PLUGGABLE) !== 0 ? 'pluggable' : 'boot';

/** No processor has more address bits than 52, so everything here can be added without loss; NaN for more. */
const exact = (view: DataView, at: number): number => {
  const value = view.getBigUint64(at, true);
  return value < 2n ** 52n ? Number(value) : Number.NaN;
};

/** The tables follow each other from the block's start, without gaps. */
const findTable = (tables: Uint8Array, signature: string): Uint8Array | undefined => {
  const view = new DataView(tables.buffer, tables.byteOffset, tables.length);
  for (let at = 0; at + HEAD_BYTES <= tables.length; ) {
    const name = latin1(tables, at, at + 4);
    const bytes = view.getUint32(at + 4, true);
    if (!SIGNATURE.test(name) || bytes < HEAD_BYTES || bytes > tables.length - at) {
      return undefined;
    }
    if (name === signature) {
      return tables.subarray(at, at + bytes);
    }
    at += bytes;
  }
  return undefined;
};
