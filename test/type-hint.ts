// Types the commands that hints print, as a user would: from what was printed, in a shell. hints.test.ts holds that none is left out.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { bin, RunningCommand } from './command.js';

/** A folder with `ramferry` in it, for PATH. */
const shims = mkdtempSync(join(tmpdir(), 'ramferry-path-'));
symlinkSync(bin, join(shims, 'ramferry'));
process.on('exit', () => rmSync(shims, { recursive: true, force: true }));

const WORD = String.raw`(?:'[^']*'|\$'(?:\\.|[^'\\])*'|\\.|[^\s'"\\])+`;
const VALUE = `${WORD}(?: ${WORD})*`;

/** The command in a printed hint. `template` is as in the source, with `…` for what is put in. */
export const hintedCommand = (template: string, printed: string): string => {
  const parts = template.split('…').map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
  const command = new RegExp(`: (${parts.join(VALUE)})$|see (${parts.join(VALUE)})$`, 'm').exec(printed);
  assert.ok(command !== null, `no "${template}" at the end of a line of: ${printed}`);
  return command[1] ?? command[2]!;
};

export interface TypingPlace {
  readonly cwd?: string;
  readonly env?: Record<string, string>;
}

/** Types the command that a hint printed; its status is for the caller to look at. */
export const typeHint = (template: string, printed: string, { cwd, env = {} }: TypingPlace = {}): RunningCommand => {
  const PATH = [shims, dirname(process.execPath), env['PATH'] ?? process.env['PATH']].join(delimiter);
  const program = ['/bin/bash', '-c', hintedCommand(template, printed)];
  return new RunningCommand([], { ...env, PATH }, { program, ...(cwd !== undefined && { cwd }) });
};
