// The control side of an outgoing migration: starts the engine in its own thread and follows it.

import { Worker } from 'node:worker_threads';
import { RamferryError } from '../memory/errors.js';
import { type ClaimPurpose, type GuestClaim, geometryChanged } from '../memory/guest-claim.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import { allocateGuestHold, type GuestOwner, guestOwner, isGuestHeld } from '../source/guest-hold.js';
import { changeParameters, defaultParameters, type MigrationParameters } from '../source/parameters.js';
import { type GuestPage, RELEASED } from '../source/postcopy.js';
import type { MigrationReport } from '../source/statistics.js';
import type { MigrationStatus } from '../source/status.js';
import type { TraceName } from '../source/trace.js';
import { checkCapabilities } from './capabilities.js';
import { claimGuest, type GuestDescription, type GuestFacts } from './guests.js';
import { freeGuest } from './left-guest.js';
import {
  type BackgroundSnapshotOptions,
  type FromSource,
  type MappedRamOptions,
  type PostcopyStart,
  plainError,
  ramferryError,
  type SourceStart,
  type ToSource,
} from './source-messages.js';

export interface MigrationOptions {
  readonly guest: GuestDescription;
  /** The guest's blocks as the calling thread owns them: a resize fails the migration at once (DM-23), not at its next batch. */
  readonly blocks?: RamBlockList;
  /** Where to: `tcp:HOST:PORT`, `unix:PATH`, `file:PATH`, `exec:COMMAND`. */
  readonly uri: string;
  readonly parameters?: Partial<MigrationParameters>;
  /**
   * Have the destination confirm, so that a failure there leaves the guest running here. Default true. Without it the guest has
   * moved when all of it has left, except to a file: what fails behind that leaves it standing still, for it may run there.
   */
  readonly returnPath?: boolean;
  /** Save into a mapped-ram file, which `uri` must name: `file:PATH[,offset=N]`. Default: send a stream. */
  readonly mappedRam?: MappedRamOptions;
  /** Announce postcopy to the destination, which must have the capability on, so that `startPostcopy` can switch to it. */
  readonly postcopy?: PostcopyStart;
  /**
   * Save the guest as it is at one instant and leave it running (QEMU's background-snapshot). What is written is the
   * instant's, whatever the guest stores meanwhile; rate limit, hints and the return path are off.
   */
  readonly backgroundSnapshot?: BackgroundSnapshotOptions;
  /** For how long a destination that does not listen yet is waited for; default 0. */
  readonly retryMs?: number;
  readonly onStatus?: (status: MigrationStatus) => void;
  /**
   * A destination of postcopy has said nothing for a second while it loads the devices; called again after each further second.
   * Whoever can ask its monitor tells `notLoaded` what is wrong; otherwise it is given up after a while.
   */
  readonly onLoadSilence?: () => void;
  /** Once a saved guest is opened, before anything is sent. */
  readonly onGuest?: (facts: GuestFacts) => void;
  /** After each log sync. */
  readonly onPass?: (pass: number) => void;
  /** At most every 100 ms. */
  readonly onProgress?: (report: MigrationReport) => void;
  /** The trace events that match `pattern`, as QEMU's `-trace` takes it. */
  readonly trace?: {
    readonly pattern: string;
    readonly listener: (name: TraceName, values: readonly (string | number)[]) => void;
  };
}

/** How a migration ended. */
export interface MigrationEnd {
  readonly report: MigrationReport;
  /** Why, if it did not complete. `guestOwner` says whether the guest runs on at the source then. */
  readonly error: RamferryError | undefined;
  /** What was asked for in postcopy and had not been sent, in that order; 65,536 pages at most. */
  readonly demands: readonly GuestPage[];
}

