// A live guest on its way through a file: the destination of the QEMU that has it, and the source of those that shall.
//
//   origin        runs ────▶│ stopped, waits for our word ──────────────────▶ told │ has let go
//   spool         pages     │ complete ──────────────▶ synced, has its name ───────┼──────────────▶
//   destinations            │ devices but the last ▶│ wait for a page ─────────────┼──▶ RUN: disks, pages, guest
//                           A                       B                              C
//
// The one thing that decides is what the origin has heard. Until SHUT(0) has reached it, a connection that closes, however
// this process ends, makes it go on with its guest; afterwards it never does. So no destination comes to the order to run, with
// which it takes the guest's disks, before the origin has closed the connection, which it does when it has let go: the last
// device waits for memory in front of that order (format/stream/gate-section.ts). docs/relay.md goes through every moment.

import fs from 'node:fs';
import { promisify } from 'node:util';
import type { ByteChannel } from '../channel/channel.js';
import { channelError } from '../channel/channel-error.js';
import { OutputFile } from '../channel/output-file-node.js';
import type { PositionedFile } from '../channel/positioned-file.js';
import { positionedFile } from '../channel/positioned-file-node.js';
import { MappedRamTarget } from '../destination/mapped-ram-target.js';
import { type IncomingState, MigrationDestination } from '../destination/migration-destination.js';
import { PassTarget } from '../destination/pass-target.js';
import type { SwitchedSource } from '../destination/refused-postcopy.js';
import type { IncomingReport } from '../destination/statistics.js';
import { splitGate } from '../format/stream/gate-section.js';
import { withRunState } from '../format/stream/global-state.js';
import { RamferryError } from '../memory/errors.js';
import { type OpenedSnapshotFile, openSnapshotFile } from '../memory-file/open-snapshot-file-node.js';
import { decideRun } from '../memory-file/run-decision.js';
import { SnapshotGuest } from '../memory-file/snapshot-guest.js';
import { SILENCE } from '../source/silence.js';
import { HeldGuest, type HeldGuestEnd, type HeldGuestOptions, type Passage } from './held-guest.js';

const fdatasync = promisify(fs.fdatasync);

export interface RelayOptions extends HeldGuestOptions {
  /** Where the guest's memory is held: a path at which there is nothing yet. */
  readonly spool: string;
  /** Connected, the first eight bytes of the stream written; one for each QEMU. */
  readonly destinations: readonly ByteChannel[];
  /** Start a guest that was paused at the origin. Default: it stays paused. */
  readonly run?: boolean;
  /** Most bytes of device state; default 256 MiB. */
  readonly deviceTailLimit?: number;
  /**
   * Before the origin is told, cancels: the guest goes on there. While it lets go, too late and without effect. Afterwards leaves the
   * destinations as they are.
   */
  readonly signal: AbortSignal;
  readonly onIncoming?: (report: IncomingReport, target: PassTarget) => void;
  /** The origin has stopped the guest and sent everything; `devices` are the names of its sections. */
  readonly onArrived?: (arrival: Arrival) => void;
  /** The guest stays at an origin that had switched to postcopy, and sends the rest of its memory in vain before it is told. */
  readonly onSendsOn?: () => void;
  /** The origin has let go of the guest, and it is released at the destinations. */
  readonly onHandedOver?: (handover: Handover) => void;
}

/** What came from the origin, once all of it is there. */
export interface Arrival {
  /** Names of the device sections. */
  readonly devices: readonly string[];
  /** QEMU's name of the state that the guest was in, where it says so. */
  readonly runState: string | undefined;
  /** Whether it goes on running at the destinations. */
  readonly runs: boolean;
  readonly by: Passage['by'];
}

/** Milliseconds from the last byte of the origin. */
export interface Handover {
  /** Until the destinations had loaded the devices. */
  readonly loadedMs: number;
  /** Until the origin was told, the spool being on disk. */
  readonly toldMs: number;
  /** Until it had let go, and the destinations' guests got their pages. */
  readonly releasedMs: number;
}

