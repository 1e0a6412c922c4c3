// Runs one command line: finds the verb, runs it, and keeps the contract of DESIGN section 4 about stdout, exit status
// and Ctrl-C, so that a verb has only its own work to do.

import { RamferryError } from '../memory/errors.js';
import { EXIT_STATUS, failureText, isDebug, toFailure } from './failure.js';
import { type FilesOfRun, refuseToWriteInputs } from './files-of-run.js';
import { chosenEntry, type ParsedCommand, parseCommandLine, verbFirst } from './parse-command-line.js';
import { Progress } from './progress.js';
import { Report, writeAll } from './report.js';
import { STDOUT } from './stdout-output.js';
import { canRedraw, terminalColors } from './terminal.js';
import type { VerbEntry, VerbResult } from './verb.js';

/** Aborts at the first signal that asks to end; the next one ends the process, as if nobody had listened. */
const abortedBySignals = (progress: Progress): AbortSignal => {
  const controller = new AbortController();
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  const cancel = (): void => {
    for (const signal of signals) {
      process.off(signal, cancel);
    }
    progress.note('cancelling (once more ends it at once)');
    controller.abort(new RamferryError('failed', 'CANCELLED', 'Cancelled.'));
  };
  for (const signal of signals) {
    process.on(signal, cancel);
  }
  return controller.signal;
};

const runVerb = async (
  { verb, operands, options }: ParsedCommand,
  files: FilesOfRun | undefined,
  progress: Progress,
  report: Report,
): Promise<VerbResult> => {
  if (files !== undefined) {
    refuseToWriteInputs(files);
  }
  const signal = abortedBySignals(progress);
  const publish = async (result: Partial<VerbResult>): Promise<void> => {
    progress.finish();
    const unwritten = await report.print(result);
    if (unwritten !== undefined) {
      throw unwritten;
    }
  };
  try {
    return await verb.run({
      ...{ operands, options, signal, progress, publish },
      printPart: (text) => report.printPart(text),
    });
  } catch (error) {
    // Whatever broke because of the cancellation, the cancellation is the reason.
    signal.throwIfAborted();
    throw error;
  } finally {
    progress.finish();
  }
};

/** Never returns: it ends the process, so that a forgotten handle cannot keep a finished command from ending. */
export const runCommandLine = async (verbs: readonly VerbEntry[], typedWords: readonly string[]): Promise<never> => {
  const argv = verbFirst(typedWords);
  const entry = chosenEntry(verbs, argv);
  // The options as typed count until they are parsed, and when they cannot be.
  const typed = (option: string): boolean => argv.slice(0, [...argv, '--'].indexOf('--')).includes(option);
  const json = typed('--json');
  const progress = new Progress({
    stream: process.stderr,
    mode: typed('--quiet') ? 'none' : canRedraw(process.stderr) ? 'bar' : 'lines',
    now: () => performance.now(),
  });

  const report = new Report(json);
  const finish = async (result: Partial<VerbResult>): Promise<never> => {
    const isSaidElsewhere = json && !report.isPrinted;
    const unwritten = await report.print(result);
    const failure = unwritten === undefined ? result.failure : toFailure(unwritten, entry?.name);
    if (failure !== undefined && (!isSaidElsewhere || unwritten !== undefined || isDebug())) {
      await writeAll(process.stderr, failureText(failure, terminalColors(process.stderr)));
    }
    process.exit(failure === undefined ? 0 : EXIT_STATUS[failure.kind]);
  };
  const fail = (error: unknown): Promise<never> => {
    progress.finish();
    return finish({ failure: toFailure(error, entry?.name) });
  };

  // Errors of the two streams reach the callbacks of `writeAll`; nobody else needs to hear of them.
  process.stdout.on('error', () => {});
  process.stderr.on('error', () => {});
  process.on('uncaughtException', (error) => void fail(error));
  try {
    const parsed = await parseCommandLine(verbs, argv);
    if ('text' in parsed) {
      return await finish(parsed);
    }
    const files = parsed.verb.files?.(parsed.operands, parsed.options);
    if (files?.writes.includes(STDOUT) === true) {
      // Guest memory goes there, and nothing else.
      report.moveToStderr();
    }
    return await finish(await runVerb(parsed, files, progress, report));
  } catch (error) {
    return await fail(error);
  }
};
