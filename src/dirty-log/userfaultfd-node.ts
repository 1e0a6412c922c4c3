// userfaultfd as far as write protection needs it (Linux, ioctl_userfaultfd(2)), through the optional dependency koffi: the
// kernel holds a store to a protected page up and reports where, until the protection is lifted.

import process from 'node:process';
import { getSystemErrorName } from 'node:util';
import { RamferryError } from '../memory/errors.js';
import { type SystemFunction, systemErrno, systemFunction } from '../memory/system-library-node.js';

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
/** At most one comes of each guest thread. */
const EVENTS_AT_ONCE = 64;

interface Calls {
  readonly syscall: SystemFunction;
  readonly ioctl: SystemFunction;
  readonly read: SystemFunction;
  readonly close: SystemFunction;
}

let calls: Calls | undefined;

const systemCalls = (): Calls | undefined => {
  if (calls === undefined) {
    const syscall = systemFunction('long syscall(long number, long argument)');
    const ioctl = systemFunction('int ioctl(int fd, unsigned long request, void *argument)');
    const read = systemFunction('long read(int fd, void *buffer, size_t length)');
    const close = systemFunction('int close(int fd)');
    calls = syscall && ioctl && read && close && { syscall, ioctl, read, close };
  }
  return calls;
};

const systemErrorName = (): string => getSystemErrorName(-systemErrno());

const unsupported = (why: string, hint?: string): RamferryError =>
  new RamferryError('failed', 'USERFAULTFD_UNSUPPORTED', `Pages cannot be write-protected by userfaultfd: ${why}.`, {
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
    throw unsupported(`the kernel does not report protected pages (${error})`, 'Linux 5.7 or later does');
  }
  return { descriptor, known: api[1]! };
};

/** Addresses are those of this process: numbers, which hold any user space address. */
export class Userfaultfd {
  readonly descriptor: number;
  /** False: pages that were never touched must be read before they can be protected. */
  readonly protectsUnpopulated: boolean;
  readonly #calls: Calls;
  readonly #events = new Uint8Array(EVENTS_AT_ONCE * EVENT_BYTES);
  readonly #eventWords = new Uint32Array(this.#events.buffer);
  #eventCount = 0;
  #nextEvent = 0;
  /** Argument of the ioctls: address, length, mode, result; 64 bits each, as pairs of words. */
  readonly #argument = new Uint32Array(8);
  readonly #argumentBytes = new Uint8Array(this.#argument.buffer);

  private constructor(system: Calls, descriptor: number, protectsUnpopulated: boolean) {
    this.#calls = system;
    this.descriptor = descriptor;
    this.protectsUnpopulated = protectsUnpopulated;
  }

  /** Throws USERFAULTFD_UNSUPPORTED, which says why. */
  static open(): Userfaultfd {
    const system = systemCalls();
    const number = SYS_USERFAULTFD[process.arch];
    if (system === undefined || number === undefined) {
      throw unsupported('the C library cannot be called', 'on Linux, install the optional dependency koffi');
    }
    // Asked first, since a descriptor takes its features only once.
    const asked = openDescriptor(system, number, 0);
    system.close(asked.descriptor);
    const protectsUnpopulated = (asked.known & BigInt(FEATURE_WP_UNPOPULATED)) !== 0n;
    const features = FEATURE_PAGEFAULT_FLAG_WP | (protectsUnpopulated ? FEATURE_WP_UNPOPULATED : 0);
    return new Userfaultfd(system, openDescriptor(system, number, features).descriptor, protectsUnpopulated);
  }

  register(address: number, bytes: number): void {
    this.#ioctl(UFFDIO_REGISTER, address, bytes, REGISTER_MODE_WP);
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

/** Why there is no write protection by userfaultfd here; undefined where there is. */
export const userfaultfdProblem = (): string | undefined => {
  try {
    Userfaultfd.open().close();
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
};

/** Closes a userfaultfd of which the thread is gone: all that was protected by it is free (TS-35). */
export const closeUserfaultfd = (descriptor: number): void => {
  systemCalls()?.close(descriptor);
};
