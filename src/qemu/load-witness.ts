// What the monitor of a QEMU knows of the devices that it was sent by postcopy, when its migration's connection is silent.
//
// Since 10.2 such a QEMU is in `postcopy-device` from the moment at which it has the devices until it has loaded them. It loads them
// in its main loop, which answers no monitor meanwhile; and in front of its next turn it has said on the connection that it has
// done so. So a monitor that answers "postcopy-device", while nothing comes, belongs to a QEMU that could not load them. 11.1
// stays so until its source closes the connection, prints why, and exits.

import { setTimeout as delay } from 'node:timers/promises';
import { RamferryError } from '../memory/errors.js';
import type { QmpClient } from './qmp-client.js';

/** For an answer: a QEMU that loads gives none. */
const ANSWER_MS = 10_000;

/** What QEMU has said on the connection is here by then, also where the monitor's way is the shorter one. */
const OTHER_WAY_MS = 300;

const FAILED = ['failed', 'failing'];
const HAS_DEVICES = 'postcopy-device';

/** Asks the monitor of a destination, one question at a time. */
export class LoadWitness {
  readonly #qmp: QmpClient;
  #isAsking = false;

  constructor(qmp: QmpClient) {
    this.#qmp = qmp;
  }

  /**
   * Asks why the destination says nothing. Resolves with an error if it cannot load the devices, which is no longer true if it says
   * that it has loaded them before this resolves; with undefined if it may be at it, if nobody knows, or if it is being asked already.
   */
  async ask(uri: string): Promise<RamferryError | undefined> {
    if (this.#isAsking) {
      return undefined;
    }
    this.#isAsking = true;
    try {
      return await this.#ask(uri);
    } catch {
      // A monitor that is busy or gone says nothing against its QEMU.
      return undefined;
    } finally {
      this.#isAsking = false;
    }
  }

  async #ask(uri: string): Promise<RamferryError | undefined> {
    let info = await this.#info();
    if (info.status === HAS_DEVICES) {
      await delay(OTHER_WAY_MS, undefined, { ref: false });
      info = await this.#info();
    }
    const { status } = info;
    if (status === undefined || ![...FAILED, HAS_DEVICES].includes(status)) {
      return undefined;
    }
    const reason = info['error-desc'];
    const { status: runState } = await this.#qmp.execute('query-status', undefined, { timeoutMs: ANSWER_MS });
    return new RamferryError(
      'failed',
      'DEVICES_NOT_LOADED',
      `The destination ${uri} cannot load the devices${reason === undefined ? '' : `: ${reason}`}. Its migration is ${status}, the guest ${runState}.`,
      {
        file: uri,
        value: status,
        hint: 'It needs the same machine and devices as the guest had. QEMU prints what does not fit.',
      },
    );
  }

  #info() {
    return this.#qmp.execute('query-migrate', undefined, { timeoutMs: ANSWER_MS });
  }
}
