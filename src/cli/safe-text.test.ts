// Nothing from outside reaches a terminal as it is: file names, QEMU's words, addresses. JSON stays exact.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { RunningCommand } from '../../test/command.js';
import { richStream } from '../../test/streams.js';
import { formatTable } from './format.js';
import { Progress } from './progress.js';
import { jsonText, messageText, terminalText } from './safe-text.js';
import { createColors } from './terminal.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-safe-'));
after(() => fs.rmSync(folder, { recursive: true }));

/** Sets the window's title, clears the screen, writes a line of its own; the last two are CSI as one character, and text backwards. */
const EVIL = '\x1b]0;title\x07\x1b[2J\rx\nramferry: all is well\x9b31m\u202eab';
const UNSAFE = /(?!\n)[\p{Cc}\u2028-\u202e]/u;
const CLAIM = /^ramferry: all is well/m;

const isSafe = (text: string, how: string): void => {
  assert.doesNotMatch(text, UNSAFE, how);
  assert.doesNotMatch(text, CLAIM, how);
};

test('outside text is shown with its control characters as escapes, and cannot begin a line of its own', () => {
  assert.equal(messageText('Cannot open a\x1b[1m\x7f\tb\x9d: no.'), 'Cannot open a\\x1b[1m\\x7f\\tb\\x9d: no.');
  assert.equal(messageText('QEMU: one\r\ntwo\n'), 'QEMU: one\n  two');
  assert.equal(terminalText('á€ 𝒳 👩‍🚀'), 'á€ 𝒳 👩‍🚀');
  const { bold } = createColors(true);
  assert.equal(terminalText(`${bold('a\x1b[31m\n')}|`), '\x1b[1ma\\x1b[31m\\n\x1b[22m|');
  assert.equal(
    formatTable(
      [
        ['a\nb', 'c'],
        [bold('d'), 'e'],
      ],
      ['left', 'left'],
    ).split('\n')[1]?.length,
    3 + 6,
  );
  const written: string[] = [];
  const progress = new Progress({ stream: { write: (text) => written.push(text) }, mode: 'bar', now: () => 0 });
  progress.note(EVIL);
  progress.update({ phase: EVIL });
  isSafe(written.join('').replaceAll('\r\x1b[K', ''), 'progress');
});

test('any text: nothing unsafe is left, and JSON reads back as it was', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), (text) => {
      assert.doesNotMatch(terminalText(text), UNSAFE);
      const json = jsonText({ [text]: text });
      assert.doesNotMatch(json, UNSAFE);
      assert.deepEqual(JSON.parse(json), JSON.parse(JSON.stringify({ [text]: text })));
    }),
  );
});

test('every verb, with odd names and words in the places where outside text comes from', async () => {
  const odd = path.join(folder, EVIL.replaceAll('/', ''));
  fs.writeFileSync(odd, richStream().bytes);
  const qemu = path.join(folder, 'qemu');
  fs.writeFileSync(qemu, `#!/bin/sh\nprintf '\\033]0;title\\007\\nramferry: all is well\\n' >&2\nexit 1\n`, {
    mode: 0o700,
  });
  for (const args of [
    ['inspect', odd],
    ['verify', odd],
    ['diff', odd, odd],
    ['convert', odd, `${odd}.raw`, '--to', 'raw'],
    ['convert', odd, path.join(odd, 'x'), '--to', 'stream'],
    ['receive', `file:${odd}`, `${odd}.copy`],
    ['receive', `tcp:${EVIL}`, 'x'],
    ['send', odd, `unix:${odd}`],
    ['serve', odd, `unix:${odd}`],
    ['relay', `unix:${path.join(folder, 's')}`, `unix:${odd}`],
    ['clone', odd, '--stop'],
    ['clone', odd, '--', qemu],
    [EVIL],
    ['inspect', `--${EVIL}`],
    ['clone', odd, '--by', EVIL],
  ]) {
    const { stdout, stderr } = await new RunningCommand(args).ended;
    isSafe(stdout + stderr, JSON.stringify(args));
    const json = await new RunningCommand([args[0]!, '--json', ...args.slice(1)]).ended;
    isSafe(json.stdout + json.stderr, JSON.stringify(args));
    JSON.parse(json.stdout);
  }
  const { stdout } = await new RunningCommand(['inspect', '--json', odd]).ended;
  assert.equal((JSON.parse(stdout) as { file: string }).file, odd);
});
