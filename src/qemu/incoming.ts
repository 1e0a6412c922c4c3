// A QEMU that waits with `-incoming defer` gets its guest, and the guest runs.

import { setTimeout as delay } from 'node:timers/promises';
import { RamferryError } from '../memory/errors.js';
import type { QemuProcess } from './qemu-process.js';

/** A QEMU that failed to load a guest needs this long at most to be gone. */
export const QEMU_EXIT_MS = 2000;

const ENDED = ['completed', 'failed'];

/** A QEMU whose guest runs. Moments are those of `performance.now()`. */
export interface RestoredGuest {
  readonly qemu: QemuProcess;
  readonly startedAt: number;
  /** When it took commands. */
  readonly acceptedAt: number;
  readonly runsAt: number;
  /** Milliseconds from `migrate-incoming` until the guest ran. */
  readonly resumeMs: number;
}

export interface RunIncomingOptions {
  /** Capabilities to be set first. */
  readonly capabilities?: readonly string[];
  /** Leave the guest as its file says, also if that is paused. Default false. */
  readonly leavePaused?: boolean;
}

/**
 * Has QEMU load a guest from `uri` and resolves when the guest runs, with the milliseconds from `migrate-incoming` to
 * then. A guest that was saved while it was paused is told to go on.
 * @throws RamferryError QEMU_EXITED with QEMU's words if it cannot load it, INCOMING_FAILED if it says no more than that
 */
export const runIncoming = async (
  qemu: QemuProcess,
  uri: string,
  { capabilities = [], leavePaused = false }: RunIncomingOptions = {},
): Promise<number> => {
  const { qmp } = qemu;
  try {
    await qmp.execute('migrate-set-capabilities', {
      capabilities: ['events', ...capabilities].map((capability) => ({ capability, state: true })),
    });
    const resumed = qmp.waitEvent('RESUME');
    const ended = qmp.waitEvent('MIGRATION', { where: ({ data }) => ENDED.includes(String(data['status'])) });
    const start = performance.now();
    await qmp.execute('migrate-incoming', { uri });
    // RESUME comes first, unless the guest is to stay paused; in postcopy, long before the end.
    const { event, data } = await Promise.race([resumed, ended]);
    if (data['status'] === 'failed') {
      // It exits and says why, unless its owner has turned exit-on-error off.
      await Promise.race([qemu.exited, delay(QEMU_EXIT_MS, undefined, { ref: false })]);
      throw qemu.isRunning
        ? new RamferryError('failed', 'INCOMING_FAILED', `QEMU could not load the guest. ${qemu.errorOutput.trim()}`)
        : qemu.exitError();
    }
    if (event !== 'RESUME' && !leavePaused) {
      await qmp.execute('cont');
      await resumed;
    }
    return performance.now() - start;
  } catch (error) {
    // A QEMU that cannot load exits. Its monitor goes first, its words come last.
    if (error instanceof RamferryError && ['QMP_CLOSED', 'QMP_CONNECTION'].includes(error.code)) {
      await qemu.exited;
      throw qemu.exitError();
    }
    throw error;
  }
};
