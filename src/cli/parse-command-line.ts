// What was typed becomes a verb with its operands and options, or a text to print: help, the version.

import { createRequire } from 'node:module';
import { Command, CommanderError } from 'commander';
import { RamferryError } from '../memory/errors.js';
import { helpCommand } from './failure.js';
import { fitText } from './fit-text.js';
import { formatTable } from './format.js';
import { terminalColumns } from './terminal.js';
import type { Verb, VerbEntry, VerbResult } from './verb.js';

const { version } = createRequire(import.meta.url)('../../../package.json') as { version: string };

/** Options that every verb has; they may also stand in front of it. */
const COMMON = ['--json', '--quiet'];

const EXIT_STATUSES = `
Exit status: 0 done, 1 it failed, 2 wrong usage, 3 the input is not valid.`;

/** A verb and what it was given. */
export interface ParsedCommand {
  readonly verb: Verb;
  readonly operands: readonly string[];
  readonly options: object;
}

/** The words with the verb in front of the options that every verb has. */
export const verbFirst = (argv: readonly string[]): readonly string[] => {
  const at = argv.findIndex((word) => !COMMON.includes(word));
  return at <= 0 ? argv : [argv[at]!, ...argv.slice(0, at), ...argv.slice(at + 1)];
};

/** The first word that is a verb, also in `ramferry help VERB`. */
export const chosenEntry = (verbs: readonly VerbEntry[], argv: readonly string[]): VerbEntry | undefined => {
  const words = argv.filter((word) => !word.startsWith('-'));
  const word = words[0] === 'help' ? words[1] : words[0];
  return verbs.find(({ name }) => name === word);
};

const examplesText = (examples: Verb['examples'], prefix: string): string =>
  `\nExamples:\n${examples.map(([line, meaning]) => `  $ ${prefix} ${line}\n      ${meaning}`).join('\n')}`;

/** A commander program that knows all verbs, and the options of `entry`. */
class Program {
  /** What it would have printed: the help or the version. */
  printed = '';
  parsed: ParsedCommand | undefined;
  readonly #columns = Math.max(40, terminalColumns(process.stdout));
  readonly #command: Command;

  private constructor(verbs: readonly VerbEntry[]) {
    this.#command = new Command('ramferry')
      .description('Guest RAM, moved: live migration, save, restore and inspection of virtual machine memory.')
      .version(version, '-V, --version', 'print the version')
      .helpOption('-h, --help', 'print this help')
      .addHelpCommand(
        new Command('help').arguments('[word]').summary('prints the help of a verb, or who has a word in it'),
      )
      .commandsGroup('Verbs:')
      .usage('VERB [OPTIONS] …')
      .addHelpText('after', `\nExamples:\n${verbs.map(({ example }) => `  $ ramferry ${example}`).join('\n')}`)
      .addHelpText('after', `${EXIT_STATUSES}\n\nRun "ramferry help VERB" for the options and examples of a verb.`)
      .configureOutput({
        writeOut: (text) => {
          this.printed += text;
        },
        writeErr: () => {},
        getOutHelpWidth: () => this.#columns,
      })
      .exitOverride();
    for (const { name, operands, summary } of verbs) {
      const command = this.#command.command(name).summary(summary).description(`${name} ${summary}`);
      if (operands !== '') {
        command.arguments(operands);
      }
    }
    this.#command.command('version').summary('prints the version');
  }

  static async create(verbs: readonly VerbEntry[], entry: VerbEntry | undefined): Promise<Program> {
    const program = new Program(verbs);
    if (entry !== undefined) {
      program.#addVerb(entry, await entry.load());
    }
    return program;
  }

  #addVerb({ name }: VerbEntry, verb: Verb): void {
    const command = this.#command.commands.find((each) => each.name() === name)!;
    verb.configure(command);
    command
      .option('--json', 'print one JSON document on stdout, and nothing else there')
      .option('--quiet', 'no progress on stderr')
      .addHelpText('after', `${examplesText(verb.examples, `ramferry ${name}`)}\n${EXIT_STATUSES}`)
      .action(() => {
        this.parsed = { verb, operands: command.args, options: command.opts() };
      });
  }

  /** True if there is a verb to run. */
  async parse(argv: readonly string[]): Promise<boolean> {
    try {
      await this.#command.parseAsync(argv, { from: 'user' });
    } catch (error) {
      if (!(error instanceof CommanderError && error.exitCode === 0)) {
        throw error;
      }
    }
    return this.parsed !== undefined;
  }

  get help(): VerbResult {
    const text = fitText(this.printed, this.#columns);
    return { document: { help: text }, text };
  }
}

const helpOf = async (verbs: readonly VerbEntry[], entry: VerbEntry | undefined): Promise<VerbResult> => {
  const program = await Program.create(verbs, entry);
  await program.parse(entry === undefined ? ['--help'] : [entry.name, '--help']);
  return program.help;
};

/** Of a word that is no verb: the verbs in whose help it is. */
const helpWithWord = async (verbs: readonly VerbEntry[], word: string): Promise<VerbResult> => {
  const escaped = word.replace(/[^\w\s]/g, '\\$&');
  const pattern = new RegExp(`(?<![\\w-])${escaped}(?![\\w-])`, 'i');
  const found: VerbEntry[] = [];
  for (const entry of verbs) {
    if (pattern.test((await helpOf(verbs, entry)).text)) {
      found.push(entry);
    }
  }
  if (found.length === 0) {
    throw new RamferryError('usage', 'UNKNOWN_VERB', `No verb is called "${word}", and none has it in its help.`, {
      value: word,
      hint: `see ${helpCommand()}`,
    });
  }
  const rows = found.map(({ name, summary }) => ['', name, summary]);
  return {
    document: { word, verbs: found.map(({ name }) => name) },
    text: `The help of these verbs has "${word}" in it:\n\n${formatTable(rows, ['left', 'left', 'left'])}`,
  };
};

/**
 * What to run, or the help or the version to print.
 *
 * @throws CommanderError or RamferryError for wrong usage
 */
export const parseCommandLine = async (
  verbs: readonly VerbEntry[],
  argv: readonly string[],
): Promise<ParsedCommand | VerbResult> => {
  const [first, ...rest] = argv;
  const isOption = (word: string): boolean => COMMON.includes(word) || word === '--help' || word === '-h';
  if (first === undefined) {
    return helpOf(verbs, undefined);
  }
  if (COMMON.includes(first)) {
    throw new RamferryError('usage', 'MISSING_VERB', `${first} needs a verb.`, { hint: `see ${helpCommand()}` });
  }
  if (first === 'version') {
    return { document: { version }, text: `${version}\n` };
  }
  if (first === 'help') {
    const word = rest.find((each) => !isOption(each));
    const entry = verbs.find(({ name }) => name === word);
    return word === undefined || entry !== undefined ? helpOf(verbs, entry) : helpWithWord(verbs, word);
  }
  const program = await Program.create(verbs, chosenEntry(verbs, argv));
  if (await program.parse(argv)) {
    return program.parsed!;
  }
  return program.printed.trim() === version ? { document: { version }, text: program.printed } : program.help;
};
