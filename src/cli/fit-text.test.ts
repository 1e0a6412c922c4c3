import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fitText } from './fit-text.js';

test('what fits stays as it is', () => {
  const text = 'One line.\nAnother one,\nand no more.\n\n  term  meaning\n';
  assert.equal(fitText(text, 20), text);
});

test('paragraphs and terms are filled, each by itself', () => {
  assert.equal(
    fitText(
      'The first line is long\nand the next one short.\n\n  one  goes on here\n       and there\n  two  more\n',
      20,
    ),
    'The first line is\nlong and the next\none short.\n\n  one  goes on here\n       and there\n  two  more\n',
  );
  // A sentence that ends with its line was to end there.
  assert.equal(fitText('A sentence of its own.\nAnother one.\n', 20), 'A sentence of its\nown.\nAnother one.\n');
  assert.equal(fitText('  one  a meaning of many words', 20), '  one  a meaning of\n       many words');
});

test('a command line goes on behind a backslash, and is not broken where it is quoted', () => {
  assert.equal(
    fitText("  $ ramferry send guest.mig 'exec:cat > x y z'\n      a copy of the guest", 30),
    "  $ ramferry send guest.mig \\\n      'exec:cat > x y z'\n      a copy of the guest",
  );
});

test('a word that is too long is not broken', () => {
  assert.equal(fitText('a supercalifragilistic word', 10), 'a\nsupercalifragilistic\nword');
});
