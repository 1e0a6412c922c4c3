// The write protector for guests whose stores cannot be asked: the kernel holds a store to a protected page up and reports
// it through a userfaultfd, which this thread reads between two batches (Linux, through the optional dependency koffi).
//
//   arm      userfaultfd · register extents · populate, before Linux 6.4 only
//   protect  UFFDIO_WRITEPROTECT over what is to be saved: the pause grows with the guest's page table entries
//   release  UFFDIO_WRITEPROTECT back, which wakes who waits; not before all of a huge page is saved
//   stop     unregister, close
//
// To lift the protection of a part of a huge page would split it, and a guest whose huge pages are split is 13 % slower
// afterwards (measured: random pages of 1 GiB). So a store anywhere in a huge page has all of it saved, which holds the
// thread up for a millisecond or two and, since the other 511 pages then never fault, makes the whole shorter.
//
// Kernel interface: ioctl_userfaultfd(2). The engine's own thread never stores to guest RAM, or it would wait for itself;
// its lists and results lie in the segments' control tails, which are not registered.

import { readFileSync } from 'node:fs';
import process from 'node:process';
import { getSystemErrorName } from 'node:util';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { RamferryError } from '../memory/errors.js';
import type { Extent, RamBlock } from '../memory/ram-block.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import { addressOf, type SystemFunction, systemErrno, systemFunction } from '../memory/system-library-node.js';
import { protectionOf } from './write-protect.js';
import type { PagesToSave, UrgentPages, WriteProtector } from './write-protector.js';

const SYS_USERFAULTFD: Readonly<Record<string, number>> = { x64: 323, arm64: 282 };
const O_CLOEXEC_NONBLOCK = 0o2000000 | 0o4000;
/** Faults of system calls are not reported. What an ordinary user may have (vm.unprivileged_userfaultfd = 0). */
const UFFD_USER_MODE_ONLY = 1;

const UFFDIO_API = 0xc018aa3f;
const UFFDIO_REGISTER = 0xc020aa00;
const UFFDIO_UNREGISTER = 0x8010aa01;
const UFFDIO_WRITEPROTECT = 0xc018aa06;

const UFFD_API = 0xaa;
const FEATURE_PAGEFAULT_FLAG_WP = 1 << 0;
/** Pages without an entry in the page tables are protected as well (Linux 6.4). */
const FEATURE_WP_UNPOPULATED = 1 << 13;
const REGISTER_MODE_WP = 2;
const WRITEPROTECT_MODE_WP = 1;

const EVENT_BYTES = 32;
const EVENT_PAGEFAULT = 0x12;
const EVENTS_AT_ONCE = 64;

/** Bytes whose protection is lifted together: those of a huge page, where the system has them. */
const unitBytes = (): number => {
  try {
    const folder = '/sys/kernel/mm/transparent_hugepage/';
    const isNever = readFileSync(`${folder}enabled`, 'utf8').includes('[never]');
    return isNever ? GUEST_PAGE_SIZE : Number(readFileSync(`${folder}hpage_pmd_size`, 'utf8'));
  } catch {
    return GUEST_PAGE_SIZE;
  }
};

interface Calls {
  readonly syscall: SystemFunction;
  readonly ioctl: SystemFunction;
  readonly read: SystemFunction;
  readonly close: SystemFunction;
}

let calls: Calls | undefined;

const systemCalls = (): Calls | undefined => {
  const syscall = systemFunction('long syscall(long number, long argument)');
  const ioctl = systemFunction('int ioctl(int fd, unsigned long request, void *argument)');
  const read = systemFunction('long read(int fd, void *buffer, size_t length)');
  const close = systemFunction('int close(int fd)');
  calls ??= syscall && ioctl && read && close && { syscall, ioctl, read, close };
  return calls;
};

const systemErrorName = (): string => getSystemErrorName(-systemErrno());

