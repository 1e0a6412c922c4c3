// Places in a guest's memory as people type them, and the bytes there: guest-physical addresses, virtual ones, offsets in RAM blocks.

import { refuseElsewhere } from '../format/elsewhere.js';
import { type BlockPlaces, physicalMap, type Snapshot } from '../format/index.js';
import { hex } from '../format/invalid.js';
import { PhysicalMemory } from '../format/physical-memory.js';
import { PageTables } from '../format/x86/page-tables.js';
import { x86Registers } from '../format/x86/registers.js';
import { RamferryError } from '../memory/errors.js';
import { pageIndex } from '../memory/units.js';

/** Where bytes are read. Each kind of place reads in its own way. */
export interface GuestPlace {
  /** Of its first byte, as a hexdump counts: an address, or an offset in a block. */
  readonly start: bigint;
  /** More about where that is, for people and programs. */
  readonly where: {
    readonly address?: number;
    readonly virtual?: string;
    readonly block?: string;
    readonly offset?: number;
  };
  /**
   * Fills `target` with the bytes from `from` on, counted from the place.
   * @throws RamferryError if some of it is not in the file
   */
  read(target: Uint8Array, from: number): void;
}

export interface PlaceOptions {
  readonly at: BlockPlaces;
  /** The vCPU whose page tables translate addresses; undefined for guest-physical addresses. */
  readonly cpu: number | undefined;
}

/** Finds places in one file. What addresses need is looked up when the first address comes. */
export class GuestPlaces {
  readonly #snapshot: Snapshot;
  readonly #options: PlaceOptions;
  #memory: PhysicalMemory | undefined;
  #tables: PageTables | undefined;

  constructor(snapshot: Snapshot, options: PlaceOptions) {
    this.#snapshot = snapshot;
    this.#options = options;
  }

  /**
   * @param text `0x1000`, `4096`, or `pc.ram+0x1000`
   * @throws RamferryError `usage`, `INVALID_ADDRESS`, and others if the file does not tell where addresses are
   */
  find(text: string): GuestPlace {
    const inBlock = /^(.+)\+(0x[0-9a-f]+|\d+)$/i.exec(text);
    if (inBlock !== null) {
      return this.#inBlock(inBlock[1]!, numberOf(inBlock[2]!, text));
    }
    if (!/^(0x[0-9a-f]{1,16}|\d{1,19})$/i.test(text)) {
      throw notAnAddress(text);
    }
    const { cpu } = this.#options;
    return cpu === undefined ? this.#physical(numberOf(text, text)) : this.#virtual(BigInt(text), cpu);
  }

  get #physicalMemory(): PhysicalMemory {
    this.#memory ??= new PhysicalMemory(this.#snapshot, physicalMap(this.#snapshot, this.#options.at));
    return this.#memory;
  }

  #physical(address: number): GuestPlace {
    const memory = this.#physicalMemory;
    return {
      start: BigInt(address),
      where: { address, ...this.#blockAt(address) },
      read: (target, from) => memory.read(address + from, target),
    };
  }

  #blockAt(address: number): { readonly block?: string; readonly offset?: number } {
    const range = this.#physicalMemory.map.at(address);
    return range === undefined
      ? {}
      : { block: this.#snapshot.setup.blocks[range.block]!.name, offset: range.offset + address - range.address };
  }

  #virtual(virtual: bigint, cpu: number): GuestPlace {
    const memory = this.#physicalMemory;
    this.#tables ??= new PageTables(memory, this.#registersOf(cpu));
    const tables = this.#tables;
    const address = tables.translate(virtual).physical;
    return {
      start: virtual,
      where: { virtual: hex(virtual), address, ...this.#blockAt(address) },
      read: (target, from) => {
        // Pages that follow each other here need not do so in physical memory.
        for (let done = 0; done < target.length; ) {
          const { physical, pageBytes } = tables.translate(BigInt.asUintN(64, virtual + BigInt(from + done)));
          const bytes = Math.min(target.length - done, pageBytes - (physical % pageBytes));
          memory.read(physical, target.subarray(done, done + bytes));
          done += bytes;
        }
      },
    };
  }

  #registersOf(cpu: number): ReturnType<typeof x86Registers>[number] {
    const { summary, configuration } = this.#snapshot;
    const all = x86Registers(summary, configuration.machine);
    const found = all.find((each) => each.cpu === cpu);
    if (found === undefined) {
      throw new RamferryError('usage', 'NO_SUCH_CPU', `The guest has no vCPU ${cpu}.`, {
        value: cpu,
        hint: `it has ${all.map((each) => each.cpu).join(', ')}`,
      });
    }
    return found;
  }

  #inBlock(name: string, offset: number): GuestPlace {
    const { blocks, targetPageSize: pageSize } = this.#snapshot.setup;
    const block = blocks.find((each) => each.name === name);
    if (block === undefined) {
      throw new RamferryError('usage', 'NO_SUCH_BLOCK', `The file has no RAM block "${name}".`, {
        value: name,
        hint: `its RAM blocks are: ${blocks.map((each) => each.name).join(', ')}`,
      });
    }
    return {
      start: BigInt(offset),
      where: { block: name, offset },
      read: (target, from) => {
        const start = offset + from;
        const end = start + target.length;
        if (end > block.usedLength) {
          const last = hex(end - 1);
          const statement = `RAM block "${name}" has ${block.usedLength} bytes, and none at ${last}.`;
          throw new RamferryError('failed', 'NO_MEMORY', statement, { value: last });
        }
        refuseElsewhere(this.#snapshot, [block.index]);
        const first = Math.floor(start / pageSize);
        const whole = new Uint8Array((Math.ceil(end / pageSize) - first) * pageSize);
        this.#snapshot.readPages(block.index, pageIndex(first), whole.length / pageSize, whole);
        target.set(whole.subarray(start - first * pageSize, end - first * pageSize));
      },
    };
  }
}

const notAnAddress = (text: string): RamferryError =>
  new RamferryError('usage', 'INVALID_ADDRESS', `"${text}" is no address in the guest.`, {
    value: text,
    hint: 'an address is like 0x1000 or 4096, or pc.ram+0x1000 in a RAM block; one that is virtual needs --virtual',
  });

/** A number that is exact. */
const numberOf = (digits: string, text: string): number => {
  const value = Number(digits);
  if (!Number.isSafeInteger(value)) {
    throw notAnAddress(text);
  }
  return value;
};