export interface RelayEnd {
  /** Where the guest is; `unknown` if only the origin knows whether it has let go. */
  readonly guest: 'origin' | 'destinations' | 'unknown';
  readonly machine: string;
  readonly arrival: Arrival | undefined;
  readonly incoming: IncomingReport;
  readonly handover: Handover | undefined;
  readonly destinations: readonly HeldGuestEnd[];
  /** What became of an origin that had switched to postcopy; undefined if it had not. */
  readonly switched: SwitchedSource | undefined;
  /** Why the guest was not handed over. */
  readonly error: Error | undefined;
  /** Whether the spool is still there: it may be needed. */
  readonly isSpoolKept: boolean;
}

/** Relays one guest, once. */
export class Relay {
  readonly #options: RelayOptions;
  readonly #output: OutputFile;
  readonly #file: PositionedFile;
  readonly #target: MappedRamTarget;
  #opened: OpenedSnapshotFile | undefined;
  #guests: readonly HeldGuest[] = [];
  #arrival: Arrival | undefined;
  #isReleased = false;
  #arrivedAt = 0;
  #loadedAt = 0;

  /** @throws RamferryError `FILE_EXISTS` if there is something at the spool's path */
  constructor(options: RelayOptions) {
    const { spool } = options;
    if (fs.existsSync(spool)) {
      throw new RamferryError('usage', 'FILE_EXISTS', `${spool} is there already.`, {
        file: spool,
        hint: 'it may be all that is left of a guest whose relay died; name another --spool',
      });
    }
    this.#options = options;
    this.#output = OutputFile.open(spool);
    this.#file = positionedFile(this.#output);
    this.#target = new MappedRamTarget(this.#file);
  }

  /** Leaves nothing behind, where `run` is not called. */
  abandon(): void {
    this.#file.abort();
  }

