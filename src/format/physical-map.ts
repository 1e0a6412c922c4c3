// At which guest-physical address each RAM block of a saved PC lies. The file lists blocks by name and length only; the addresses
// follow from what else is in it:
//
//   RAM from the start   CMOS of the saved clock, SRAT among the ACPI tables     x86/boot-memory.ts, x86/boot-blocks.ts
//   virtio-mem           its early section
//   NVDIMMs              SRAT
//   DIMMs                nothing; only a file with x-ignore-shared has their addresses
//   firmware             its name
//
// Where that leaves a choice the block has no address here, and says why: a wrong one would look like a right one.

import { RamferryError } from '../memory/errors.js';
import type { PageIndex } from '../memory/units.js';
import { BlockLayout, isCandidate, isShadowed, wrongPlace } from './block-layout.js';
import { hex } from './invalid.js';
import type { PhysicalRange, UnplacedBlock } from './physical-range.js';
import type { Snapshot } from './snapshot.js';
import type { ReadRamBlock } from './stream/stream-handler.js';
import { type AffinityRange, affinityRanges } from './x86/acpi-memory.js';
import { type BlockPlaces, defaultBlock } from './x86/boot-blocks.js';
import { bootMemory, checkMachine } from './x86/boot-memory.js';
import { CMOS_UNIT, cmosMemory } from './x86/cmos-memory.js';

export type { PhysicalRange, UnplacedBlock } from './physical-range.js';
export type { BlockPlaces } from './x86/boot-blocks.js';

/** QEMU keeps 128 KiB for the tables, more for very large machines. */
const MOST_TABLE_BYTES = 4 * 2 ** 20;
const TABLES = '/rom@etc/acpi/tables';

/**
 * The guest-physical address space of a saved PC.
 *
 * In the first MiB, RAM and firmware lie at the same addresses, and the chipset says which of the two is read. Here it is RAM, as
 * it is from early in the boot on; the firmware's own addresses are in `rangesOf`.
 */
export class PhysicalMap {
  /** Ascending, without overlaps. */
  readonly ranges: readonly PhysicalRange[];
  readonly unplaced: readonly UnplacedBlock[];
  readonly #blocks: readonly ReadRamBlock[];
  readonly #byBlock: ReadonlyMap<number, readonly PhysicalRange[]>;

  /** Use `physicalMap`. */
  constructor(
    blocks: readonly ReadRamBlock[],
    byBlock: ReadonlyMap<number, readonly PhysicalRange[]>,
    unplaced: readonly UnplacedBlock[],
  ) {
    this.#blocks = blocks;
    this.#byBlock = byBlock;
    this.unplaced = unplaced;
    this.ranges = [...byBlock.values()]
      .flat()
      .filter((range) => !isShadowed(range, blocks[range.block]!))
      .sort((a, b) => a.address - b.address);
  }

  /** The range that an address is in; undefined where there is no memory, or none that is known. */
  at(address: number): PhysicalRange | undefined {
    let low = 0;
    let high = this.ranges.length;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      const range = this.ranges[middle]!;
      if (address < range.address) {
        high = middle;
      } else if (address >= range.address + range.bytes) {
        low = middle + 1;
      } else {
        return range;
      }
    }
    return undefined;
  }

  /**
   * Every range of a block, in the order of its bytes; firmware may have several for the same bytes.
   * @throws RamferryError `usage`, `BLOCK_ADDRESS`, if its address is not known
   */
  rangesOf(block: number): readonly PhysicalRange[] {
    const ranges = this.#byBlock.get(block);
    if (ranges === undefined) {
      throw this.#unknown(this.unplaced.filter((each) => each.block === block));
    }
    return ranges;
  }

  /**
   * For whoever shows all memory of the guest, and must not leave some of it out.
   * @throws RamferryError `usage`, `BLOCK_ADDRESS`, if the guest has memory whose address is not known
   */
  requireMemory(): void {
    const missing = this.unplaced.filter(({ kind }) => kind === 'memory');
    if (missing.length > 0) {
      throw this.#unknown(missing);
    }
  }

  #unknown(missing: readonly UnplacedBlock[]): RamferryError {
    const [{ block, reason }] = missing as [UnplacedBlock];
    const hints = missing.flatMap(({ hint }) => hint ?? []);
    return new RamferryError('usage', 'BLOCK_ADDRESS', reason, {
      value: this.#blocks[block]!.name,
      ...(hints.length > 0 && { hint: hints.join(' ') }),
    });
  }
}

/**
 * The addresses of an opened file's RAM blocks.
 * @param places addresses that somebody knows from elsewhere, by block
 * @throws RamferryError `usage`: `MACHINE_ADDRESSES` for machines that are no PC, `RAM_ADDRESSES` if the file does not say where
 *   RAM lies or contradicts itself, `BLOCK_PLACE` if `places` does not fit
 */
export const physicalMap = (snapshot: Snapshot, places: BlockPlaces = new Map()): PhysicalMap => {
  const { blocks } = snapshot.setup;
  checkMachine(snapshot.configuration.machine);
  checkPlaces(blocks, places);
  const affinity = readAffinity(snapshot);
  const candidates = blocks.filter(isCandidate);
  const memory = bootMemory({
    machine: snapshot.configuration.machine,
    summary: snapshot.summary,
    affinity,
    wholeBytes: wholeBytes(snapshot, candidates, places),
  });
  const layout = new BlockLayout(snapshot, memory, affinity ?? []);
  layout.placeBoot(candidates, places);
  layout.placeGiven(candidates, places);
  layout.placeListed(candidates);
  for (const block of blocks) {
    layout.placeOther(block);
  }
  layout.leaveOut(candidates);
  layout.refuseOverlaps();
  return new PhysicalMap(blocks, layout.byBlock, layout.unplaced);
};

const readAffinity = (snapshot: Snapshot): AffinityRange[] | undefined => {
  const { blocks, targetPageSize } = snapshot.setup;
  const block = blocks.find(({ name }) => name === TABLES);
  if (block === undefined || block.usedLength > MOST_TABLE_BYTES) {
    return undefined;
  }
  const tables = new Uint8Array(block.usedLength);
  snapshot.readPages(block.index, 0 as PageIndex, block.usedLength / targetPageSize, tables);
  return affinityRanges(tables);
};

/** Length of the block that is all RAM, for guests without an SRAT: the only one of the size that CMOS says. */
const wholeBytes = (
  { summary }: Snapshot,
  candidates: readonly ReadRamBlock[],
  places: BlockPlaces,
): number | undefined => {
  const whole = candidates.find(({ name }) => places.get(name) === 0) ?? defaultBlock(candidates);
  if (whole !== undefined) {
    return whole.usedLength;
  }
  const cmos = cmosMemory(summary);
  const fitting = candidates.filter(
    ({ usedLength }) => cmos !== undefined && Math.abs(usedLength - cmos.low - cmos.high) < 2 * CMOS_UNIT,
  );
  return fitting.length > 0 ? fitting[0]!.usedLength : undefined;
};

const checkPlaces = (blocks: readonly ReadRamBlock[], places: BlockPlaces): void => {
  for (const [name, address] of places) {
    const block = blocks.find((each) => each.name === name);
    if (block === undefined) {
      throw wrongPlace(name, `The file has no RAM block "${name}" to be at ${hex(address)}.`);
    }
    if (!isCandidate(block)) {
      throw wrongPlace(name, `RAM block "${name}" is no memory that could be placed at ${hex(address)}.`);
    }
  }
};
