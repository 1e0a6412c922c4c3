// Who decides how a migration ends: whoever comes first. The destination by confirming it, its owner by cancelling it, whatever
// breaks, or the engine that has got to the end.

import { RamferryError } from '../memory/errors.js';
import type { Clock } from './clock.js';
import type { PageSink } from './page-sink.js';
import { Pause } from './pause.js';
import { SILENCE } from './silence.js';
import { MigrationState, type MigrationStatus } from './status.js';

export interface EndingOptions {
  readonly sink: PageSink;
  readonly clock: Clock;
  /** Whether the guest ran here and would run on here, so that it could run twice. */
  readonly couldRunTwice: () => boolean;
  /** The destination has confirmed: from here on nothing resumes the guest. */
  readonly onConfirmed: () => void;
  readonly onStatus: (status: MigrationStatus) => void;
}

export class Ending {
  readonly state: MigrationState;
  readonly #options: EndingOptions;
  readonly #aborted = new AbortController();
  readonly #answer: Pause;
  #error: Error | undefined;
  /** What ends the migration unless the destination confirms it. */
  #pending: (() => void) | undefined;
  /** Why the link of a postcopy broke last. */
  #pausedBy: Error | undefined;
  #wasTooLate = false;
  #isCancelledEarly = false;

  constructor(options: EndingOptions) {
    this.#options = options;
    this.#answer = new Pause(options.clock);
    this.state = new MigrationState(options.onStatus);
  }

  /** Aborted once the migration is given up. */
  get signal(): AbortSignal {
    return this.#aborted.signal;
  }

  /** Why it failed, was cancelled, or is paused. */
  get error(): Error | undefined {
    return this.#error ?? (this.state.value === 'completed' ? undefined : this.#pausedBy);
  }

  get isConfirmed(): boolean {
    return this.state.value === 'completed';
  }

  /** Whether somebody gave it up when the destination had everything, and then confirmed. */
  get wasTooLate(): boolean {
    return this.#wasTooLate;
  }

  /** Begins; false if it has begun before. */
  start(): boolean {
    const isFirst = this.state.move('setup');
    if (isFirst && this.#isCancelledEarly) {
      this.cancel();
    }
    return isFirst;
  }

  /** Ends it as cancelled; says whether that can have an effect. It has none if the destination confirms all the same. */
  cancel(): boolean {
    if (this.state.value === 'none') {
      this.#isCancelledEarly = true;
      return true;
    }
    return (
      this.state.canMove('cancelling') &&
      this.#giveUp(() => {
        if (this.state.move('cancelling')) {
          this.#error ??= cancelled();
          this.#abort(this.#error);
        }
      })
    );
  }

  /** Ends it as failed; the first error counts (PL-5). Says whether that can have an effect, as `cancel`. */
  fail(error: Error): boolean {
    return (
      !this.state.ended &&
      this.#giveUp(() => {
        this.#error ??= (this.state.value === 'postcopy-paused' ? this.#pausedBy : undefined) ?? error;
        this.#abort(error);
      })
    );
  }

  /** A destination that has everything decides by its answer, as long as there is hope for one. */
  #giveUp(end: () => void): boolean {
    const { sink, couldRunTwice } = this.#options;
    if (this.state.value !== 'device' || sink.isUndecided !== true || !couldRunTwice()) {
      end();
    } else if (this.#pending === undefined) {
      this.#pending = end;
      void this.#answer.sleep(SILENCE.confirmation).then(() => this.#settle());
    }
    return true;
  }

  /** What was put off for an answer. */
  #settle(): void {
    const pending = this.#pending;
    this.#pending = undefined;
    this.#answer.interrupt();
    if (this.isConfirmed) {
      this.#wasTooLate ||= pending !== undefined;
    } else {
      pending?.();
    }
  }

  #abort(error: Error): void {
    this.#aborted.abort();
    this.#options.sink.abort(error);
  }

  /** The destination has everything and has said so. From here on it is completed, whatever comes (PL-4). */
  confirm(): void {
    if (this.state.canMove('completed')) {
      this.#options.onConfirmed();
      this.state.move('completed');
      this.#settle();
    }
  }

  /** The link of a postcopy broke. */
  pausedBy(error: Error): void {
    this.#pausedBy = error;
    this.enter('postcopy-paused');
  }

  /** Something has thrown; after a confirmation that changes nothing. */
  threw(error: unknown): void {
    if (!this.isConfirmed) {
      this.#settle();
      this.#error ??= error instanceof Error ? error : new Error(String(error));
      this.#options.sink.abort(this.#error);
    }
  }

  /** Nothing is under way any more. */
  close(): void {
    this.#answer.end();
    if (!this.state.ended) {
      this.state.move(this.state.value === 'cancelling' ? 'cancelled' : 'failed');
    }
  }

  /** @throws what it was given up for, if the destination has not confirmed */
  throwIfUnconfirmed(): void {
    if (!this.isConfirmed) {
      throw this.#error ?? cancelled();
    }
  }

  /** @throws what it was given up for, if it was */
  enter(status: MigrationStatus): void {
    if (!this.state.move(status)) {
      throw this.#error ?? cancelled();
    }
  }

  /** @throws what it was given up for, if it was */
  throwIfStopped(): void {
    if (this.#aborted.signal.aborted) {
      throw this.#error ?? cancelled();
    }
  }
}

const cancelled = (): RamferryError => new RamferryError('failed', 'CANCELLED', 'The migration was cancelled.');