  async run(origin: ByteChannel): Promise<RelayEnd> {
    const { signal, deviceTailLimit, onIncoming, onHandedOver, onSendsOn } = this.#options;
    const target = new PassTarget(this.#target, { refusesIterable: true });
    const leave = (): void => {
      // The origin may have let go already: without the destinations the guest would be nowhere but in the spool.
      if (!destination.mayBeTold || this.#isReleased) {
        this.#abandonGuests(
          new RamferryError('failed', 'CANCELLED', 'The relay was cancelled.', { cause: signal.reason }),
        );
      }
    };
    const destination = new MigrationDestination({
      channel: origin,
      target,
      signal,
      needsReturnPath: true,
      postcopy: 'whole',
      lingerMs: SILENCE.lettingGo,
      commit: (state) => this.#handOver(state),
      ...(deviceTailLimit !== undefined && { deviceTailLimit }),
      onProgress: (report) => onIncoming?.(report, target),
    });
    signal.addEventListener('abort', leave);
    try {
      const incoming = await destination.run();
      const toldAt = performance.now();
      const end = async (guest: RelayEnd['guest'], error?: Error, handover?: Handover): Promise<RelayEnd> => {
        const destinations = await Promise.all(this.#guests.map(({ ended }) => ended));
        const isSpoolKept = guest !== 'origin' && destinations.some((each) => each.error !== undefined);
        if (!isSpoolKept) {
          this.#removeSpool();
        }
        const { machine } = target;
        const switched = destination.switchedSource;
        return {
          switched,
          guest,
          machine,
          arrival: this.#arrival,
          incoming,
          handover,
          destinations,
          error,
          isSpoolKept,
        };
      };
      if (!destination.mayBeTold) {
        const { error } = destination;
        this.#abandonGuests(
          new RamferryError('failed', 'CANCELLED', 'The guest stays at the origin.', { cause: error }),
        );
        if (destination.switchedSource === 'sends-on') {
          onSendsOn?.();
        }
        // It reads our word, or sees the connection close, before this process can be gone.
        await origin.closed;
        return await end('origin', error);
      }
      if (incoming.status !== 'completed' || !(await destination.sourceLeft())) {
        const error = notConfirmed(origin.peer, this.#options.spool, destination.switchedSource !== undefined);
        this.#abandonGuests(error);
        return await end('unknown', error);
      }
      this.#isReleased = true;
      for (const guest of this.#guests) {
        guest.release();
      }
      const since = (moment: number): number => Math.round((moment - this.#arrivedAt) * 10) / 10;
      const handover = {
        loadedMs: since(this.#loadedAt),
        toldMs: since(toldAt),
        releasedMs: since(performance.now()),
      };
      onHandedOver?.(handover);
      return await end('destinations', undefined, handover);
    } finally {
      signal.removeEventListener('abort', leave);
      this.#opened?.close();
      this.#file.abort();
    }
  }

  /** Everything from the last byte of the origin to the word that it may let go, which follows when this resolves. */
  async #handOver({ summary }: IncomingState): Promise<void> {
    const { destinations, spool, signal, onArrived, onProgress, run = false, ...options } = this.#options;
    this.#arrivedAt = performance.now();
    const { runs, savedAs, rewritten } = decideRun(summary, undefined, run);
    const state = rewritten ?? savedAs;
    // A guest that sleeps (ACPI S3) is woken by a postcopy, and not by a stream that says that it does.
    const gated = runs && (state === undefined || state === 'running') ? splitGate(summary) : undefined;
    const passage: Passage = gated === undefined ? { by: 'memory-first' } : { by: 'gate', gate: gated.gate };
    const devices = gated?.devices ?? (rewritten === undefined ? summary.tail : withRunState(summary, rewritten));
    this.#arrival = { devices: summary.devices.map(({ name }) => name), runState: savedAs, runs, by: passage.by };
    onArrived?.(this.#arrival);
    this.#target.writeDevices(summary.tail);
    const written = this.#write();
    written.catch(() => {});
    this.#opened = await openSnapshotFile(this.#output.currentPath);
    const { snapshot } = this.#opened;
    // Progress is that of the guest; its clones have theirs.
    this.#guests = destinations.map((channel, index) => {
      const progress = index === 0 && onProgress !== undefined ? { onProgress } : {};
      return new HeldGuest(new SnapshotGuest(snapshot, spool, { devices }), channel, passage, {
        ...options,
        ...progress,
      });
    });
    // All of them or none: the origin can still go on.
    await Promise.all(this.#guests.map(({ loaded }) => loaded));
    this.#loadedAt = performance.now();
    await written;
    signal.throwIfAborted();
    await this.#file.commit();
    signal.throwIfAborted();
    for (const guest of this.#guests) {
      guest.throwIfLost();
    }
  }

  /** While the destinations load: what is left for the commit is little then. */
  async #write(): Promise<void> {
    try {
      await fdatasync(this.#output.descriptor);
    } catch (error) {
      throw channelError(error, 'write', this.#output.path);
    }
  }

  #abandonGuests(reason: RamferryError): void {
    for (const guest of this.#guests) {
      guest.abandon(reason);
    }
  }

  #removeSpool(): void {
    this.#file.abort();
    fs.rmSync(this.#options.spool, { force: true });
  }
}

const notConfirmed = (origin: string, spool: string, hasSwitched: boolean): RamferryError =>
  new RamferryError(
    'failed',
    'SOURCE_NOT_TOLD',
    hasSwitched
      ? `The connection to ${origin} broke before it had let go of its guest.`
      : `${origin} was told to let go of its guest, and the connection broke before it did.`,
    {
      file: spool,
      hint:
        `Its query-migrate knows. "failed": it goes on there, and ${spool} can go. "completed"` +
        `${hasSwitched ? ', or "postcopy-active" or "postcopy-paused" for good' : ''}: the guest is in ${spool}, and nowhere else.`,
    },
  );
