// The command line as its users run it: bin/ramferry.js as a child process.

import { type ChildProcess, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/** The command's entry. */
export const bin = fileURLToPath(new URL('../../bin/ramferry.js', import.meta.url));

export interface CommandResult {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

interface Start {
  /** What to start in place of the command under test. */
  readonly program?: readonly string[];
  readonly cwd?: string;
}

export class RunningCommand {
  readonly child: ChildProcess;
  /** Resolves when it is gone and everything it printed has been read. */
  readonly ended: Promise<CommandResult>;
  #stdout = '';
  #stderr = '';
  #noted: () => void = () => {};

  constructor(
    args: readonly string[],
    env: Record<string, string> = {},
    { program = [process.execPath, bin], cwd }: Start = {},
  ) {
    this.child = spawn(program[0]!, [...program.slice(1), ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...env },
      ...(cwd !== undefined && { cwd }),
    });
    this.child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      this.#stdout += text;
    });
    this.child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr += text;
      this.#noted();
    });
    this.ended = new Promise((resolve) => {
      this.child.once('close', (status, signal) => {
        resolve({ status, signal, stdout: this.#stdout, stderr: this.#stderr });
        this.#noted();
      });
    });
  }

  /** What it has printed there so far. */
  get stderr(): string {
    return this.#stderr;
  }

  get stdout(): string {
    return this.#stdout;
  }

  /** Resolves with the URI once it says "listening on URI"; rejects if it ends before. */
  async listening(): Promise<string> {
    for (;;) {
      const uri = /^listening on (\S+)$/m.exec(this.#stderr)?.[1];
      if (uri !== undefined) {
        return uri;
      }
      if (this.child.exitCode !== null || this.child.signalCode !== null) {
        throw new Error(`It ended instead of listening: ${this.#stderr}`);
      }
      await new Promise<void>((resolve) => {
        this.#noted = resolve;
      });
    }
  }

  /** The most memory it ever had resident, in bytes; 0 once it is gone. */
  peakResidentBytes(): number {
    try {
      const status = readFileSync(`/proc/${this.child.pid}/status`, 'utf8');
      return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0) * 1024;
    } catch {
      return 0;
    }
  }
}

export const runCommand = (...args: readonly string[]): Promise<CommandResult> => new RunningCommand(args).ended;
