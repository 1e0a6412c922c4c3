// Gives the blocks of a saved PC their addresses, one kind after the other.

import { RamferryError } from '../memory/errors.js';
import { hex } from './invalid.js';
import type { PhysicalRange, UnplacedBlock } from './physical-range.js';
import type { Snapshot } from './snapshot.js';
import type { ReadRamBlock } from './stream/stream-handler.js';
import { type MemoryDevice, memoryDevices } from './virtio/unplugged.js';
import type { AffinityRange } from './x86/acpi-memory.js';
import { type AssignedNodes, addressOf, assignNodes, type BlockPlaces, isDefaultName } from './x86/boot-blocks.js';
import { type BootMemory, cannotTell } from './x86/boot-memory.js';

const MIB = 2 ** 20;
const FOUR_GIB = 2 ** 32;

/** The BIOS is also where the first PCs had theirs, the end of it. */
const BIOS_ALIAS_BYTES = 128 * 1024;
const VIDEO_ROM_ADDRESS = 0xc0000;

/** How many blocks a reason names. */
const NAMED = 4;

/** What QEMU aligns a DIMM to. */
const DIMM_ALIGNMENT = 2 * MIB;

const FIRMWARE = /^(pc\.bios|pc\.rom|isa-bios|system\.flash\d+)$/;

/** Whether it is firmware where RAM lies as well. */
export const isShadowed = ({ address }: PhysicalRange, { name }: Pick<ReadRamBlock, 'name'>): boolean =>
  FIRMWARE.test(name) && address < MIB;

/** Whether a block may be RAM that was given to the guest by a memory backend: devices name theirs with their path. */
export const isCandidate = ({ name }: Pick<ReadRamBlock, 'name'>): boolean =>
  (!name.includes('/') || /^\/objects\/[^/]+$/.test(name)) &&
  !FIRMWARE.test(name) &&
  (!/\.v?(rom|ram)$/.test(name) || isDefaultName(name));

const flashNumber = (name: string): number | undefined => {
  const match = /^system\.flash(\d+)$/.exec(name);
  return match === null ? undefined : Number(match[1]);
};

/** The first lies right below 4 GiB, each other one below the one before. */
const flashEnds = (blocks: readonly ReadRamBlock[]): ReadonlyMap<string, number> => {
  const flashes = blocks
    .filter(({ name }) => flashNumber(name) !== undefined)
    .sort((a, b) => flashNumber(a.name)! - flashNumber(b.name)!);
  const ends = new Map<string, number>();
  let end = FOUR_GIB;
  for (const { name, usedLength } of flashes) {
    ends.set(name, end);
    end -= usedLength;
  }
  return ends;
};

/** The error about an address that somebody gave. */
export const wrongPlace = (name: string, statement: string): RamferryError =>
  new RamferryError('usage', 'BLOCK_PLACE', statement, { value: name });

/** The map while it is made. */
export class BlockLayout {
  readonly byBlock = new Map<number, PhysicalRange[]>();
  readonly unplaced: UnplacedBlock[] = [];
  readonly #snapshot: Snapshot;
  readonly #memory: BootMemory;
  readonly #affinity: readonly AffinityRange[];
  /** Blocks that may be nodes. */
  #open: ReadonlySet<ReadRamBlock> = new Set();
  #devices: readonly MemoryDevice[] | undefined;
  /** Where each flash ends, by the block's name. */
  #flashEnds: ReadonlyMap<string, number> | undefined;

  constructor(snapshot: Snapshot, memory: BootMemory, affinity: readonly AffinityRange[]) {
    this.#snapshot = snapshot;
    this.#memory = memory;
    this.#affinity = affinity;
  }

  /** RAM that was there from the start. */
  placeBoot(candidates: readonly ReadRamBlock[], places: BlockPlaces): void {
    const { assigned, open } = assignNodes(this.#memory, candidates, places);
    for (const [{ index }, { offset, bytes }] of assigned) {
      const ranges = this.#memory.rangesOf(offset, bytes);
      this.byBlock.set(
        index,
        ranges.map((range) => ({ ...range, block: index, offset: range.offset - offset })),
      );
    }
    for (const { node, candidates: fitting } of open) {
      if (fitting.length === 0) {
        throw cannotTell(`The guest has ${node.bytes} bytes of RAM that no RAM block is.`);
      }
    }
    this.#open = new Set(open.flatMap((each) => each.candidates));
    this.#leaveOutNodes(open);
  }

  #leaveOutNodes(open: AssignedNodes['open']): void {
    const hint = (index: number): string => `--at ${this.#name(index)}`;
    for (const candidates of new Set(open.map((each) => each.candidates))) {
      const shown = candidates.slice(0, NAMED).map(({ name }) => `"${name}"`);
      const names = [...shown, ...(candidates.length > NAMED ? ['…'] : [])].join(', ');
      const nodes = open.filter((each) => each.candidates === candidates).map(({ node }) => node);
      candidates.forEach(({ index }, at) => {
        const node = nodes[at];
        this.unplaced.push({
          block: index,
          kind: 'memory',
          reason: `The file does not say which of the RAM blocks ${names}, of the same size, is which part of the guest's memory.`,
          ...(node !== undefined && { hint: `${hint(index)}=${hex(addressOf(this.#memory, node))}` }),
        });
      });
    }
  }

