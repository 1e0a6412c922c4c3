// One destination of a relayed guest: a QEMU that has the devices and was told to run, and waits for its first page until
// it gets its guest.

import type { ByteChannel } from '../channel/channel.js';
import { RamferryError } from '../memory/errors.js';
import type { SourceGuest } from '../source/guest.js';
import { MigrationSource } from '../source/migration-source.js';
import { defaultParameters } from '../source/parameters.js';
import { PostcopySink } from '../source/postcopy-sink.js';
import type { MigrationReport } from '../source/statistics.js';

/** The origin's guest stands still meanwhile, and goes on if a destination takes longer. It takes QEMU some milliseconds. */
const LOAD_MS = 10_000;

export interface HeldGuestOptions {
  readonly prefetchPages: number;
  /** Bytes per second of what the guest does not wait for; 0 is unlimited. */
  readonly maxBandwidth: number;
  readonly onProgress?: (report: MigrationReport) => void;
}

/** How it ended. */
export interface HeldGuestEnd {
  readonly uri: string;
  readonly report: MigrationReport;
  /** Why the destination does not have all of it. */
  readonly error: RamferryError | undefined;
}

export class HeldGuest {
  /** Resolves when the destination has loaded the devices; rejects if it does not. */
  readonly loaded: Promise<void>;
  readonly ended: Promise<HeldGuestEnd>;
  readonly #source: MigrationSource;
  #lost: RamferryError | undefined;

  constructor(guest: SourceGuest, channel: ByteChannel, { prefetchPages, maxBandwidth, onProgress }: HeldGuestOptions) {
    const uri = channel.peer;
    let haveLoaded = (): void => {};
    const source = new MigrationSource({
      guest,
      sink: new PostcopySink(channel),
      parameters: { ...defaultParameters, maxPostcopyBandwidth: maxBandwidth },
      postcopy: { isHeld: true, prefetchPages, onLoaded: () => haveLoaded() },
      // Whoever recovers it does so from the file.
      onStatus: (status) => status === 'postcopy-paused' && source.fail(connectionLost(uri)),
      ...(onProgress !== undefined && { onProgress }),
    });
    this.#source = source;
    source.startPostcopy();
    this.ended = source.run().then((report) => ({
      uri,
      report,
      error: report.status === 'completed' ? undefined : errorOf(source.error, uri),
    }));
    this.loaded = new Promise((resolve, reject) => {
      const timer = setTimeout(() => source.fail(notLoaded(uri)), LOAD_MS);
      haveLoaded = () => {
        clearTimeout(timer);
        resolve();
      };
      void this.ended.then(({ error }) => {
        clearTimeout(timer);
        this.#lost = error;
        reject(error && notTaken(error));
      });
    });
    // Who waits for all of them hears of the first.
    this.loaded.catch(() => {});
  }

  /** @throws RamferryError if the destination is no longer there */
  throwIfLost(): void {
    if (this.#lost !== undefined) {
      throw this.#lost;
    }
  }

  /** The guest is the destination's. */
  release(): void {
    this.#source.releasePostcopy();
  }

  /** Leaves the destination as it is. */
  abandon(reason: RamferryError): void {
    this.#source.fail(reason);
  }
}

const errorOf = (error: Error | undefined, uri: string): RamferryError =>
  error instanceof RamferryError ? error : connectionLost(uri, error);

const connectionLost = (uri: string, cause?: Error): RamferryError =>
  new RamferryError('failed', 'PEER_CLOSED', `The connection to ${uri} broke before all memory was there.`, {
    file: uri,
    cause,
  });

const notLoaded = (uri: string): RamferryError =>
  new RamferryError(
    'failed',
    'PEER_STALLED',
    `The destination ${uri} has not loaded the devices in ${LOAD_MS / 1000} s.`,
    {
      file: uri,
      value: LOAD_MS,
    },
  );

const notTaken = (error: RamferryError): RamferryError =>
  error.with({
    hint: 'look at the destination: it needs the capability postcopy-ram, and the machine and devices of the origin',
  });
