// Keeps watch over a file that guests have mapped: what changes in it changes their memory (spec/qemu-lab.md G1, trap a).
//
// Linux has leases for this, fcntl(F_SETLEASE). Who opens the file for writing, or truncates it, is made to wait, and we
// are told by SIGIO; the wait ends when the lease is given up, or after /proc/sys/fs/lease-break-time (45 s). A lease
// cannot be had while somebody has the file open for writing, so having it also says that nobody has. Where there are
// no leases (a file of another user, some network file systems, no koffi) the file's times and size are looked at instead.

import fs from 'node:fs';
import process from 'node:process';
import { channelError } from '../channel/channel-error.js';
import { RamferryError } from '../memory/errors.js';
import { type SystemFunction, systemErrno, systemFunction } from '../memory/system-library-node.js';
import { writersOf } from './file-users-node.js';

const F_SETLEASE = 1024;
const F_GETLEASE = 1025;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;

const EAGAIN = 11;

/** How soon a change is noticed where there are no leases. */
const LOOK_MS = 200;

let fcntl: SystemFunction | undefined;

const lease = (descriptor: number, command: number, kind: number): number => {
  // Variadic in C; on Linux an int is passed the same either way.
  fcntl ??= systemFunction('int fcntl(int descriptor, int command, int kind)') ?? (() => -1);
  return fcntl(descriptor, command, kind);
};

/** Whether nobody else has the file open at all; while the descriptor is open, whoever tries has to wait. */
export const isSoleUser = (descriptor: number): boolean => lease(descriptor, F_SETLEASE, F_WRLCK) === 0;

/** What changes when a file's content does, or when its name is another file's. */
export const fileIdentity = (descriptor: number): string => {
  const { dev, ino, size, mtimeNs } = fs.fstatSync(descriptor, { bigint: true });
  return [dev, ino, size, mtimeNs].join(' ');
};

const waitFor = (file: string): string => {
  const [writer] = writersOf(file);
  return writer === undefined
    ? 'Wait until it is done with it.'
    : `It is process ${writer.pid} (${writer.name}); wait until it is done with it.`;
};

const guards = new Set<FileGuard>();
const lookAtAll = (): void => {
  for (const guard of guards) {
    guard.look();
  }
};

export class FileGuard {
  readonly file: string;
  /** Open for reading until `release`. */
  readonly descriptor: number;
  /** Whether writers have to wait; else a change is only noticed. */
  readonly hasLease: boolean;
  readonly #identity: string;
  readonly #timer: NodeJS.Timeout | undefined;
  #onChange: ((reason: RamferryError) => void) | undefined;

  private constructor(file: string, descriptor: number, hasLease: boolean) {
    this.file = file;
    this.descriptor = descriptor;
    this.hasLease = hasLease;
    this.#identity = fileIdentity(descriptor);
    this.#timer = hasLease ? undefined : setInterval(() => this.look(), LOOK_MS).unref();
    if (guards.size === 0) {
      process.on('SIGIO', lookAtAll);
    }
    guards.add(this);
  }

  /** @throws RamferryError FILE_IN_USE if somebody has the file open for writing */
  static take(file: string): FileGuard {
    let descriptor: number;
    try {
      descriptor = fs.openSync(file, 'r');
    } catch (error) {
      throw channelError(error, 'open', file);
    }
    const hasLease = lease(descriptor, F_SETLEASE, F_RDLCK) === 0;
    if (!hasLease && systemErrno() === EAGAIN) {
      fs.closeSync(descriptor);
      throw new RamferryError('failed', 'FILE_IN_USE', `Another process has ${file} open for writing.`, {
        file,
        hint: waitFor(file),
      });
    }
    return new FileGuard(file, descriptor, hasLease);
  }

  /** Calls `listener` once, when the file is about to change or has changed. */
  onChange(listener: (reason: RamferryError) => void): void {
    this.#onChange = listener;
    this.look();
  }

  /** Whether it is the same file with the same content as when `identity` was asked. */
  get identity(): string {
    return this.#identity;
  }

  look(): void {
    const broken = this.hasLease && lease(this.descriptor, F_GETLEASE, 0) !== F_RDLCK;
    if (broken || fileIdentity(this.descriptor) !== this.#identity) {
      const what = broken ? 'Another process wants to write into' : 'Another process has changed';
      const onChange = this.#onChange;
      this.#onChange = undefined;
      onChange?.(
        new RamferryError('failed', 'FILE_CHANGED', `${what} ${this.file} while guests have their memory in it.`, {
          file: this.file,
          hint: 'let it write to another file, and rename that',
        }),
      );
    }
  }

  /** Lets waiting writers in. */
  release(): void {
    if (guards.delete(this)) {
      clearInterval(this.#timer);
      if (guards.size === 0) {
        process.off('SIGIO', lookAtAll);
      }
      if (this.hasLease) {
        lease(this.descriptor, F_SETLEASE, F_UNLCK);
      }
      fs.closeSync(this.descriptor);
    }
  }
}
