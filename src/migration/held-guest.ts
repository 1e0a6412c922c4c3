// One destination of a relayed guest: a QEMU that has its devices, and gets the guest when its origin has let go of it.

import type { ByteChannel } from '../channel/channel.js';
import { RamferryError } from '../memory/errors.js';
import type { SourceGuest } from '../source/guest.js';
import { HeldStreamSink } from '../source/held-stream-sink.js';
import { MigrationSource } from '../source/migration-source.js';
import { defaultParameters } from '../source/parameters.js';
import { PostcopySink } from '../source/postcopy-sink.js';
import { loadLimitMs, SILENCE } from '../source/silence.js';
import type { MigrationReport } from '../source/statistics.js';
import { connectionLost } from './connection-lost.js';

/**
 * How a guest gets there.
 *
 * `gate`: devices first, and the guest runs at once while its memory follows. This section of device state is loaded last and
 * waits for memory until the guest is released (`PostcopyOptions.gate`).
 *
 * `memory-first`: everything but the end of the stream. For a guest that does not run, or none of whose devices waits.
 */
export type Passage = { readonly by: 'gate'; readonly gate: Uint8Array } | { readonly by: 'memory-first' };

export interface HeldGuestOptions {
  readonly prefetchPages: number;
  /** Bytes per second of what the guest does not wait for; 0 is unlimited. */
  readonly maxBandwidth: number;
  readonly onProgress?: (report: MigrationReport) => void;
  /** The guest itself asks for memory, for the first time: it runs. */
  readonly onSeenRunning?: (uri: string) => void;
}

/** How it ended. */
export interface HeldGuestEnd {
  readonly uri: string;
  readonly report: MigrationReport;
  readonly by: Passage['by'];
  /**
   * `gate`: the destination had come to the order to run the guest, so that it has the disks, and waits for its memory if that is
   * missing. `memory-first`: the end of the stream was let out, behind which is that order; nobody knows whether it came to it.
   */
  readonly wasStarted: boolean;
  /** The guest itself asked for memory, which it does when it runs. */
  readonly wasSeenRunning: boolean;
  /** Why the destination does not have all of it. */
  readonly error: RamferryError | undefined;
}

/** One way of moving the guest and holding it. */
interface Mover {
  readonly source: MigrationSource;
  readonly release: () => void;
  /** Nothing is waited for any more. */
  readonly close?: () => void;
  /** Something that changes as long as the destination does something. */
  readonly signs: () => number;
}

interface Landmarks {
  readonly onDevices: () => void;
  readonly onLoaded: () => void;
  readonly onStarted: () => void;
  readonly onSeenRunning: () => void;
}

/**
 * A guest that is held at a destination.
 *
 * QEMU takes the disks of a guest, and locks them, when it is about to run it. A destination that had taken them would keep the
 * origin from going on, if it came to that; so it waits in front of that step until `release`.
 */
export class HeldGuest {
  /** Resolves when the destination has loaded the devices; rejects if it does not. */
  readonly loaded: Promise<void>;
  readonly ended: Promise<HeldGuestEnd>;
  readonly #mover: Mover;
  #wasStarted = false;
  #wasSeenRunning = false;
  #lost: RamferryError | undefined;