  /** What somebody has said. */
  placeGiven(candidates: readonly ReadRamBlock[], places: BlockPlaces): void {
    for (const { index, name, usedLength } of candidates) {
      const address = places.get(name);
      const first = this.byBlock.get(index)?.[0];
      if (address === undefined || first?.address === address) {
        continue;
      }
      if (first !== undefined) {
        throw wrongPlace(name, `RAM block "${name}" is at ${hex(first.address)}, not at ${hex(address)}.`);
      }
      this.#place(index, address, usedLength);
    }
  }

  /** Memory that was plugged in, where something in the file lists it. */
  placeListed(candidates: readonly ReadRamBlock[]): void {
    const left = candidates.filter((block) => !this.byBlock.has(block.index) && !this.#open.has(block));
    const pluggable = this.#pluggable();
    for (const block of left) {
      const sameSize = left.filter(({ usedLength }) => usedLength === block.usedLength);
      const persistent = this.#affinity.filter(
        ({ kind, bytes }) => kind === 'persistent' && bytes === block.usedLength,
      );
      if (block.address !== undefined && pluggable !== undefined) {
        // With x-ignore-shared a block's address is in the file; that of a DIMM counts from where DIMMs begin.
        this.#place(block.index, pluggable + block.address, block.usedLength);
      } else if (sameSize.length === 1 && persistent.length === 1) {
        this.#place(block.index, persistent[0]!.address, block.usedLength);
      }
    }
  }

  /** Firmware, the memory of devices, and what never has an address. */
  placeOther({ index, name, usedLength }: ReadRamBlock): void {
    const flash = flashNumber(name);
    if (name === 'pc.bios') {
      this.#place(index, FOUR_GIB - usedLength, usedLength);
      const alias = Math.min(usedLength, BIOS_ALIAS_BYTES);
      this.byBlock.get(index)!.push({ address: MIB - alias, block: index, offset: usedLength - alias, bytes: alias });
    } else if (name === 'isa-bios') {
      this.#place(index, MIB - usedLength, usedLength);
    } else if (name === 'pc.rom') {
      this.#place(index, VIDEO_ROM_ADDRESS, usedLength);
    } else if (flash !== undefined) {
      this.#flashEnds ??= flashEnds(this.#snapshot.setup.blocks);
      this.#place(index, this.#flashEnds.get(name)! - usedLength, usedLength);
    } else if (name.startsWith('/rom@')) {
      const reason = `RAM block "${name}" has no guest-physical address: the firmware reads it through a device.`;
      this.unplaced.push({ block: index, kind: 'blob', reason });
    } else if (!isCandidate({ name })) {
      this.#placeDevice(index, name, usedLength);
    }
  }

  #placeDevice(index: number, name: string, usedLength: number): void {
    this.#devices ??= memoryDevices(this.#snapshot.summary);
    const device = this.#devices.find((each) => name.startsWith(`${each.name}/`) && each.regionSize === usedLength);
    if (device !== undefined) {
      this.#place(index, device.address, usedLength);
      return;
    }
    const reason = `RAM block "${name}" is memory of a device: at which address, if at all, is up to the guest.`;
    this.unplaced.push({ block: index, kind: 'device', reason });
  }

  /** What is left was plugged in. */
  leaveOut(candidates: readonly ReadRamBlock[]): void {
    const pluggable = this.#pluggable();
    let next = pluggable;
    for (const block of candidates) {
      if (this.byBlock.has(block.index) || this.#open.has(block)) {
        continue;
      }
      const { index, name, usedLength } = block;
      const hint = `--at ${name}=${next === undefined ? 'ADDRESS' : hex(next)}`;
      const reason = `RAM block "${name}" was plugged in, as a DIMM or the like, and the file does not say at which address.`;
      this.unplaced.push({ block: index, kind: 'memory', reason, hint });
      next = next === undefined ? undefined : Math.ceil((next + usedLength) / DIMM_ALIGNMENT) * DIMM_ALIGNMENT;
    }
  }

  /** @throws RamferryError `usage` if two blocks are at the same address */
  refuseOverlaps(): void {
    const { blocks } = this.#snapshot.setup;
    const ranges = [...this.byBlock.values()]
      .flat()
      .filter((range) => !isShadowed(range, blocks[range.block]!))
      .sort((a, b) => a.address - b.address);
    ranges.forEach((range, at) => {
      const before = ranges[at - 1];
      if (before !== undefined && before.address + before.bytes > range.address) {
        const [one, other] = [this.#name(before.block), this.#name(range.block)];
        const statement = `RAM block "${other}" would lie over "${one}", at ${hex(range.address)}.`;
        throw wrongPlace(other, statement);
      }
    });
  }

  /** Where DIMMs begin. */
  #pluggable(): number | undefined {
    const addresses = this.#affinity.filter(({ kind }) => kind === 'pluggable').map(({ address }) => address);
    return addresses.length === 0 ? undefined : Math.min(...addresses);
  }

  #place(block: number, address: number, bytes: number): void {
    this.byBlock.set(block, [{ address, block, offset: 0, bytes }]);
  }

  #name(block: number): string {
    return this.#snapshot.setup.blocks[block]!.name;
  }
}
