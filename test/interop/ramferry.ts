// The command line under test, as its users run it: bin/ramferry.js as a child process.

import { type ChildProcess, spawn } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Lab, poll } from './lab.js';

const bin = join(dirname(fileURLToPath(import.meta.url)), '..', '..', '..', 'bin', 'ramferry.js');

export interface RamferryExit {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A running verb. */
export class Ramferry {
  /** Resolves when it is gone and everything it printed has been read. */
  readonly exited: Promise<RamferryExit>;
  readonly #child: ChildProcess;
  #stdout = '';
  #stderr = '';

  private constructor(child: ChildProcess) {
    this.#child = child;
    child.stdout?.setEncoding('utf8').on('data', (text) => (this.#stdout += text));
    child.stderr?.setEncoding('utf8').on('data', (text) => (this.#stderr += text));
    this.exited = new Promise((resolve) => {
      child.once('close', (status, signal) => {
        resolve({ status, signal, stdout: this.#stdout, stderr: this.#stderr });
      });
    });
  }

  static start(lab: Lab, ...verbAndArguments: readonly string[]): Ramferry {
    return Ramferry.startWith(lab, {}, ...verbAndArguments);
  }

  /** The same with more environment variables. */
  static startWith(lab: Lab, environment: NodeJS.ProcessEnv, ...verbAndArguments: readonly string[]): Ramferry {
    const child = spawn(process.execPath, [bin, ...verbAndArguments], {
      env: { ...process.env, ...environment },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const ramferry = new Ramferry(child);
    lab.onClose(async () => {
      child.kill('SIGKILL');
      await ramferry.exited;
    });
    return ramferry;
  }

  static run(lab: Lab, ...verbAndArguments: readonly string[]): Promise<RamferryExit> {
    return Ramferry.start(lab, ...verbAndArguments).exited;
  }

  /** The URI of "listening on URI", once it says so. */
  async listening(): Promise<string> {
    return (await this.says(/listening on (\S+)/))[1]!;
  }

  /** Resolves once what it said on stderr matches. */
  async says(pattern: RegExp): Promise<RegExpExecArray> {
    return poll(
      () => {
        const match = pattern.exec(this.#stderr) ?? undefined;
        if (match === undefined && this.#child.exitCode !== null) {
          throw new Error(`it ended with status ${this.#child.exitCode}: ${this.#stderr}${this.#stdout}`);
        }
        return match;
      },
      () => `it has not said ${pattern}: ${this.#stderr}`,
    );
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }
}
