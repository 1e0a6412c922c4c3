// What the readers of Linux's log buffers yield, and how they say that one is damaged.

import { RamferryError } from '../../memory/errors.js';

/** One record of the kernel's log, which may have several lines. */
export interface LogRecord {
  /** Since boot; undefined before Linux 3.5, where it is part of the text if at all. */
  readonly timeNs: bigint | undefined;
  /** Syslog's severity, 0 (emergency) to 7 (debug). */
  readonly level: number | undefined;
  /** Syslog's facility: 0 for the kernel itself, others for what programs wrote to /dev/kmsg. */
  readonly facility: number | undefined;
  readonly text: string;
}

/** Largest log buffer that is read, which is the largest that a kernel is built with. Debian's has 128 KiB, large servers have 16 MiB. */
export const LOG_LIMIT = 32 * 2 ** 20;

/** Most records: of the usual length, 32 MiB of log have as many. */
export const MOST_RECORDS = 2 ** 20;

/** Most lines in all of them: each is printed with its time. */
export const MOST_LINES = 2 ** 20;

/** The guest's log buffer is not what it should be, or is not in the file. */
export const logDamaged = (what: string): RamferryError =>
  new RamferryError('failed', 'KERNEL_LOG', `The kernel's log cannot be read: ${what}.`);

/** Log text is UTF-8 as far as it is text. */
export const logText = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);

/** The two bytes behind the lengths of a record: facility, then flags in 5 bits and the level in 3. */
export const levelOf = (flags: number): number => flags >>> 5;
