// Starting a QEMU of our own: with a private monitor socket, its complaints kept for the error message, and the
// certainty that it does not outlive this process.

import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { RamferryError } from '../memory/errors.js';
import { QmpClient } from './qmp-client.js';

export interface QemuExit {
  /** Exit status, or null if a signal ended it. */
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface QemuStartOptions {
  /** How long QEMU may take until its monitor answers. It takes 30-40 ms (spec/qemu-lab.md G2), more on a busy machine. */
  readonly timeoutMs?: number;
}

/** Enough for QEMU's own words; a QEMU that logs without end does not fill our memory. */
const KEPT_ERROR_CHARACTERS = 64 * 1024;

/** A QEMU that does not quit within this time of being asked has a blocked main loop (spec/qemu-lab.md C) and is killed. */
const QUIT_TIMEOUT_MS = 5000;

const MONITOR_POLL_MS = 5;

/** What must not outlive this process, whichever way it ends short of SIGKILL. */
const running = new Set<QemuProcess>();
let watchingExit = false;

const killAllOnExit = (): void => {
  if (!watchingExit) {
    watchingExit = true;
    process.on('exit', () => {
      for (const qemu of running) {
        qemu.kill();
        qemu.removeFolder();
      }
    });
  }
};

/** A running QEMU with its monitor. */
export class QemuProcess {
  readonly pid: number;
  /** Resolves when the process is gone; never rejects. */
  readonly exited: Promise<QemuExit>;

  readonly #child: ChildProcess;
  readonly #folder: string;
  #qmp: QmpClient | undefined;
  #exit: QemuExit | undefined;
  #errorOutput = '';

  private constructor(child: ChildProcess, folder: string) {
    this.#child = child;
    this.#folder = folder;
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
        this.removeFolder();
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
    const [program, ...programArguments] = command;
    if (program === undefined) {
      throw new RamferryError('usage', 'QEMU_COMMAND', 'The QEMU command line is empty.');
    }
    // A socket path may have 107 bytes; a folder right below the temporary folder keeps it short.
    const folder = mkdtempSync(join(tmpdir(), 'ramferry-'));
    const socket = join(folder, 'qmp');
    const child = spawn(program, [...programArguments, '-qmp', `unix:${socket},server=on,wait=off`], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    const qemu = new QemuProcess(child, folder);
    try {
      qemu.#qmp = await qemu.#connectMonitor(socket, options.timeoutMs ?? 30_000);
    } catch (error) {
      qemu.kill();
      await qemu.exited;
      throw error;
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
        : code !== null
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

  /** @internal */
  removeFolder(): void {
    rmSync(this.#folder, { recursive: true, force: true });
  }

  async #connectMonitor(socket: string, timeoutMs: number): Promise<QmpClient> {
    const deadline = performance.now() + timeoutMs;
    while (performance.now() < deadline) {
      if (!this.isRunning) {
        throw this.exitError();
      }
      if (existsSync(socket)) {
        try {
          return await QmpClient.connect(`unix:${socket}`, { timeoutMs: Math.max(1, deadline - performance.now()) });
        } catch (error) {
          // Between QEMU's bind and its listen, or while it dies: the next turn finds out.
          if (!(error instanceof RamferryError) || !['QMP_CONNECTION', 'QMP_CLOSED'].includes(error.code)) {
            throw error;
          }
        }
      }
      await delay(MONITOR_POLL_MS);
    }
    throw new RamferryError('failed', 'QMP_TIMEOUT', `QEMU's monitor did not answer within ${timeoutMs} ms.`);
  }
}
