// Runs one command line: finds the verb, runs it, and keeps the contract of DESIGN section 4 about stdout, exit status
// and Ctrl-C, so that a verb has only its own work to do.

import { createRequire } from 'node:module';
import { Command, CommanderError } from 'commander';
import { RamferryError } from '../memory/errors.js';
import { EXIT_STATUS, failureDocument, failureText, isDebug, toFailure } from './failure.js';
import { type FilesOfRun, refuseToWriteInputs } from './files-of-run.js';
import { Progress } from './progress.js';
import { jsonText, terminalText } from './safe-text.js';
import { STDOUT } from './stdout-output.js';
import { terminalColors } from './terminal.js';
import type { Verb, VerbEntry, VerbResult } from './verb.js';

const { version } = createRequire(import.meta.url)('../../../package.json') as { version: string };

const EXIT_STATUSES = `
Exit status: 0 done; 1 the operation failed; 2 wrong usage; 3 the input is not valid.`;

/** The first word that is a verb, also in `ramferry help VERB`. */
const chosenEntry = (verbs: readonly VerbEntry[], argv: readonly string[]): VerbEntry | undefined => {
  const words = argv.filter((word) => !word.startsWith('-'));
  const word = words[0] === 'help' ? words[1] : words[0];
  return verbs.find(({ name }) => name === word);
};

const examplesText = (examples: Verb['examples'], prefix: string): string =>
  `\nExamples:\n${examples.map(([line, meaning]) => `  $ ${prefix} ${line}\n      ${meaning}`).join('\n')}`;

interface ParsedCommand {
  readonly verb: Verb;
  readonly operands: readonly string[];
  readonly options: object;
}

/** Resolves with what to run, or with nothing where help or the version was printed. */
const parse = async (verbs: readonly VerbEntry[], argv: readonly string[]): Promise<ParsedCommand | undefined> => {
  const program = new Command('ramferry')
    .description('Guest RAM, moved: live migration, save, restore and inspection of virtual machine memory.')
    .version(version, '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print this help')
    .addHelpCommand(new Command('help').arguments('[verb]').summary('prints the help of a verb').helpGroup('Verbs:'))
    .commandsGroup('Verbs:')
    .usage('VERB [OPTIONS] …')
    .addHelpText('after', `\nExamples:\n${verbs.map(({ example }) => `  $ ramferry ${example}`).join('\n')}`)
    .addHelpText('after', `${EXIT_STATUSES}\nRun "ramferry VERB --help" for the options and examples of a verb.`)
    .configureOutput({ writeErr: () => {} })
    .exitOverride();
  const entry = chosenEntry(verbs, argv);
  let parsed: ParsedCommand | undefined;
  for (const { name, operands, summary, load } of verbs) {
    const command = program.command(name).summary(summary).description(`${name} ${summary}`);
    if (operands !== '') {
      command.arguments(operands);
    }
    if (name === entry?.name) {
      const verb = await load();
      verb.configure(command);
      command
        .option('--json', 'print one JSON document on stdout, and nothing else there')
        .option('--quiet', 'no progress on stderr')
        .addHelpText('after', `${examplesText(verb.examples, `ramferry ${name}`)}\n${EXIT_STATUSES}`)
        .action(() => {
          parsed = { verb, operands: command.args, options: command.opts() };
        });
    }
  }
  if (argv.length === 0) {
    program.outputHelp();
    return undefined;
  }
  try {
    await program.parseAsync(argv, { from: 'user' });
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) {
      return undefined;
    }
    throw error;
  }
  return parsed;
};

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
): Promise<VerbResult> => {
  if (files !== undefined) {
    refuseToWriteInputs(files);
  }
  const signal = abortedBySignals(progress);
  try {
    return await verb.run({ operands, options, signal, progress });
  } catch (error) {
    // Whatever broke because of the cancellation, the cancellation is the reason.
    signal.throwIfAborted();
    throw error;
  } finally {
    progress.finish();
  }
};

/** Resolves when all is written, with the error if it was not. A reader that went away (`| head`) is no failure of ours. */
const writeAll = (stream: NodeJS.WriteStream, text: string): Promise<Error | undefined> =>
  new Promise((resolve) => {
    stream.write(text, (error) => {
      resolve(error && (error as NodeJS.ErrnoException).code !== 'EPIPE' ? error : undefined);
    });
  });

/** Never returns: it ends the process, so that a forgotten handle cannot keep a finished command from ending. */
export const runCommandLine = async (verbs: readonly VerbEntry[], argv: readonly string[]): Promise<never> => {
  const entry = chosenEntry(verbs, argv);
  // The options as typed count until they are parsed, and when they cannot be.
  const typed = (option: string): boolean => argv.slice(0, [...argv, '--'].indexOf('--')).includes(option);
  const json = typed('--json');
  const progress = new Progress({
    stream: process.stderr,
    mode: typed('--quiet') ? 'none' : process.stderr.isTTY ? 'bar' : 'lines',
    now: () => performance.now(),
  });

  let report: NodeJS.WriteStream = process.stdout;
  const finish = async ({ document, text = '', failure: verbFailure }: Partial<VerbResult>): Promise<never> => {
    const error = verbFailure && failureDocument(verbFailure);
    const unwritten = await writeAll(report, json ? jsonText({ ...document, error }) : terminalText(text));
    const failure = unwritten === undefined ? verbFailure : toFailure(unwritten, entry?.name);
    if (failure !== undefined && (!json || unwritten !== undefined || isDebug())) {
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
    const parsed = await parse(verbs, argv);
    const files = parsed?.verb.files?.(parsed.operands, parsed.options);
    if (files?.writes.includes(STDOUT) === true) {
      // Guest memory goes there, and nothing else.
      report = process.stderr;
    }
    const result = parsed === undefined ? undefined : await runVerb(parsed, files, progress);
    if (result === undefined) {
      // Help and version are printed already, as text whatever `--json` says.
      await writeAll(process.stdout, '');
      process.exit(0);
    }
    return await finish(result);
  } catch (error) {
    return await fail(error);
  }
};
