// A QEMU that waits with `-incoming defer` gets its guest, and the guest runs.

import { setTimeout as delay } from 'node:timers/promises';
import { RamferryError } from '../memory/errors.js';
import type { QemuProcess } from './qemu-process.js';
import { QmpCommandError } from './qmp-client.js';

/** A QEMU that failed to load a guest needs this long at most to be gone. */
export const QEMU_EXIT_MS = 2000;

/** Loading takes milliseconds to seconds; a QEMU that is at it for longer without an end is asked what it does. */
const LOAD_MS = 60_000;

/** How soon after RESUME `query-status` says so; a guest whose disk is locked never does. */
const RUNS_MS = 2000;
const RUNS_PAUSE_MS = 5;

const ENDED = ['completed', 'failed'];

/** A QEMU that has its guest. Moments are those of `performance.now()`. */
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
  /** Leave the guest as QEMU leaves it, also if that is paused. Default false: it is to run. */
  readonly leavePaused?: boolean;
  /** Ends the wait. What becomes of the QEMU is the caller's matter. */
  readonly signal?: AbortSignal | undefined;
  /** For how long QEMU may be at it. Default 60 s. */
  readonly timeoutMs?: number;
}

/**
 * Has QEMU load a guest from `uri` and resolves when `query-status` says that the guest runs, with the milliseconds from
 * `migrate-incoming` to the moment at which QEMU started it. A guest that was saved while it was paused is told to go on.
 * @throws RamferryError QEMU_EXITED with QEMU's words if it cannot load it, INCOMING_FAILED if it says no more than that,
 *   GUEST_NOT_RUNNING with its reason if it has loaded the guest and does not let it run
 */
export const runIncoming = async (
  qemu: QemuProcess,
  uri: string,
  { capabilities = [], leavePaused = false, signal, timeoutMs = LOAD_MS }: RunIncomingOptions = {},
): Promise<number> => {
  const { qmp } = qemu;
  try {
    await qmp
      .execute('migrate-set-capabilities', {
        capabilities: ['events', ...capabilities].map((capability) => ({ capability, state: true })),
      })
      .catch((error: unknown) => {
        throw withPrivilegeHint(error);
      });
    const resumed = qmp.waitEvent('RESUME', { timeoutMs });
    const ended = qmp.waitEvent('MIGRATION', {
      where: ({ data }) => ENDED.includes(String(data['status'])),
      timeoutMs,
    });
    const start = performance.now();
    await unlessAborted(qmp.execute('migrate-incoming', { uri }), signal);
    // RESUME comes first, unless the guest is to stay paused; in postcopy, long before the end.
    const { event, data } = await unlessAborted(Promise.race([resumed, ended]), signal);
    if (data['status'] === 'failed') {
      // It exits and says why, unless its owner has turned exit-on-error off.
      await Promise.race([qemu.exited, delay(QEMU_EXIT_MS, undefined, { ref: false })]);
      throw qemu.isRunning ? await incomingFailed(qemu) : qemu.exitError();
    }
    const resumeMs = performance.now() - start;
    if (leavePaused) {
      return resumeMs;
    }
    if (event !== 'RESUME') {
      await letRun(qemu);
      return performance.now() - start;
    }
    await unlessAborted(untilRunning(qemu), signal);
    return resumeMs;
  } catch (error) {
    signal?.throwIfAborted();
    // A QEMU that cannot load exits. Its monitor goes first, its words come last.
    if (error instanceof RamferryError && ['QMP_CLOSED', 'QMP_CONNECTION'].includes(error.code)) {
      await qemu.exited;
      throw qemu.exitError();
    }
    throw error instanceof RamferryError && error.code === 'QMP_TIMEOUT' && qemu.isRunning
      ? await stillLoading(qemu, timeoutMs)
      : error;
  }
};

/** QEMU needs userfaultfd for postcopy, and a kernel may keep it from ordinary users. */
const withPrivilegeHint = (error: unknown): unknown =>
  error instanceof QmpCommandError && /userfaultfd/i.test(error.description)
    ? error.with({
        hint: 'Root allows it by setting vm.unprivileged_userfaultfd=1 (sysctl). A mapped-ram file needs none of it: clone --by map.',
      })
    : error;

