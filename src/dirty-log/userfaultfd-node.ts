// userfaultfd (Linux, ioctl_userfaultfd(2)) through the optional dependency koffi. The kernel holds a thread up and reports
// where: one that stores to a protected page, until the protection is lifted; or one that touches a page which is not there,
// until somebody puts it there.

import process from 'node:process';
import { getSystemErrorName } from 'node:util';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { RamferryError } from '../memory/errors.js';
import {
  type AsyncSystemFunction,
  asyncSystemFunction,
  type SystemFunction,
  systemErrno,
  systemFunction,
} from '../memory/system-library-node.js';

const SYS_USERFAULTFD: Readonly<Record<string, number>> = { x64: 323, arm64: 282 };
const O_CLOEXEC_NONBLOCK = 0o2000000 | 0o4000;
/** Faults of system calls are not reported. What an ordinary user may have (vm.unprivileged_userfaultfd = 0). */
const UFFD_USER_MODE_ONLY = 1;

const UFFDIO_API = 0xc018aa3f;
const UFFDIO_REGISTER = 0xc020aa00;
const UFFDIO_UNREGISTER = 0x8010aa01;
const UFFDIO_WRITEPROTECT = 0xc018aa06;
const UFFDIO_COPY = 0xc028aa03;
const UFFDIO_WAKE = 0x8010aa02;
const UFFDIO_ZEROPAGE = 0xc020aa04;

const UFFD_API = 0xaa;
const FEATURE_PAGEFAULT_FLAG_WP = 1 << 0;
/** Pages without an entry in the page tables are protected as well (Linux 6.4). */
const FEATURE_WP_UNPOPULATED = 1 << 13;
const REGISTER_MODE_MISSING = 1;
const REGISTER_MODE_WP = 2;
const WRITEPROTECT_MODE_WP = 1;

const EVENT_BYTES = 32;
const EVENT_PAGEFAULT = 0x12;
/** At most one comes of each guest thread. */
const EVENTS_AT_ONCE = 64;

interface Calls {
  readonly syscall: SystemFunction;
  readonly ioctl: SystemFunction;
  readonly read: SystemFunction;
  readonly close: SystemFunction;
  readonly poll: AsyncSystemFunction;
}

const POLLIN = 1;

/** Whose pages are waited for. */
export type UserfaultfdPurpose = 'write-protect' | 'missing';

let calls: Calls | undefined;

const systemCalls = (): Calls | undefined => {
  if (calls === undefined) {
    const syscall = systemFunction('long syscall(long number, long argument)');
    const ioctl = systemFunction('int ioctl(int fd, unsigned long request, void *argument)');
    const read = systemFunction('long read(int fd, void *buffer, size_t length)');
    const close = systemFunction('int close(int fd)');
    const poll = asyncSystemFunction('int poll(void *fds, unsigned long count, int timeout)');
    calls = syscall && ioctl && read && close && poll && { syscall, ioctl, read, close, poll };
  }
  return calls;
};

const systemErrorName = (): string => getSystemErrorName(-systemErrno());

const unsupported = (why: string, hint?: string): RamferryError =>
  new RamferryError('failed', 'USERFAULTFD_UNSUPPORTED', `userfaultfd cannot be used: ${why}.`, {
    ...(hint !== undefined && { hint }),
  });

/** A new descriptor with these features, and the features that the kernel has. */
const openDescriptor = (
  { syscall, ioctl, close }: Calls,
  number: number,
  features: number,
): { readonly descriptor: number; readonly known: bigint } => {
  let descriptor = syscall(number, O_CLOEXEC_NONBLOCK);
  if (descriptor < 0) {
    descriptor = syscall(number, O_CLOEXEC_NONBLOCK | UFFD_USER_MODE_ONLY);
  }
  if (descriptor < 0) {
    const hint = 'a container may forbid the system call userfaultfd';
    throw unsupported(`the kernel refuses it (${systemErrorName()})`, hint);
  }
  const api = BigUint64Array.of(BigInt(UFFD_API), BigInt(features), 0n);
  if (ioctl(descriptor, UFFDIO_API, new Uint8Array(api.buffer)) < 0) {
    const error = systemErrorName();
    close(descriptor);
    throw unsupported(`the kernel does not report what is asked for (${error})`, 'Linux 5.7 or later does');
  }
  return { descriptor, known: api[1]! };
};

/** Addresses are those of this process: numbers, which hold any user space address. */
export class Userfaultfd {
  readonly descriptor: number;
  /** False: pages that were never touched must be read before they can be protected. */
  readonly protectsUnpopulated: boolean;
  readonly #calls: Calls;
  readonly #registerMode: number;
  readonly #pollArgument: Uint8Array;
  readonly #events = new Uint8Array(EVENTS_AT_ONCE * EVENT_BYTES);
  readonly #eventWords = new Uint32Array(this.#events.buffer);
  #eventCount = 0;
  #nextEvent = 0;
  /** Argument of the ioctls: up to five numbers of 64 bits, as pairs of words. */
  readonly #argument = new Uint32Array(10);
  readonly #argumentBytes = new Uint8Array(this.#argument.buffer);

