// Expressions that explode, in memory that is made for them: each is refused by name, or searched for in bounded time.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LiteralMatcher } from '../src/format/search/literal-matcher.js';
import type { Matcher } from '../src/format/search/matcher.js';
import { MemorySearch } from '../src/format/search/memory-search.js';
import { hexNeedle, TEXT_ENCODINGS, textNeedles } from '../src/format/search/needle.js';
import { RegexMatcher } from '../src/format/search/regex-matcher.js';
import { SearchMemory } from '../src/format/search/search-memory.js';
import { memoryStretches } from '../src/format/search/stretches.js';
import { startCpuTimer } from './cpu-time.js';
import { type Below, survives } from './mutations.js';
import { randomChoices } from './random.js';
import { toySnapshot } from './toy-snapshot.js';

/** Pages of nothing but two letters, which is what expressions with many ways to match want to see. */
const choose = randomChoices(3);
const pages = Array.from({ length: 2 }, () => Uint8Array.from({ length: 1024 }, () => 97 + choose(2)));
const { snapshot } = toySnapshot([{ name: 'a', pages }], 1024);
const memory = new SearchMemory(64 * 1024);

const count = (matcher: Matcher, room = memory): number => {
  const stretches = memoryStretches(snapshot, undefined, new Set([0]));
  const search = new MemorySearch(snapshot, stretches, room, matcher, { limit: 10, visit: () => {} });
  while (search.step() > 0) {}
  return search.count;
};

const atoms = [
  ...['a', 'b', 'c', '.', '[ab]', '[^a]', '\\w', '\\b', '\\B', '\\x61', '[a-', ']', '\\', '', '', '(', ')', '|'],
  ...['é', '\\u{20ac}', '[à-ü]', '\\u{110000}', '[b-a]', '\\q', '^', '$', '{'],
];
const repeats = ['', '', '', '*', '+', '?', '{3}', '{2,5}', '{0}', '{1000}', '{0,1000}', '{4,}', '*?', '**', '{5,2}'];

const expression = (below: Below, depth = 0): string => {
  const parts = Array.from({ length: below(4) }, () => {
    const inner = depth < 4 && below(2) === 0 ? `(?:${expression(below, depth + 1)})` : atoms[below(atoms.length)]!;
    return inner + repeats[below(repeats.length)]!;
  });
  return parts.join(below(4) === 0 ? '|' : '');
};

test('expressions of whatever parts', async () => {
  await survives((below) => count(new RegexMatcher(memory, expression(below), below(2) === 0)), {
    seed: 31,
    codes: ['INVALID_REGEX'],
    kinds: ['usage'],
  });
});

test('hexadecimal digits and text of whatever parts', async () => {
  // What a memory is given it keeps: one serves one search, or here thousands of short ones.
  let room = memory;
  const digits = ['61', '6?', '??', ' ', '0x', '6', 'g', '', '6162', '?', '00'];
  const letters = ['a', 'b', 'ß', 'İ', '\ud800', '日', '\0', 'Ⱥ', 'ﬃ', ' '];
  await survives(
    (below) => {
      const pick = (from: readonly string[]): string =>
        Array.from({ length: below(12) }, () => from[below(from.length)]!).join('');
      const needles =
        below(2) === 0
          ? [hexNeedle(pick(digits))]
          : textNeedles(pick(letters), {
              encodings: TEXT_ENCODINGS.slice(below(TEXT_ENCODINGS.length)),
              ignoreCase: below(2) === 0,
            });
      room = room.hasRoom(2 ** 20) ? room : new SearchMemory(64 * 1024);
      count(new LiteralMatcher(room, needles), room);
    },
    { seed: 32, codes: ['INVALID_PATTERN'], kinds: ['usage'] },
  );
});

for (const [what, text] of [
  ['nothing, a million million times', `${'(?:'.repeat(4)}${'){1000}'.repeat(4)}a`],
  ['nothing in nothing, 64 times each', `${'(?:()'.repeat(40)}${'(?:)){64}'.repeat(40)}a`],
  ['a million million letters', `${'(?:'.repeat(4)}a${'){1000}'.repeat(4)}`],
  ['repeats in repeats', '(?:(?:a*)*)*c'],
  ['many ways to the same', '(?:a|b|ab|ba|aa|bb)*c'],
  ['a state for every subset', '[ab]*a[ab]{200}c'],
] as const) {
  test(`an expression with ${what}`, () => {
    const cpuMs = startCpuTimer();
    try {
      count(new RegexMatcher(memory, text, false));
    } catch (error) {
      assert.equal((error as { code?: string }).code, 'INVALID_REGEX');
    }
    assert.ok(cpuMs() < 3000, `${cpuMs()} ms`);
  });
}
