// What a verb of the command line is: one file each, loaded only when it is used, so that `--help` is quick.

import type { Command } from 'commander';
import type { RamferryError } from '../memory/errors.js';
import type { FilesOfRun } from './files-of-run.js';
import type { Progress } from './progress.js';

/** What a verb is given when it runs. */
export interface Invocation<Options> {
  /** Operands as typed, those behind `--` included; commander has checked their number. */
  readonly operands: readonly string[];
  readonly options: Options;
  /** Aborted by Ctrl-C. The verb cleans up and rejects; the command line reports that it was cancelled. */
  readonly signal: AbortSignal;
  /** All that goes to stderr. */
  readonly progress: Progress;
  /**
   * Prints the result while the verb goes on, for a verb whose work is done long before it ends. What it returns in the
   * end is not printed then; a failure still is, on stderr.
   */
  publish(result: Pick<VerbResult, 'document' | 'text'>): Promise<void>;
  /**
   * Prints a part of a result that is too long to be kept, in place of one that is returned: text or, with `--json`, a part of
   * the one document. Resolves with false if nobody reads it any more.
   */
  printPart(text: string): Promise<boolean>;
}

/** What a verb leaves on stdout. */
export interface VerbResult {
  /** The JSON document of `--json`. */
  readonly document: object;
  /** What people read instead; empty for nothing at all. */
  readonly text: string;
  /** Set if there is a result to show although the verb failed (a mismatch that `verify` found). */
  readonly failure?: RamferryError | undefined;
}

export interface Verb<Options = object> {
  /** Adds the verb's own options; `--json`, `--quiet` and `--help` are there already. */
  configure(command: Command): void;
  /** What to type behind `ramferry VERB`, each with what it does. */
  readonly examples: readonly (readonly [commandLine: string, meaning: string])[];
  /** Of a verb that writes files: the command line refuses a run that would write into what it reads. */
  files?(operands: readonly string[], options: Options): FilesOfRun;
  run(invocation: Invocation<Options>): Promise<VerbResult>;
}

/** A verb as the overview lists it. */
export interface VerbEntry {
  readonly name: string;
  /** In commander's notation: `<file> [uri...]`. */
  readonly operands: string;
  /** One line, in the third person: "says what …". */
  readonly summary: string;
  /** A command line behind `ramferry` that shows what the verb is for. */
  readonly example: string;
  readonly load: () => Promise<Verb>;
}