  private constructor(system: Calls, descriptor: number, purpose: UserfaultfdPurpose, protectsUnpopulated: boolean) {
    this.#calls = system;
    this.descriptor = descriptor;
    this.#registerMode = purpose === 'missing' ? REGISTER_MODE_MISSING : REGISTER_MODE_WP;
    this.protectsUnpopulated = protectsUnpopulated;
    this.#pollArgument = new Uint8Array(Int32Array.of(descriptor, POLLIN).buffer);
  }

  /** Throws USERFAULTFD_UNSUPPORTED, which says why. */
  static open(purpose: UserfaultfdPurpose): Userfaultfd {
    const system = systemCalls();
    const number = SYS_USERFAULTFD[process.arch];
    if (system === undefined || number === undefined) {
      throw unsupported('the C library cannot be called', 'on Linux, install the optional dependency koffi');
    }
    if (purpose === 'missing') {
      return new Userfaultfd(system, openDescriptor(system, number, 0).descriptor, purpose, false);
    }
    // Asked first, since a descriptor takes its features only once.
    const asked = openDescriptor(system, number, 0);
    system.close(asked.descriptor);
    const protectsUnpopulated = (asked.known & BigInt(FEATURE_WP_UNPOPULATED)) !== 0n;
    const features = FEATURE_PAGEFAULT_FLAG_WP | (protectsUnpopulated ? FEATURE_WP_UNPOPULATED : 0);
    return new Userfaultfd(system, openDescriptor(system, number, features).descriptor, purpose, protectsUnpopulated);
  }

  /** From now on the kernel reports the pages of this range. */
  register(address: number, bytes: number): void {
    this.#ioctl(UFFDIO_REGISTER, address, bytes, this.#registerMode);
  }

  /** Puts a copy of the pages at `source` where none are, in one step for every other thread, and wakes who waits there. */
  copy(address: number, source: number, bytes: number): void {
    this.#place(UFFDIO_COPY, address, source, bytes, 0);
  }

  /** The same with zeros. */
  zero(address: number, bytes: number): void {
    this.#place(UFFDIO_ZEROPAGE, address, bytes, 0);
  }

  #place(request: number, ...values: readonly number[]): void {
    while (this.#call(request, ...values) < 0) {
      const error = systemErrorName();
      if (error === 'EEXIST') {
        // Whoever waits for what is there already would not be woken otherwise.
        this.#call(UFFDIO_WAKE, values[0]!, GUEST_PAGE_SIZE);
        return;
      }
      if (error !== 'EAGAIN') {
        throw unsupported(`the kernel does not take a page at ${values[0]} (${error})`);
      }
    }
  }

  protect(address: number, bytes: number): void {
    this.#ioctl(UFFDIO_WRITEPROTECT, address, bytes, WRITEPROTECT_MODE_WP);
  }

  /** Lifts the protection and wakes who waits there. */
  unprotect(address: number, bytes: number): void {
    this.#ioctl(UFFDIO_WRITEPROTECT, address, bytes, 0);
  }

  /** Lifts the protection and wakes. Should it fail, closing does the same. */
  unregister(address: number, bytes: number): void {
    this.#call(UFFDIO_UNREGISTER, address, bytes, 0);
  }

  close(): void {
    this.#calls.close(this.descriptor);
  }

  /**
   * Where a thread waits. Undefined if none does, and once after each set of faults that were read together: threads that
   * were woken may be waiting again by then.
   */
  nextFault(): number | undefined {
    if (this.#eventCount === 0) {
      // Negative if nobody waits: EAGAIN.
      const length = this.#calls.read(this.descriptor, this.#events, this.#events.length);
      this.#eventCount = Math.max(0, length / EVENT_BYTES);
    }
    while (this.#nextEvent < this.#eventCount) {
      const event = this.#nextEvent * EVENT_BYTES;
      this.#nextEvent += 1;
      if (this.#events[event] === EVENT_PAGEFAULT) {
        return this.#eventWords[event / 4 + 5]! * 2 ** 32 + this.#eventWords[event / 4 + 4]!;
      }
    }
    this.#eventCount = 0;
    this.#nextEvent = 0;
    return undefined;
  }

  /** Calls back once a thread waits somewhere, or after so many milliseconds. The event loop goes on meanwhile. */
  whenFault(timeoutMs: number, then: () => void): void {
    this.#calls.poll(then, this.#pollArgument, 1, timeoutMs);
  }

  #ioctl(request: number, address: number, bytes: number, mode: number): void {
    while (this.#call(request, address, bytes, mode) < 0) {
      // EAGAIN: the memory map is changing at this moment.
      if (systemErrorName() !== 'EAGAIN') {
        throw unsupported(`the kernel refuses the memory at ${address} (${systemErrorName()})`);
      }
    }
  }

  #call(request: number, ...values: readonly number[]): number {
    this.#argument.fill(0);
    values.forEach((value, index) => {
      this.#argument[2 * index] = value % 2 ** 32;
      this.#argument[2 * index + 1] = Math.floor(value / 2 ** 32);
    });
    return this.#calls.ioctl(this.descriptor, request, this.#argumentBytes);
  }
}

/** Why userfaultfd cannot be used for that here; undefined where it can. */
export const userfaultfdProblem = (purpose: UserfaultfdPurpose = 'write-protect'): string | undefined => {
  try {
    Userfaultfd.open(purpose).close();
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
};

/** Closes a userfaultfd of which the thread is gone: all that was protected by it is free (TS-35). */
export const closeUserfaultfd = (descriptor: number): void => {
  systemCalls()?.close(descriptor);
};
