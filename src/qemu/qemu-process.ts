// Starting a QEMU of our own: with a private monitor, its complaints kept for the error message, and the certainty that
// it does not outlive this process.
//
//   descriptor in QEMU   0, 1       2        3                             4, 5, …
//                        /dev/null  stderr   a socket pair: the monitor    files lent to it (/proc/self/fd/4, fd:4)
//
// A socket pair has no name: nobody else can connect, and however this process ends, no socket file stays.

import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { delimiter, join } from 'node:path';
import { RamferryError } from '../memory/errors.js';
import { isAtLeast } from './find-qemu.js';
import { type QemuVersion, QmpClient } from './qmp-client.js';

export interface QemuExit {
  /** Exit status, or null if a signal ended it. */
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface QemuStartOptions {
  /** How long QEMU may take until its monitor answers. It takes 30-40 ms (spec/qemu-lab.md G2), more on a busy machine. */
  readonly timeoutMs?: number;
  /** QEMU's version, where it is known: since 11.1 a monitor is an object, and the older way is deprecated. */
  readonly version?: QemuVersion;
  /** Ends the QEMU while it starts; a QEMU that runs is no longer touched. */
  readonly signal?: AbortSignal | undefined;
  /** Open files that QEMU inherits as descriptors FIRST_LENT_DESCRIPTOR and up. They stay open here. */
  readonly lend?: readonly number[];
}

const MONITOR_DESCRIPTOR = 3;
const MONITOR_CHARDEV = 'socket,id=ramferry-qmp';

/** What the first of `QemuStartOptions.lend` is called in QEMU. */
export const FIRST_LENT_DESCRIPTOR = 4;

/** Enough for QEMU's own words; a QEMU that logs without end does not fill our memory. */
const KEPT_ERROR_CHARACTERS = 64 * 1024;

/** A QEMU that does not quit within this time of being asked has a blocked main loop (spec/qemu-lab.md C) and is killed. */
const QUIT_TIMEOUT_MS = 5000;

/** What must not outlive this process, where the kernel does not see to it. */
const running = new Set<QemuProcess>();
let watchingExit = false;

const killAllOnExit = (): void => {
  if (!watchingExit) {
    watchingExit = true;
    process.on('exit', () => {
      for (const qemu of running) {
        qemu.kill();
      }
    });
  }
};

/**
 * The command such that the kernel kills it when this process ends, by SIGKILL too: setpriv(1) of util-linux asks for
 * that and then becomes the command. Should this process have ended before it could ask, the shell sees another parent
 * and starts nothing. "This process" is the thread that starts it, as Linux counts: a worker's QEMU ends with the worker.
 * Where there is no setpriv, `killAllOnExit` still covers every end but SIGKILL.
 */
const endingWithUs = (command: readonly string[]): readonly string[] => {
  setpriv ??= (process.env['PATH'] ?? '')
    .split(delimiter)
    .map((folder) => join(folder, 'setpriv'))
    .some(existsSync);
  const guard = ['setpriv', '--pdeathsig', 'KILL', '--', '/bin/sh', '-c', '[ "$PPID" = "$0" ] && exec "$@"'];
  return setpriv ? [...guard, String(process.pid), ...command] : command;
};
let setpriv: boolean | undefined;

/**
 * Refuses a script that started QEMU as a child and waits for it: to end the script would leave the QEMU behind.
 * Where the system does not list children, nothing is refused.
 */
const refuseParent = (pid: number, program: string): void => {
  let children: string[];
  try {
    children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean);
  } catch {
    return;
  }
  const isQemu = (child: string): boolean => {
    try {
      return readFileSync(`/proc/${child}/cmdline`, 'latin1').includes(MONITOR_CHARDEV);
    } catch {
      return false;
    }
  };
  if (children.some(isQemu)) {
    throw new RamferryError('usage', 'QEMU_COMMAND', `${program} starts QEMU as a process of its own, and stays.`, {
      value: program,
      hint: 'Let it become QEMU: exec qemu-system-x86_64 … "$@"',
    });
  }
};

/** How a shell's exit status says that it found no program to run, or none it may run. */
const NOT_STARTED = [126, 127];

/** A running QEMU with its monitor. */
export class QemuProcess {
  readonly pid: number;
  /** Resolves when the process is gone; never rejects. */
  readonly exited: Promise<QemuExit>;

  readonly #child: ChildProcess;
  #qmp: QmpClient | undefined;
  #exit: QemuExit | undefined;
  #errorOutput = '';

