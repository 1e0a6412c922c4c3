// C twins: programs in bench/c that do the same work as our code, compiled when a benchmark wants them and a compiler is
// there. A twin answers each command line on its stdin with one line of numbers, so runs can alternate with ours.

import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

// dist/bench/c-twin.js is two folders below the root.
const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

const COMPILER = process.env['CC'] ?? 'cc';
const FLAGS = ['-O3', '-march=native', '-pthread'];

export interface CTwin {
  /** Sends one command and returns the numbers of the answer. */
  ask(command: string): Promise<readonly number[]>;
  close(): void;
}

/** Compiles bench/c/NAME.c into the ignored folder .toolbox, or returns why that was not possible. */
const compile = (name: string): { program: string } | { missing: string } => {
  const source = join(root, 'bench', 'c', `${name}.c`);
  // -march=native makes the program good for this machine only, hence the flags and the source in the name.
  const digest = createHash('sha256').update(readFileSync(source)).update(FLAGS.join()).digest('hex').slice(0, 12);
  const program = join(root, '.toolbox', `bench-${name}-${digest}`);
  if (existsSync(program)) {
    return { program };
  }
  mkdirSync(dirname(program), { recursive: true });
  try {
    execFileSync(COMPILER, [...FLAGS, '-o', program, source], { stdio: ['ignore', 'ignore', 'pipe'] });
    return { program };
  } catch (error) {
    const { code, stderr } = error as { code?: string; stderr?: Buffer };
    const reason =
      code === 'ENOENT' ? `no C compiler (${COMPILER})` : `${COMPILER} failed: ${stderr?.toString().split('\n')[0]}`;
    return { missing: reason };
  }
};

/** Starts the C twin bench/c/NAME.c with the given arguments. */
export const startCTwin = (name: string, args: readonly string[]): CTwin | { readonly missing: string } => {
  const compiled = compile(name);
  if ('missing' in compiled) {
    return compiled;
  }
  const child = spawn(compiled.program, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  const answers = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    async ask(command) {
      child.stdin.write(`${command}\n`);
      const answer = await answers.next();
      if (answer.done === true) {
        throw new Error(`the C twin ${name} ended at "${command}"`);
      }
      return answer.value.split(' ').map(Number);
    },
    close() {
      child.kill();
    },
  };
};

/** The twin `stream`, for benchmarks that cannot do without it. */
export const requireStreamTwin = (group: string, what: string): CTwin => {
  const twin = startCTwin('stream', []);
  if ('missing' in twin) {
    throw new Error(`The ${group} benchmarks need a C program ${what}: ${twin.missing}`);
  }
  return twin;
};

/**
 * Touches so much memory and gives it back, before something that takes as much is measured. In a virtual machine that
 * gives free memory back to its host (balloon, free page reporting) memory that was not touched lately costs ten times as
 * much, whoever touches it, and a benchmark of receivers and of files would be one of the host. `stream`: the twin of that name.
 */
export const warmMemory = async (stream: CTwin, bytes: number): Promise<void> => {
  await stream.ask(`warm ${Math.ceil(bytes)}`);
};

/**
 * The same for what is measured longer than the host waits, and keeps the memory until the next call; 0 gives it back. For
 * files: it leaves no room for huge pages.
 */
export const keepMemory = async (stream: CTwin, bytes: number): Promise<void> => {
  await stream.ask(`keep ${Math.ceil(bytes)}`);
};