/** Resolves once `query-status` says that the guest runs: QEMU says RESUME before it is known whether it may. */
const untilRunning = async (qemu: QemuProcess): Promise<void> => {
  const deadline = performance.now() + RUNS_MS;
  for (;;) {
    const { running, status } = await qemu.qmp.execute('query-status');
    // A suspended guest sleeps, as it did when it was saved.
    if (running || status === 'suspended') {
      return;
    }
    if (performance.now() > deadline) {
      await letRun(qemu);
      return;
    }
    await delay(RUNS_PAUSE_MS);
  }
};

/** Tells a loaded guest to go on: QEMU's answer says why it does not, a locked disk for example. */
const letRun = async (qemu: QemuProcess): Promise<void> => {
  try {
    await qemu.qmp.execute('cont');
  } catch (error) {
    if (error instanceof QmpCommandError) {
      throw notRunning(qemu, error.message, error);
    }
    throw error;
  }
  const { running, status } = await qemu.qmp.execute('query-status');
  if (!running && status !== 'suspended') {
    throw notRunning(qemu, `Its state is ${status}.`);
  }
};

const notRunning = (qemu: QemuProcess, why: string, cause?: unknown): RamferryError => {
  const words = qemu.errorOutput.trim();
  const said = words === '' || why.includes(words) ? '' : ` QEMU said: ${words}`;
  return new RamferryError(
    'failed',
    'GUEST_NOT_RUNNING',
    `The guest is loaded, but QEMU does not let it run. ${why}${said}`,
    {
      cause,
    },
  );
};

const incomingFailed = async (qemu: QemuProcess): Promise<RamferryError> => {
  const { 'error-desc': reason } = await qemu.qmp.execute('query-migrate').catch(() => ({ 'error-desc': undefined }));
  const words = [reason, qemu.errorOutput.trim()].filter((text) => text !== undefined && text !== '').join(' ');
  return new RamferryError('failed', 'INCOMING_FAILED', `QEMU could not load the guest. ${words}`.trim());
};

/** What a QEMU says of itself that does not come to an end. */
const stillLoading = (qemu: QemuProcess, timeoutMs: number): Promise<RamferryError> =>
  withWords(
    qemu,
    new RamferryError('failed', 'INCOMING_TIMEOUT', `QEMU has not loaded the guest within ${timeoutMs / 1000} s.`, {
      value: timeoutMs,
    }),
  );

/** An error that came about with a QEMU that runs on, with its state and its own words. */
export const withWords = async <Reason>(qemu: QemuProcess, reason: Reason): Promise<Reason | RamferryError> => {
  if (!(reason instanceof RamferryError)) {
    return reason;
  }
  const ask = async (): Promise<string> => {
    const { status } = await qemu.qmp.execute('query-status', undefined, { timeoutMs: QEMU_EXIT_MS });
    const migration = await qemu.qmp.execute('query-migrate', undefined, { timeoutMs: QEMU_EXIT_MS });
    return `it is ${status}, its migration is ${migration.status ?? 'none'}`;
  };
  const state = await ask().catch(() => 'its monitor does not answer');
  const words = qemu.errorOutput.trim();
  const message = `${reason.message} Of that QEMU: ${state}.`;
  return reason.with({}, words === '' ? message : `${message} It said: ${words}`);
};

/** Settles as `work` does, or rejects with the signal's reason. */
const unlessAborted = async <Result>(work: Promise<Result>, signal: AbortSignal | undefined): Promise<Result> => {
  if (signal === undefined) {
    return work;
  }
  // Whoever ended the wait kills the QEMU, and the work fails with that when nobody waits for it any more.
  work.catch(() => {});
  signal.throwIfAborted();
  let stop = (): void => {};
  const aborted = new Promise<never>((_, reject) => {
    stop = () => reject(signal.reason);
    signal.addEventListener('abort', stop);
  });
  return Promise.race([work, aborted]).finally(() => signal.removeEventListener('abort', stop));
};
