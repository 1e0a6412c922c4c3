// The help of every verb, as a newcomer reads it: in a terminal of 80 columns.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseCommandLine } from './parse-command-line.js';
import type { VerbResult } from './verb.js';
import { verbs } from './verbs.js';

const helpText = async (...argv: readonly string[]): Promise<string> =>
  ((await parseCommandLine(verbs, argv)) as VerbResult).text;

for (const argv of [['help'], ...verbs.map(({ name }) => ['help', name])]) {
  test(`${argv.join(' ')} fits 80 columns`, async () => {
    const lines = (await helpText(...argv)).split('\n');
    assert.ok(lines.length > 10);
    assert.deepEqual(
      lines.filter((line) => line.length > 80),
      [],
    );
  });
}

test('the overview names all verbs, and the help of each shows an example of it', async () => {
  const overview = await helpText('help');
  for (const { name } of verbs) {
    assert.match(overview, new RegExp(`^ {2}${name} .*`, 'm'));
    assert.match(await helpText('help', name), new RegExp(`^ {2}\\$ ramferry ${name}`, 'm'));
  }
});

test('a word that is no verb leads to the verbs that have it in their help', async () => {
  for (const word of ['elf', 'ELF', '--max-bandwidth']) {
    const { text, document } = (await parseCommandLine(verbs, ['help', word, '--json'])) as VerbResult;
    const { verbs: names } = document as { verbs: string[] };
    assert.ok(names.includes(word.startsWith('--') ? 'send' : 'convert'), text);
    assert.ok(!names.includes('verify'), text);
    assert.match(text, /^ {2}(send|convert) /m);
  }
  await assert.rejects(parseCommandLine(verbs, ['help', 'teleport']), { kind: 'usage', code: 'UNKNOWN_VERB' });
});
