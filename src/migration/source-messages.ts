// What the thread that controls a migration and the thread that runs its engine say to each other.

import type { PositionedFileOptions } from '../channel/positioned-file-node.js';
import { type ErrorKind, RamferryError } from '../memory/errors.js';
import type { MigrationParameters } from '../source/parameters.js';
import type { GuestPage, PostcopyOptions } from '../source/postcopy.js';
import type { MigrationReport } from '../source/statistics.js';
import type { MigrationStatus } from '../source/status.js';
import type { TraceName } from '../source/trace.js';
import type { GuestDescription, GuestFacts } from './guests.js';

/** How a mapped-ram file is written. */
export type MappedRamOptions = Pick<PositionedFileOptions, 'channels' | 'directIo'>;

/** Postcopy, as the engine's thread is told of it. */
export interface PostcopyStart extends Omit<PostcopyOptions, 'onDemand' | 'releaseWith'> {
  /** Switch before the first page. */
  readonly atOnce?: boolean;
  /** Send what is asked for over a connection of its own; the destination needs QEMU's `postcopy-preempt` on. */
  readonly preempt?: boolean;
  /** Give the guest's memory here back to the system as it is sent (QEMU's `release-ram`); a recovery is refused then. */
  readonly releaseRam?: boolean;
  /** What a destination of ours knows this source by: 16 secret bytes, for one that may have to take over. Default: random ones. */
  readonly token?: Uint8Array;
}

/** Who keeps the guest's pages as they are during a background snapshot. */
export type ProtectorKind = 'store-barrier' | 'userfaultfd';

export interface BackgroundSnapshotOptions {
  /** Default: the guest's own store barrier where it has one, else userfaultfd. */
  readonly protector?: ProtectorKind;
}

/** What the engine's thread is started with; structured-cloneable. */
export interface SourceStart {
  readonly guest: GuestDescription;
  /** `GuestClaim.token` of the claim that the controlling thread has made; undefined for guests that it does not know. */
  readonly claim: number | undefined;
  /** Where the engine notes what it does to the guest (`allocateGuestHold`). */
  readonly hold: SharedArrayBuffer;
  /** Where to send: QEMU's URI. */
  readonly uri: string;
  readonly parameters: MigrationParameters;
  readonly returnPath: boolean;
  /** Write a mapped-ram file instead of a stream. */
  readonly mappedRam: MappedRamOptions | undefined;
  /** Announce postcopy. */
  readonly postcopy: PostcopyStart | undefined;
  /** Save the guest as it is at one instant, and leave it running. */
  readonly backgroundSnapshot: BackgroundSnapshotOptions | undefined;
  /** Pattern of the trace events wanted. */
  readonly trace: string | undefined;
  /** For how long a destination that does not listen yet is waited for. */
  readonly retryMs: number;
}

export type ToSource =
  | { readonly type: 'cancel' }
  | { readonly type: 'fail'; readonly error: PlainError }
  /** The destination has not loaded the devices, as far as its monitor knew. */
  | { readonly type: 'not-loaded'; readonly error: PlainError }
  | { readonly type: 'start-postcopy' | 'finish-postcopy' | 'pause-postcopy' }
  | { readonly type: 'recover-postcopy'; readonly uri: string }
  | { readonly type: 'set-parameters'; readonly changes: Partial<MigrationParameters> };

export type FromSource =
  | { readonly type: 'status'; readonly status: MigrationStatus }
  /** The destination says nothing while it loads the devices. */
  | { readonly type: 'load-silence' }
  /** It was opened. */
  | { readonly type: 'guest'; readonly facts: GuestFacts }
  | { readonly type: 'pass'; readonly pass: number }
  /** All files that it has begun and not finished: they are left if the thread is killed. */
  | { readonly type: 'unfinished'; readonly files: readonly string[] }
  | { readonly type: 'progress'; readonly report: MigrationReport }
  | { readonly type: 'trace'; readonly name: TraceName; readonly values: readonly (string | number)[] }
  | {
      readonly type: 'ended';
      readonly report: MigrationReport;
      readonly error: PlainError | undefined;
      /** Pages asked for in postcopy, in that order. */
      readonly demands: readonly GuestPage[];
    }
  /** The channel could not be opened; no migration took place. */
  | { readonly type: 'refused'; readonly error: PlainError };

/** An error as a message: structured cloning keeps of an Error little but its text. */
export interface PlainError {
  readonly kind: ErrorKind;
  readonly code: string;
  readonly message: string;
  readonly details: Record<string, number | bigint | string>;
}

export function plainError(error: unknown): PlainError {
  if (!(error instanceof RamferryError)) {
    return {
      kind: 'failed',
      code: 'INTERNAL',
      message: error instanceof Error ? error.message : String(error),
      details: {},
    };
  }
  const { kind, code, message, file, offset, value, hint } = error;
  const details = Object.entries({ file, offset, value, hint }).filter(([, detail]) => detail !== undefined);
  return { kind, code, message, details: Object.fromEntries(details) as PlainError['details'] };
}

export const ramferryError = ({ kind, code, message, details }: PlainError): RamferryError =>
  new RamferryError(kind, code, message, details);
