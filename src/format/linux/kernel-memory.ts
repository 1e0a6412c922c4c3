// Memory at the virtual addresses of a guest's Linux kernel. A vCPU that runs a program may have page tables without the kernel, so
// the kernel's own are used: VMCOREINFO says where they are, and where its image is, through which they are found.

import { latin1 } from '../bytes.js';
import type { PhysicalMemory } from '../physical-memory.js';
import { PageTables } from '../x86/page-tables.js';
import { PAGE_BYTES, type PagingRegisters } from '../x86/table-format.js';
import type { Vmcoreinfo } from './vmcoreinfo.js';

/** Where x86-64 Linux maps its image, wherever that is in memory; KASLR moves it inside of this range. */
export const IMAGE_START = 0xffff_ffff_8000_0000n;
const IMAGE_BYTES = 1024n * 1024n * 1024n;

const CR4_PAE = 1n << 5n;

/** Longest name in `struct new_utsname`, with its NUL. */
const UTS_BYTES = 65;

/** What `uname -a` prints. */
export interface UtsName {
  readonly nodename: string;
  readonly release: string;
  readonly version: string;
  readonly machine: string;
}

/** The memory of one kernel. */
export class KernelMemory {
  readonly info: Vmcoreinfo;
  /** What is to be added to an address in the image, counted from IMAGE_START, to have the guest-physical one; may be negative. */
  readonly physicalBase: number;
  readonly pagingLevels: 4 | 5;
  readonly #memory: PhysicalMemory;
  readonly #tables: PageTables | undefined;

  constructor(memory: PhysicalMemory, info: Vmcoreinfo, physicalBase: number) {
    this.info = info;
    this.physicalBase = physicalBase;
    this.pagingLevels = info.number('pgtable_l5_enabled') === 1n ? 5 : 4;
    this.#memory = memory;
    const root = info.symbol('swapper_pg_dir') ?? info.symbol('init_top_pgt') ?? info.symbol('init_level4_pgt');
    const rootAddress = root === undefined ? undefined : this.imageAddress(root);
    if (rootAddress !== undefined) {
      this.#tables = new PageTables(memory, {
        cpu: 0,
        mode: 'long',
        cr3: BigInt(rootAddress),
        cr4: CR4_PAE,
        pagingLevels: this.pagingLevels,
      });
    }
  }

  /** The kernel's own page tables, which have all of it whatever the vCPUs run; undefined if VMCOREINFO does not say where they are. */
  get tables(): PageTables | undefined {
    return this.#tables;
  }

  /** Guest-physical address of a virtual one in the image; undefined outside of it. */
  imageAddress(virtual: bigint): number | undefined {
    const within = virtual - IMAGE_START;
    const physical = Number(within) + this.physicalBase;
    return within >= 0n && within < IMAGE_BYTES && physical >= 0 ? physical : undefined;
  }

  /** Guest-physical address of a virtual one; undefined where the kernel has nothing. */
  address(virtual: bigint): number | undefined {
    return this.imageAddress(virtual) ?? this.#tables?.tryTranslate(virtual)?.physical;
  }

  /** Fills `target` with the memory from a virtual address on; false if not all of it is in the file. */
  tryRead(virtual: bigint, target: Uint8Array): boolean {
    let at = virtual;
    for (let done = 0; done < target.length; ) {
      const bytes = Math.min(target.length - done, PAGE_BYTES - Number(at & 0xfffn));
      const address = this.address(at);
      if (address === undefined || !this.#memory.tryRead(address, target.subarray(done, done + bytes))) {
        return false;
      }
      done += bytes;
      at += BigInt(bytes);
    }
    return true;
  }

  /** A view of so many bytes; undefined if not all of them are in the file. */
  tryView(virtual: bigint, bytes: number): DataView | undefined {
    const view = new DataView(new ArrayBuffer(bytes));
    return this.tryRead(virtual, new Uint8Array(view.buffer)) ? view : undefined;
  }

  /** A pointer, or another integer of its size. */
  tryWord(virtual: bigint): bigint | undefined {
    const view = this.tryView(virtual, this.info.wordBytes);
    return view === undefined ? undefined : wordAt(view, 0, this.info.wordBytes);
  }

  tryUint32(virtual: bigint): number | undefined {
    return this.tryView(virtual, 4)?.getUint32(0, true);
  }

  /** A text up to its NUL; undefined if there is none within `limit` bytes. */
  tryText(virtual: bigint, limit: number): string | undefined {
    const bytes = new Uint8Array(Math.min(limit, 256));
    let text = '';
    for (let done = 0; done < limit; done += bytes.length) {
      if (!this.tryRead(virtual + BigInt(done), bytes)) {
        return undefined;
      }
      const end = bytes.indexOf(0);
      text += latin1(bytes, 0, end === -1 ? bytes.length : end);
      if (end !== -1) {
        return text;
      }
    }
    return undefined;
  }

  /** The kernel's name for itself; undefined unless it is the kernel that VMCOREINFO is of. */
  uname(): UtsName | undefined {
    const namespace = this.info.symbol('init_uts_ns');
    const offset = this.info.offset('uts_namespace.name') ?? this.info.wordBytes;
    const view = namespace === undefined ? undefined : this.tryView(namespace + BigInt(offset), 6 * UTS_BYTES);
    if (view === undefined) {
      return undefined;
    }
    const bytes = new Uint8Array(view.buffer);
    const [, nodename, release, version, machine] = [0, 1, 2, 3, 4].map((index) => {
      const end = bytes.indexOf(0, index * UTS_BYTES);
      return latin1(bytes, index * UTS_BYTES, Math.min(end === -1 ? bytes.length : end, (index + 1) * UTS_BYTES));
    }) as [string, string, string, string, string];
    return release === this.info.release ? { nodename, release, version, machine } : undefined;
  }
}