/** A migration under way. */
export class Migration {
  /** Resolves when the migration has ended, one way or another; rejects if it could not even start, or its engine died. */
  readonly ended: Promise<MigrationEnd>;
  readonly #worker: Worker;
  readonly #hasPostcopy: boolean;
  readonly #releasesRam: boolean;
  /** Made before the engine's thread is started, and released when it can do nothing any more. */
  readonly #claim: GuestClaim | undefined;
  /** Where the engine notes what it does to the guest, so that it can be undone if its thread dies. */
  readonly #hold = allocateGuestHold();
  readonly #options: MigrationOptions;
  /** Those in effect. */
  #parameters: MigrationParameters;
  #status: MigrationStatus = 'none';
  #over = false;

  /**
   * @throws RamferryError `CAPABILITY_CONFLICT` if options exclude each other; `GUEST_BUSY` if the guest is being migrated,
   * saved or loaded already, `BLOCK_LIST_STALE` if its description is older than its list of blocks
   */
  constructor(options: MigrationOptions) {
    this.#hasPostcopy = options.postcopy !== undefined;
    this.#releasesRam = options.postcopy?.releaseRam === true;
    this.#options = options;
    checkCapabilities(options);
    this.#parameters = changeParameters(defaultParameters, options.parameters ?? {});
    this.#claim = claimGuest(options.guest, purposeOf(options));
    const start: SourceStart = {
      guest: options.guest,
      claim: this.#claim?.token,
      hold: this.#hold,
      uri: options.uri,
      parameters: this.#parameters,
      returnPath: options.returnPath ?? options.backgroundSnapshot === undefined,
      mappedRam: options.mappedRam,
      postcopy: options.postcopy,
      backgroundSnapshot: options.backgroundSnapshot,
      trace: options.trace?.pattern,
      retryMs: options.retryMs ?? 0,
    };
    this.#worker = this.#startWorker(start);
    const unsubscribe = options.blocks?.subscribe({
      resizing: ({ name }) => this.#fail(geometryChanged(`RAM block ${name} was resized`, name)),
    });
    this.ended = this.#follow(options).finally(() => {
      this.#over = true;
      this.#claim?.release();
      unsubscribe?.();
    });
  }

  #startWorker(workerData: SourceStart): Worker {
    try {
      return new Worker(new URL('./source-worker.js', import.meta.url), { workerData, name: 'migration' });
    } catch (error) {
      this.#claim?.release();
      throw error;
    }
  }

  /** Whose the guest is at this moment, even if the engine's thread has died. */
  get guestOwner(): GuestOwner {
    return guestOwner(this.#hold);
  }

  /**
   * Ends the migration; the guest runs on at the source. Without effect once the destination has confirmed, or the guest has moved by
   * postcopy: false then. After true `ended` tells which came first.
   */
  cancel(): boolean {
    this.#post({ type: 'cancel' });
    return !this.#over && (this.guestOwner === 'here' || this.guestOwner === 'undecided');
  }

  /**
   * Takes effect at once.
   * @throws RamferryError `PARAMETER_RANGE`, `PARAMETER_UNKNOWN`, and what excludes the options that the migration was started with
   */
  setParameters(changes: Partial<MigrationParameters>): void {
    const parameters = changeParameters(this.#parameters, changes);
    checkCapabilities({ ...this.#options, parameters });
    this.#parameters = parameters;
    this.#post({ type: 'set-parameters', changes });
  }

  /** Switches to postcopy as soon as possible: the guest runs at the destination, and its pages follow. */
  startPostcopy(): void {
    this.#orderPostcopy('start-postcopy');
  }

  /** Ends laziness: everything is sent, and then the migration is over. */
  finishPostcopy(): void {
    this.#orderPostcopy('finish-postcopy');
  }

  /** Takes the link of a postcopy down; the guest waits at the destination for what it lacks. */
  pausePostcopy(): void {
    this.#orderPostcopy('pause-postcopy');
  }

  /**
   * Goes on with a paused postcopy over a new connection to `uri`.
   * @throws RamferryError `usage`, if it is not paused, or was started with `releaseRam`
   */
  recoverPostcopy(uri: string): void {
    if (this.#releasesRam) {
      throw new RamferryError('usage', 'RELEASE_RAM', RELEASED);
    }
    if (this.#status !== 'postcopy-paused') {
      throw new RamferryError(
        'usage',
        'NOT_PAUSED',
        `Only a paused postcopy can be recovered; this migration is ${this.#status}.`,
      );
    }
    this.#status = 'postcopy-recover-setup';
    this.#post({ type: 'recover-postcopy', uri });
  }

  /** Ends a postcopy whose destination is known not to load the devices. Without effect if it has said by then that it has. */
  notLoaded(error: RamferryError): void {
    this.#post({ type: 'not-loaded', error: plainError(error) });
  }

  /** Leaves a postcopy as it is: the guest stays at the destination, paused; a new source can recover it. */
  abandonPostcopy(): void {
    const error = new RamferryError(
      'failed',
      'POSTCOPY_ABANDONED',
      'The postcopy was abandoned before all pages were sent.',
    );
    this.#fail(error);
  }

  #orderPostcopy(type: 'start-postcopy' | 'finish-postcopy' | 'pause-postcopy'): void {
    if (!this.#hasPostcopy) {
      throw new RamferryError('usage', 'POSTCOPY_OFF', 'This migration was started without postcopy.');
    }
    this.#post({ type });
  }

  #fail(error: RamferryError): void {
    this.#post({ type: 'fail', error: plainError(error) });
  }

  #post(message: ToSource): void {
    if (!this.#over) {
      this.#worker.postMessage(message);
    }
  }

  #follow(options: MigrationOptions): Promise<MigrationEnd> {
    return new Promise((resolve, reject) => {
      let cause: Error | undefined;
      let refusal: RamferryError | undefined;
      let unfinished: readonly string[] = [];
      let isSettled = false;
      const died = async (code?: number): Promise<void> => {
        if (!isSettled) {
          isSettled = true;
          const how = cause === undefined ? `exit code ${code}` : String(cause);
          // Without its claim it has undone that itself, and another migration may have the guest by now.
          const mayUndo = this.#claim?.isHeld === true;
          const error = await freeGuest(options.guest, this.#hold, { mayUndo, unfinished, how });
          reject(refusal ?? error);
        }
      };
      this.#worker.on('message', (message: FromSource) => {
        switch (message.type) {
          case 'status':
            this.#status = message.status;
            options.onStatus?.(message.status);
            break;
          case 'load-silence':
            options.onLoadSilence?.();
            break;
          case 'guest':
            options.onGuest?.(message.facts);
            break;
          case 'pass':
            options.onPass?.(message.pass);
            break;
          case 'unfinished':
            unfinished = message.files;
            break;
          case 'progress':
            options.onProgress?.(message.report);
            break;
          case 'trace':
            options.trace?.listener(message.name, message.values);
            break;
          case 'ended':
            isSettled = true;
            resolve({
              report: message.report,
              error: message.error && ramferryError(message.error),
              demands: message.demands,
            });
            break;
          case 'refused':
            refusal = ramferryError(message.error);
            if (!isGuestHeld(this.#hold)) {
              isSettled = true;
              reject(refusal);
            }
            break;
        }
      });
      this.#worker.on('messageerror', (error) => {
        cause ??= error;
      });
      this.#worker.on('error', (error) => {
        cause ??= error;
        // A thread that could not even be started.
        if (this.#worker.threadId < 0) {
          void died();
        }
      });
      // Not before: the engine's thread may still be doing something to the guest.
      this.#worker.on('exit', died);
    });
  }
}

/** What the guest is claimed for, as others who ask for it are told. */
const purposeOf = ({ backgroundSnapshot, mappedRam, uri }: MigrationOptions): ClaimPurpose =>
  backgroundSnapshot !== undefined
    ? 'backgroundSnapshot'
    : mappedRam !== undefined || uri.startsWith('file:')
      ? 'save'
      : 'migration';