const unsupported = (why: string, hint?: string): RamferryError =>
  new RamferryError('failed', 'USERFAULTFD_UNSUPPORTED', `Pages cannot be write-protected by userfaultfd: ${why}.`, {
    ...(hint !== undefined && { hint }),
  });

/** Opens a userfaultfd that reports stores to protected pages. Throws USERFAULTFD_UNSUPPORTED, which says why. */
const openUserfaultfd = (): { readonly descriptor: number; readonly protectsUnpopulated: boolean } => {
  const system = systemCalls();
  const number = SYS_USERFAULTFD[process.arch];
  if (system === undefined || number === undefined) {
    throw unsupported('the C library cannot be called', 'on Linux, install the optional dependency koffi');
  }
  const open = (features: number): { readonly descriptor: number; readonly features: bigint } => {
    let descriptor = system.syscall(number, O_CLOEXEC_NONBLOCK);
    if (descriptor < 0) {
      descriptor = system.syscall(number, O_CLOEXEC_NONBLOCK | UFFD_USER_MODE_ONLY);
    }
    if (descriptor < 0) {
      throw unsupported(
        `the kernel refuses it (${systemErrorName()})`,
        'a container may forbid the system call userfaultfd',
      );
    }
    const api = BigUint64Array.of(BigInt(UFFD_API), BigInt(features), 0n);
    if (system.ioctl(descriptor, UFFDIO_API, new Uint8Array(api.buffer)) < 0) {
      const error = systemErrorName();
      system.close(descriptor);
      throw unsupported(`the kernel does not report protected pages (${error})`, 'Linux 5.7 or later does');
    }
    return { descriptor, features: api[1]! };
  };
  // Asked first, since a descriptor takes its features only once.
  const asked = open(0);
  system.close(asked.descriptor);
  const protectsUnpopulated = (asked.features & BigInt(FEATURE_WP_UNPOPULATED)) !== 0n;
  const features = FEATURE_PAGEFAULT_FLAG_WP | (protectsUnpopulated ? FEATURE_WP_UNPOPULATED : 0);
  return { descriptor: open(features).descriptor, protectsUnpopulated };
};