/** A little-endian integer of a pointer's size. */
export const wordAt = (view: DataView, at: number, wordBytes: 4 | 8): bigint =>
  wordBytes === 8 ? view.getBigUint64(at, true) : BigInt(view.getUint32(at, true));

/** What is needed of a vCPU to find the kernel through it. */
export type KernelVcpu = PagingRegisters & { readonly lstar: bigint };

/**
 * The kernel that a VMCOREINFO describes.
 * @param vcpus help to find kernels before Linux 4.10, which do not say where in memory they are
 * @returns undefined if it is not in memory: what was found is left of another kernel, or belongs to a program
 */
export const openKernel = (
  memory: PhysicalMemory,
  info: Vmcoreinfo,
  vcpus: readonly KernelVcpu[],
): KernelMemory | undefined => {
  if (info.wordBytes !== 8) {
    return undefined;
  }
  const given = info.number('phys_base');
  const bases = given === undefined ? vcpus.map((vcpu) => baseThrough(memory, info, vcpu)) : [Number(given)];
  return bases
    .filter((base) => base !== undefined)
    .map((base) => new KernelMemory(memory, info, base))
    .find((kernel) => kernel.uname() !== undefined);
};

/** Where the image is for a vCPU. */
const baseThrough = (memory: PhysicalMemory, info: Vmcoreinfo, vcpu: KernelVcpu): number | undefined => {
  const text = info.symbol('_stext');
  if (text === undefined || vcpu.pagingLevels < 4) {
    return undefined;
  }
  const translation = new PageTables(memory, vcpu).tryTranslate(text);
  return translation && translation.physical - Number(text - IMAGE_START);
};

/** Largest distance of the entry of system calls from the beginning of the kernel's text. */
const TEXT_BYTES = 128n * 1024n * 1024n;

/** Whether the vCPUs run this kernel, as opposed to one that was there before. */
export const isRunning = ({ info }: KernelMemory, vcpus: readonly KernelVcpu[]): boolean => {
  const text = info.symbol('_stext');
  return text !== undefined && vcpus.some(({ lstar }) => lstar >= text && lstar < text + TEXT_BYTES);
};
