// Nothing from outside reaches a terminal as it is: file names, QEMU's words, addresses. JSON stays exact.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { RunningCommand } from '../../test/command.js';
import { richStream } from '../../test/streams.js';
import { parseJson } from '../format/parse-json.js';
import { parseDescription } from '../format/stream/vm-description.js';
import { RamferryError } from '../memory/errors.js';
import { parseMessage } from '../qemu/qmp-message.js';
import { failureText } from './failure.js';
import { formatTable } from './format.js';
import { Progress } from './progress.js';
import { jsonText, messageText, oneLine, terminalText } from './safe-text.js';
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

test('halves of surrogate pairs from outside are no colours, and hide nothing', () => {
  const evil = 'x \udc08hidden\udc1f y\ud800';
  const written: string[] = [];
  const progress = new Progress({ stream: { write: (text) => written.push(text) }, mode: 'bar', now: () => 0 });
  progress.note(evil);
  const failure = new RamferryError('failed', 'X', evil, { hint: evil });
  const shown = [
    messageText(evil),
    terminalText(oneLine(evil)),
    written.join(''),
    failureText(failure, createColors(false)),
  ];
  for (const text of shown) {
    assert.ok(!text.includes(String.fromCharCode(0x1b)), JSON.stringify(text));
    assert.match(text, /x \\u\{dc08\}hidden\\u\{dc1f\} y\\u\{d800\}/);
  }
  // Where colours may stand, only ours do: concealing is none of them, nor is a blinking or a black text.
  assert.equal(terminalText('\udc08a\udc05b\udc1ec'), '\\u{dc08}a\\u{dc05}b\\u{dc1e}c');
});

test('JSON from outside has no halves of surrogate pairs, in values and names; all else in it is as it was', () => {
  const reply = '{"error":{"class":"GenericError","desc":"x \\udc08hidden\\uDC1f \\ud83d\\ude00 \\\\udc08 y"},"id":1}';
  const message = parseMessage(reply);
  assert.ok(typeof message === 'object' && message.kind === 'error');
  assert.equal(message.description, 'x \ufffdhidden\ufffd \u{1f600} \\udc08 y');
  const description = '{"devices":[{"name":"a\\udc1fb","instance_id":0,"vmsd_name":"c","version":1,"fields":[]}]}';
  assert.deepEqual(
    [...parseDescription(description, 0).devices.values()].map(({ name }) => name),
    ['a\ufffdb'],
  );
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), (text) => {
      const read = parseJson(JSON.stringify({ [text]: [text] }));
      const whole = Buffer.from(text).toString();
      assert.deepEqual(read, { [whole]: [whole] });
    }),
  );
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