/** Why there is no write protection by userfaultfd here; undefined where there is. */
export const userfaultfdProblem = (): string | undefined => {
  try {
    systemCalls()?.close(openUserfaultfd().descriptor);
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
};

/** Closes a userfaultfd of which the thread is gone: all that was protected by it is free (TS-35). */
export const closeUserfaultfd = (descriptor: number): void => {
  systemCalls()?.close(descriptor);
};

/** An extent with its address in this process; a number holds any user space address. */
interface PlacedExtent {
  readonly block: RamBlock;
  readonly extent: Extent;
  readonly address: number;
  readonly bytes: number;
}

/** Pages of an extent that are in the same huge page. */
interface Unit extends PlacedExtent {
  readonly first: number;
  readonly end: number;
}

export interface UserfaultfdOptions {
  /** Told of the descriptor, so that somebody can close it if this thread dies. */
  readonly onOpen?: (descriptor: number) => void;
}

export class UserfaultfdProtector implements WriteProtector {
  readonly #blocks: RamBlockList;
  readonly #options: UserfaultfdOptions;
  #descriptor: number | undefined;
  #extents: readonly PlacedExtent[] = [];
  readonly #unitBytes = unitBytes();
  /** The one that a guest thread waits for. */
  #urgent: Unit | undefined;
  readonly #events = new Uint8Array(EVENTS_AT_ONCE * EVENT_BYTES);
  readonly #eventWords = new Uint32Array(this.#events.buffer);
  #eventCount = 0;
  #nextEvent = 0;
  /** Argument of the ioctls: address, length, mode, result; 64 bits each, as pairs of words. */
  readonly #argument = new Uint32Array(8);
  readonly #argumentBytes = new Uint8Array(this.#argument.buffer);

  constructor(blocks: RamBlockList, options: UserfaultfdOptions = {}) {
    this.#blocks = blocks;
    this.#options = options;
  }

  /** Throws USERFAULTFD_UNSUPPORTED. */
  arm(): void {
    const { descriptor, protectsUnpopulated } = openUserfaultfd();
    this.#descriptor = descriptor;
    this.#options.onOpen?.(descriptor);
    const { kernels } = this.#blocks.bitmaps;
    const migrated = this.#blocks.blocks.filter((block) => block.migrated);
    this.#extents = migrated.flatMap((block) =>
      block.extents.map((extent) => ({
        block,
        extent,
        address: addressOf(extent.segment.bytes) + extent.address,
        bytes: extent.pageCount * GUEST_PAGE_SIZE,
      })),
    );
    for (const block of migrated) {
      const { isProtected } = protectionOf(block.bitmaps);
      kernels.testAndClearRange(isProtected, 0, block.maxPages);
      kernels.merge(block.bitmaps.send, isProtected, Math.ceil(block.maxPages / 64));
    }
    for (const { address, bytes } of this.#extents) {
      this.#ioctl(UFFDIO_REGISTER, address, bytes, REGISTER_MODE_WP);
    }
    if (!protectsUnpopulated) {
      this.#forEachProtected(({ extent }, first, count) => {
        for (let page = first; page < first + count; page += 1) {
          // A page without an entry in the page tables would be skipped; reading makes one.
          Atomics.load(extent.segment.bytes, extent.address + (page - extent.firstPage) * GUEST_PAGE_SIZE);
        }
      });
    }
  }

  protect(): void {
    this.#forEachProtected(({ address, extent }, first, count) => {
      const start = address + (first - extent.firstPage) * GUEST_PAGE_SIZE;
      this.#ioctl(UFFDIO_WRITEPROTECT, start, count * GUEST_PAGE_SIZE, WRITEPROTECT_MODE_WP);
    });
  }

  nextUrgent(): UrgentPages | undefined {
    for (;;) {
      this.#urgent ??= this.#nextFault();
      if (this.#urgent === undefined) {
        return undefined;
      }
      const { block, extent, first, end } = this.#urgent;
      const { kernels } = this.#blocks.bitmaps;
      const { isProtected } = protectionOf(block.bitmaps);
      const firstPage = kernels.findNextSet(isProtected, first, end);
      if (firstPage < end) {
        return { block, extent, firstPage, pageCount: kernels.findNextClear(isProtected, firstPage, end) - firstPage };
      }
      this.#urgent = undefined;
    }
  }

  /** Where a guest thread waits for pages to be saved. */
  #nextFault(): Unit | undefined {
    if (this.#eventCount === 0) {
      const length = systemCalls()!.read(this.#descriptor!, this.#events, this.#events.length);
      // EAGAIN: nobody waits.
      this.#eventCount = Math.max(0, length / EVENT_BYTES);
    }
    while (this.#nextEvent < this.#eventCount) {
      const event = this.#nextEvent * EVENT_BYTES;
      this.#nextEvent += 1;
      if (this.#events[event] !== EVENT_PAGEFAULT) {
        continue;
      }
      const address = this.#eventWords[event / 4 + 5]! * 2 ** 32 + this.#eventWords[event / 4 + 4]!;
      const unit = this.#unitAt(this.#extentAt(address), address);
      // It may have been saved while the fault was on its way here: nothing to send, but somebody to wake (BS-13).
      if (!this.#unprotectSaved(unit)) {
        return unit;
      }
    }
    // Threads that were woken may be waiting again by now: their turn is after a batch.
    this.#eventCount = 0;
    this.#nextEvent = 0;
    return undefined;
  }

  /** Guest threads claim nothing here. */
  claim({ count }: PagesToSave): number {
    return count;
  }

  release({ block, extent, pages, count }: PagesToSave): void {
    const { isProtected } = protectionOf(block.bitmaps);
    const placed = this.#extents.find((candidate) => candidate.extent === extent)!;
    for (let index = 0; index < count; ) {
      const first = pages[index]!;
      const from = index;
      do {
        index += 1;
      } while (index < count && pages[index] === pages[index - 1]! + 1);
      this.#blocks.bitmaps.kernels.testAndClearRange(isProtected, first, index - from);
      for (let page = first; page < first + index - from; ) {
        const unit = this.#unitAt(placed, placed.address + (page - extent.firstPage) * GUEST_PAGE_SIZE);
        this.#unprotectSaved(unit);
        page = unit.end;
      }
    }
  }

  stop(): void {
    if (this.#descriptor === undefined) {
      return;
    }
    const system = systemCalls()!;
    for (const { address, bytes } of this.#extents) {
      this.#setArgument(address, bytes, 0);
      // Lifts the protection and wakes. Should it fail, closing does the same.
      system.ioctl(this.#descriptor, UFFDIO_UNREGISTER, this.#argumentBytes);
    }
    system.close(this.#descriptor);
    this.#descriptor = undefined;
    const { kernels } = this.#blocks.bitmaps;
    for (const { block } of this.#extents) {
      kernels.testAndClearRange(protectionOf(block.bitmaps).isProtected, 0, block.maxPages);
    }
    this.#extents = [];
  }

  /** Calls back with the longest runs of pages to protect, each in one extent. */
  #forEachProtected(visit: (placed: PlacedExtent, first: number, count: number) => void): void {
    const { kernels } = this.#blocks.bitmaps;
    for (const placed of this.#extents) {
      const { firstPage, pageCount } = placed.extent;
      const { isProtected } = protectionOf(placed.block.bitmaps);
      const end = firstPage + pageCount;
      for (let first: number = firstPage; ; ) {
        first = kernels.findNextSet(isProtected, first, end);
        if (first >= end) {
          break;
        }
        const next = kernels.findNextClear(isProtected, first, end);
        visit(placed, first, next - first);
        first = next;
      }
    }
  }

  #extentAt(address: number): PlacedExtent {
    const placed = this.#extents.find(
      (candidate) => address >= candidate.address && address < candidate.address + candidate.bytes,
    );
    if (placed === undefined) {
      throw new RamferryError('failed', 'USERFAULTFD', `A fault at ${address} is in no RAM block.`, { value: address });
    }
    return placed;
  }

  #unitAt(placed: PlacedExtent, address: number): Unit {
    const { firstPage, pageCount } = placed.extent;
    const start = address - (address % this.#unitBytes) - placed.address;
    return {
      ...placed,
      first: firstPage + Math.max(0, start / GUEST_PAGE_SIZE),
      end: firstPage + Math.min(pageCount, (start + this.#unitBytes) / GUEST_PAGE_SIZE),
    };
  }

  /** Lifts the protection of a unit once all of it is saved; says whether it is. */
  #unprotectSaved({ block, extent, address, first, end }: Unit): boolean {
    const { isProtected } = protectionOf(block.bitmaps);
    if (this.#blocks.bitmaps.kernels.countRange(isProtected, first, end - first) > 0) {
      return false;
    }
    const start = address + (first - extent.firstPage) * GUEST_PAGE_SIZE;
    this.#ioctl(UFFDIO_WRITEPROTECT, start, (end - first) * GUEST_PAGE_SIZE, 0);
    return true;
  }

  #ioctl(request: number, address: number, bytes: number, mode: number): void {
    this.#setArgument(address, bytes, mode);
    const { ioctl } = systemCalls()!;
    while (ioctl(this.#descriptor!, request, this.#argumentBytes) < 0) {
      // The memory map is changing at this moment.
      if (systemErrorName() === 'EAGAIN') {
        continue;
      }
      throw unsupported(`the kernel refuses the memory at ${address} (${systemErrorName()})`);
    }
  }

  #setArgument(address: number, bytes: number, mode: number): void {
    const set = (index: number, value: number): void => {
      this.#argument[2 * index] = value % 2 ** 32;
      this.#argument[2 * index + 1] = Math.floor(value / 2 ** 32);
    };
    set(0, address);
    set(1, bytes);
    set(2, mode);
    set(3, 0);
  }
}
