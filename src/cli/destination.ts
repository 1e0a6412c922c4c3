// What is known of the QEMU that a guest was given to. The stream alone says that it has loaded everything, and not whether
// the guest runs: its disk may be locked, -S may hold it. Its monitor knows, where it is named.

import { setTimeout as delay } from 'node:timers/promises';
import { RamferryError } from '../memory/errors.js';
import type { GuestFacts } from '../migration/guests.js';
import { LoadWitness } from '../qemu/load-witness.js';
import { QmpClient } from '../qemu/qmp-client.js';

/** Flags and description, for commander. */
export const QMP_OPTION = [
  '--qmp <uri>',
  "the destination's monitor, unix:PATH or tcp:HOST:PORT: says whether the guest runs, and why not",
] as const;

/** From the destination's last word to a guest that runs: its main loop has to come round. */
const RUNS_MS = 3000;
const POLL_MS = 20;

/** For an answer, of a monitor that may be busy or gone. */
const ANSWER_MS = 5000;

/** From a broken connection to a QEMU that has said why. */
const FAILS_MS = 1000;

/** States on the way to another one. */
const PASSING = ['inmigrate', 'finish-migrate', 'restore-vm'];
const PASSING_MIGRATION = ['setup', 'active', 'postcopy-device', 'postcopy-active', 'failing'];

/** How a guest is at its destination. */
export interface DestinationState {
  readonly document: {
    /** Whether the destination said that it has loaded everything. */
    readonly confirmed: boolean;
    /** What `query-status` says; undefined where nobody could ask. */
    readonly state?: string;
  };
  readonly text: string;
  readonly failure: RamferryError | undefined;
}

export class Destination {
  readonly #uri: string;
  readonly #monitor: QmpClient | undefined;
  readonly #witness: LoadWitness | undefined;
  #facts: GuestFacts | undefined;

  private constructor(uri: string, monitor: QmpClient | undefined) {
    this.#uri = uri;
    this.#monitor = monitor;
    this.#witness = monitor && new LoadWitness(monitor);
  }

  /**
   * @param needed a capability that the destination has to have on
   * @throws RamferryError if the monitor cannot be reached, or says that this cannot work: before anything is sent
   */
  static async open(uri: string, monitor: string | undefined, needed?: string): Promise<Destination> {
    if (monitor === undefined) {
      return new Destination(uri, undefined);
    }
    const qmp = await QmpClient.connect(monitor);
    try {
      const options = { timeoutMs: ANSWER_MS };
      const capabilities = await qmp.execute('query-migrate-capabilities', undefined, options);
      const isOn = (name: string): boolean =>
        capabilities.some(({ capability, state }) => state && capability === name);
      const refuse = (what: string, hint: string): never => {
        throw new RamferryError('failed', 'DESTINATION_SETUP', `The destination ${uri} ${what}.`, { file: uri, hint });
      };
      if (isOn('multifd')) {
        refuse('has multifd on, and would wait for connections that do not come', 'Switch the capability off there.');
      }
      if (needed !== undefined && !isOn(needed)) {
        refuse(`has ${needed} off`, 'Switch the capability on there, before migrate-incoming.');
      }
      const { 'tls-creds': credentials } = await qmp.execute('query-migrate-parameters', undefined, options);
      if (typeof credentials === 'string' && credentials !== '') {
        refuse('expects TLS', 'Set tls-creds to "" there: TLS is not supported.');
      }
      return new Destination(uri, qmp);
    } catch (error) {
      await qmp.close();
      throw error;
    }
  }

  expect(facts: GuestFacts): void {
    this.#facts = facts;
  }

  /** Asked once the migration is over, one way or another. */
  async stateAfter(error: RamferryError | undefined, isConfirmed: boolean): Promise<DestinationState> {
    if (error !== undefined) {
      const reason = await this.#reason();
      const failure =
        reason === undefined ? error : error.with({}, `${error.message} QEMU says: ${asSentence(reason)}`);
      return { document: { confirmed: false }, text: '', failure };
    }
    const state = await this.#settledState();
    const document = { confirmed: isConfirmed, ...(state !== undefined && { state }) };
    const runs = this.#facts?.runs ?? true;
    if (state === undefined) {
      return { document, text: unknownText(isConfirmed, runs), failure: undefined };
    }
    const isGood = ['running', 'suspended'].includes(state) || !runs;
    const failure = isGood
      ? undefined
      : new RamferryError(
          'failed',
          'GUEST_NOT_RUNNING',
          `The destination ${this.#uri} has loaded the guest, but does not run it: its state is ${state}.`,
          {
            file: this.#uri,
            value: state,
            hint:
              state === 'paused'
                ? 'cont in its monitor starts it, or says why it cannot. A QEMU with -S waits for that.'
                : 'That QEMU printed why: most often a disk that somebody else has locked. Start it anew when the disk is free.',
          },
        );
    return { document, text: `guest         ${state} (query-status of the destination)\n`, failure };
  }

  async close(): Promise<void> {
    await this.#monitor?.close();
  }

  /** Asked while the destination is silent: why it cannot load the devices, if its monitor knows that (`LoadWitness.ask`). */
  async whyNotLoaded(): Promise<RamferryError | undefined> {
    return this.#witness?.ask(this.#uri);
  }

  /** What the destination's `query-migrate` says about a failure. */
  async #reason(): Promise<string | undefined> {
    const monitor = this.#monitor;
    if (monitor === undefined) {
      return undefined;
    }
    try {
      for (const deadline = performance.now() + FAILS_MS; ; ) {
        const { status = 'none', 'error-desc': reason } = await monitor.execute('query-migrate', undefined, {
          timeoutMs: ANSWER_MS,
        });
        if (!PASSING_MIGRATION.includes(status) || performance.now() > deadline) {
          return reason ?? `its migration is ${status}`;
        }
        await delay(POLL_MS);
      }
    } catch (error) {
      return isTimeout(error)
        ? 'nothing: its monitor does not answer'
        : 'nothing more: its monitor is gone, and a QEMU that ends prints why';
    }
  }

  async #settledState(): Promise<string | undefined> {
    const monitor = this.#monitor;
    if (monitor === undefined) {
      return undefined;
    }
    const deadline = performance.now() + RUNS_MS;
    for (;;) {
      let state: string;
      try {
        ({ status: state } = await monitor.execute('query-status', undefined, { timeoutMs: ANSWER_MS }));
      } catch (error) {
        return isTimeout(error) ? 'unknown' : 'gone';
      }
      if (!PASSING.includes(state) || performance.now() > deadline) {
        return state;
      }
      await delay(POLL_MS);
    }
  }
}

const asSentence = (text: string): string => (text.endsWith('.') ? text : `${text}.`);

const isTimeout = (error: unknown): boolean => error instanceof RamferryError && error.code === 'QMP_TIMEOUT';

const unknownText = (isConfirmed: boolean, runs: boolean): string => {
  const loaded = isConfirmed ? 'loaded, as the destination confirms' : 'sent; the destination was not asked to confirm';
  const state = runs
    ? 'whether it runs there, query-status in its monitor says (or --qmp)'
    : 'it was saved while paused and stays so (--run: it runs)';
  return `guest         ${loaded}; ${state}\n`;
};
