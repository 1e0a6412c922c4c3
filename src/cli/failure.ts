// How a failure looks from outside: the exit status, the JSON, the lines on stderr (DESIGN section 4).

import { CommanderError } from 'commander';
import { channelError } from '../channel/channel-error.js';
import { type ErrorKind, RamferryError } from '../memory/errors.js';
import { shellCommand } from '../memory/shell-command.js';
import { messageText, terminalText } from './safe-text.js';
import type { Colors } from './terminal.js';

export const EXIT_STATUS: Readonly<Record<ErrorKind, number>> = { failed: 1, usage: 2, invalid: 3 };

/** Stable codes for what commander finds wrong. */
const usageCodes: Readonly<Record<string, string>> = {
  'commander.unknownCommand': 'UNKNOWN_VERB',
  'commander.unknownOption': 'UNKNOWN_OPTION',
  'commander.missingArgument': 'MISSING_OPERAND',
  'commander.excessArguments': 'TOO_MANY_OPERANDS',
  'commander.invalidArgument': 'INVALID_VALUE',
  'commander.optionMissingArgument': 'MISSING_VALUE',
  'commander.missingMandatoryOptionValue': 'MISSING_OPTION',
  'commander.conflictingOption': 'CONFLICTING_OPTIONS',
};

/** Whether to show where an error was thrown. */
export const isDebug = (): boolean => {
  const { RAMFERRY_DEBUG } = process.env;
  return RAMFERRY_DEBUG === '1';
};

const sentence = (text: string): string => {
  const capital = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
};

const isSystemError = (error: unknown): error is NodeJS.ErrnoException & { path?: string } =>
  error instanceof Error && 'code' in error && 'syscall' in error;

/** What to type to read what a verb takes, or which verbs there are. */
export const helpCommand = (verb?: string): string =>
  verb === undefined ? shellCommand`ramferry --help` : shellCommand`ramferry ${verb} --help`;

/** Any thrown thing as an error with kind and code; what nobody expected becomes `INTERNAL`. `verb` is for the hint. */
export const toFailure = (error: unknown, verb: string | undefined): RamferryError => {
  if (error instanceof RamferryError) {
    return error;
  }
  if (error instanceof CommanderError) {
    const [complaint = '', suggestion] = error.message.replace(/^error: /, '').split('\n');
    const help = `see ${helpCommand(verb)}`;
    return new RamferryError('usage', usageCodes[error.code] ?? 'USAGE', sentence(complaint), {
      hint:
        suggestion === undefined
          ? help
          : `${suggestion.replace(/^\(Did you mean (.*)\?\)$/, 'did you mean $1?')} ${help}`,
    });
  }
  if (isSystemError(error)) {
    return channelError(error, error.syscall ?? 'use', error.path ?? 'a resource');
  }
  const message = error instanceof Error ? error.message : String(error);
  return new RamferryError('failed', 'INTERNAL', sentence(`unexpected: ${message}`), {
    cause: error,
    hint: 'this is a defect of ramferry; RAMFERRY_DEBUG=1 shows where it happened',
  });
};

/** The value of `error` in the JSON of a failure. */
export const failureDocument = ({ code, message, file, offset, hint }: RamferryError): object => ({
  code,
  message,
  file,
  offset,
  hint,
});

/** The lines for people. */
export const failureText = (failure: RamferryError, { red }: Pick<Colors, 'red'>): string => {
  const lines = [`${terminalText(red('ramferry:'))} ${messageText(failure.message)}`];
  if (failure.hint !== undefined) {
    lines.push(messageText(`  ${failure.hint}`));
  }
  if (isDebug()) {
    const origin = failure.cause instanceof Error ? failure.cause : failure;
    lines.push(messageText(origin.stack ?? ''));
  }
  return `${lines.join('\n')}\n`;
};