  private constructor(child: ChildProcess) {
    this.#child = child;
    this.pid = child.pid ?? 0;
    child.stderr?.setEncoding('utf8');
    child.stderr?.on('data', (text) => {
      this.#errorOutput = (this.#errorOutput + String(text)).slice(-KEPT_ERROR_CHARACTERS);
    });
    // 'close' comes after the last byte of stderr, 'exit' may come before; an 'error' is a command that cannot be run.
    this.exited = new Promise((resolve) => {
      const gone = (code: number | null, signal: NodeJS.Signals | null): void => {
        this.#exit ??= { code, signal };
        running.delete(this);
        resolve(this.#exit);
      };
      child.once('close', gone);
      child.once('error', (error) => {
        this.#errorOutput += error.message;
        gone(null, null);
      });
    });
    running.add(this);
    killAllOnExit();
  }

  /**
   * Starts `command` (program and arguments, without a monitor of ours) and resolves when its monitor is negotiated.
   * Throws a `RamferryError` QEMU_EXITED with what it printed if it ends before that, QMP_TIMEOUT if it never answers.
   */
  static async start(command: readonly string[], options: QemuStartOptions = {}): Promise<QemuProcess> {
    if (command.length === 0) {
      throw new RamferryError('usage', 'QEMU_COMMAND', 'The QEMU command line is empty.');
    }
    options.signal?.throwIfAborted();
    const [program, ...programArguments] = endingWithUs([
      ...command,
      ...['-chardev', `${MONITOR_CHARDEV},fd=${MONITOR_DESCRIPTOR}`],
      ...(options.version !== undefined && isAtLeast(options.version, 11, 1)
        ? ['-object', 'monitor-qmp,id=ramferry-monitor,chardev=ramferry-qmp']
        : ['-mon', 'chardev=ramferry-qmp,mode=control']),
    ]);
    const child = spawn(program!, programArguments, {
      stdio: ['ignore', 'ignore', 'pipe', 'pipe', ...(options.lend ?? [])],
    });
    const qemu = new QemuProcess(child);
    const cancel = (): void => qemu.kill();
    options.signal?.addEventListener('abort', cancel);
    try {
      qemu.#qmp = await QmpClient.negotiate(
        child.stdio[MONITOR_DESCRIPTOR] as Socket,
        `the monitor of QEMU ${qemu.pid}`,
        { timeoutMs: options.timeoutMs ?? 30_000 },
      );
      refuseParent(qemu.pid, command[0]!);
    } catch (error) {
      if (error instanceof RamferryError && error.code === 'QEMU_COMMAND') {
        await qemu.quit();
        throw error;
      }
      if (error instanceof RamferryError && error.code !== 'QMP_TIMEOUT') {
        // It is going, and says why when it is gone.
        setTimeout(() => qemu.kill(), QUIT_TIMEOUT_MS).unref();
        await qemu.exited;
        options.signal?.throwIfAborted();
        throw qemu.exitError();
      }
      qemu.kill();
      await qemu.exited;
      throw error;
    } finally {
      options.signal?.removeEventListener('abort', cancel);
    }
    return qemu;
  }

  get qmp(): QmpClient {
    return this.#qmp!;
  }

  /** The end of what QEMU printed on stderr. */
  get errorOutput(): string {
    return this.#errorOutput;
  }

  get isRunning(): boolean {
    return this.#exit === undefined;
  }

  /** The error that says how it ended and why. */
  exitError(): RamferryError {
    const { code, signal } = this.#exit ?? { code: null, signal: null };
    const how =
      signal !== null
        ? `was ended by ${signal}`
        : code !== null && !NOT_STARTED.includes(code)
          ? `exited with status ${code}`
          : 'could not be started';
    const words = this.#errorOutput.trim();
    return new RamferryError('failed', 'QEMU_EXITED', `QEMU ${how}${words === '' ? '' : `: ${words}`}.`, {
      value: signal ?? code ?? '',
    });
  }

  /** Asks QEMU to quit, kills it if it does not; resolves when it is gone. */
  async quit(): Promise<QemuExit> {
    if (this.isRunning) {
      // The connection may close before the reply: either way it is going.
      this.#qmp?.execute('quit').catch(() => {});
      const killer = setTimeout(() => this.kill(), QUIT_TIMEOUT_MS);
      await this.exited;
      clearTimeout(killer);
    }
    return this.exited;
  }

  /** Ends the process at once, without a chance to save anything. */
  kill(): void {
    this.#child.kill('SIGKILL');
  }
}