  /** The first eight bytes of the stream must have been written to `channel`. */
  constructor(guest: SourceGuest, channel: ByteChannel, passage: Passage, options: HeldGuestOptions) {
    const uri = channel.peer;
    const stateBytes = guest.saveDevices().sections.length;
    let timer: NodeJS.Timeout | undefined;
    let haveLoaded = (): void => {};
    const watch = (ms: number): void => {
      const before = this.#mover.signs();
      timer = setTimeout(() => {
        if (this.#mover.signs() === before) {
          this.#mover.source.fail(notLoaded(uri, ms));
        } else {
          watch(ms);
        }
      }, ms);
    };
    const landmarks: Landmarks = {
      onDevices: () => {
        const limits = passage.by === 'gate' ? SILENCE.loadHeld : SILENCE.loadHeldBehindMemory;
        watch(loadLimitMs(limits, stateBytes));
      },
      onLoaded: () => {
        clearTimeout(timer);
        haveLoaded();
      },
      onStarted: () => {
        this.#wasStarted = true;
      },
      onSeenRunning: () => {
        if (!this.#wasSeenRunning) {
          this.#wasSeenRunning = true;
          options.onSeenRunning?.(uri);
        }
      },
    };
    this.#mover = movers[passage.by](guest, channel, passage as never, options, landmarks);
    const run = this.#mover.source.run().finally(() => this.#mover.close?.());
    this.ended = run.then((report) => ({
      uri,
      by: passage.by,
      report,
      wasStarted: this.#wasStarted,
      wasSeenRunning: this.#wasSeenRunning,
      error: report.status === 'completed' ? undefined : errorOf(this.#mover.source.error, uri),
    }));
    this.loaded = new Promise((resolve, reject) => {
      haveLoaded = resolve;
      void this.ended.then(({ error }) => {
        clearTimeout(timer);
        this.#lost = error;
        reject(error && notTaken(error));
      });
    });
    // Who waits for all of them hears of the first.
    this.loaded.catch(() => {});
  }

  /** Whether the destination has come to the order to run the guest, and so has its disks. */
  get wasStarted(): boolean {
    return this.#wasStarted;
  }

  /** @throws RamferryError if the destination is no longer there */
  throwIfLost(): void {
    if (this.#lost !== undefined) {
      throw this.#lost;
    }
  }

  /** The guest is the destination's. */
  release(): void {
    this.#mover.release();
  }

  /** Leaves the destination as it is. */
  abandon(reason: RamferryError): void {
    this.#mover.source.fail(reason);
  }
}

const byGate = (
  guest: SourceGuest,
  channel: ByteChannel,
  { gate }: Passage & { by: 'gate' },
  { prefetchPages, maxBandwidth, onProgress }: HeldGuestOptions,
  { onDevices, onLoaded, onStarted, onSeenRunning }: Landmarks,
): Mover => {
  const source = new MigrationSource({
    guest,
    sink: new PostcopySink(channel, { isBegun: true }),
    parameters: { ...defaultParameters, maxPostcopyBandwidth: maxBandwidth },
    postcopy: {
      isHeld: true,
      gate,
      prefetchPages,
      onPackage: onDevices,
      onLoaded,
      onStarted,
      onGuestDemand: onSeenRunning,
    },
    // Whoever recovers it does so from the file.
    onStatus: (status) => status === 'postcopy-paused' && source.fail(connectionLost(channel.peer)),
    ...(onProgress !== undefined && { onProgress }),
  });
  source.startPostcopy();
  const signs = (): number => source.report().ram['postcopy-requests'];
  return { source, release: () => source.releasePostcopy(), signs };
};

const memoryFirst = (
  guest: SourceGuest,
  channel: ByteChannel,
  _passage: Passage,
  { maxBandwidth, onProgress }: HeldGuestOptions,
  { onDevices, onLoaded, onStarted }: Landmarks,
): Mover => {
  const sink = new HeldStreamSink(channel, { isBegun: true, onDevices, onLoaded });
  const source = new MigrationSource({
    guest,
    sink,
    parameters: { ...defaultParameters, maxBandwidth },
    ...(onProgress !== undefined && { onProgress }),
  });
  let timer: NodeJS.Timeout | undefined;
  return {
    source,
    release: () => {
      onStarted();
      sink.release();
      timer = setTimeout(() => source.fail(notAnswered(channel.peer, SILENCE.stall)), SILENCE.stall);
    },
    close: () => clearTimeout(timer),
    signs: () => 0,
  };
};

const movers = { gate: byGate, 'memory-first': memoryFirst } as const;

const errorOf = (error: Error | undefined, uri: string): RamferryError =>
  error instanceof RamferryError ? error : connectionLost(uri, error);

const notLoaded = (uri: string, ms: number): RamferryError =>
  new RamferryError(
    'failed',
    'PEER_STALLED',
    `The destination ${uri} has not loaded the devices in ${(ms / 1000).toFixed(1)} s.`,
    { file: uri, value: ms },
  );

const notAnswered = (uri: string, ms: number): RamferryError =>
  new RamferryError(
    'failed',
    'PEER_STALLED',
    `The destination ${uri} has all of the guest, and has not said in ${ms / 1000} s whether it took it.`,
    { file: uri, value: ms },
  );

const notTaken = (error: RamferryError): RamferryError =>
  error.with({
    hint: 'look at what the destination printed: it needs the capability postcopy-ram, and the machine and devices of the origin',
  });
