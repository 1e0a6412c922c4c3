// Regular expressions find what JavaScript's find in the same bytes, in time that grows with the bytes only, whatever the expression.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import vm from 'node:vm';
import fc from 'fast-check';
import { toySnapshot } from '../../../test/toy-snapshot.js';
import { type Match, MemorySearch } from './memory-search.js';
import { RegexMatcher } from './regex-matcher.js';
import { SearchMemory } from './search-memory.js';
import { memoryStretches } from './stretches.js';

const PAGE = 16;

/** Matches in memory that is all there, through windows of some length. */
const find = (
  bytes: Uint8Array,
  pattern: string,
  { ignoreCase = false, windowBytes = undefined as number | undefined } = {},
): { matches: readonly Match[]; matcher: RegexMatcher } => {
  const pages = Array.from({ length: Math.ceil(bytes.length / PAGE) }, (_, index) => {
    const page = new Uint8Array(PAGE);
    page.set(bytes.subarray(index * PAGE, (index + 1) * PAGE));
    return page;
  });
  const { snapshot } = toySnapshot([{ name: 'a', pages }], PAGE);
  const memory = new SearchMemory(windowBytes);
  const matcher = new RegexMatcher(memory, pattern, ignoreCase);
  const matches: Match[] = [];
  const visit = (match: Match): number => matches.push(match);
  const stretches = memoryStretches(snapshot, undefined, new Set([0]));
  const search = new MemorySearch(snapshot, stretches, memory, matcher, { limit: 1e6, visit });
  while (search.step() > 0) {}
  return { matches, matcher };
};

const places = (matches: readonly Match[]): [number, string][] =>
  matches.map(({ offset, bytes }) => [offset, Buffer.from(bytes).toString('latin1')]);

/** Expressions of which every repeated part has a byte: what an empty one is worth, engines do not agree on. */
const expressions = fc.letrec<{ node: string; filled: string; atom: string }>((tie) => ({
  atom: fc.constantFrom(
    'a',
    'b',
    'c',
    '.',
    '[ab]',
    '[^a]',
    String.raw`\w`,
    String.raw`\W`,
    String.raw`\x61`,
    '[b-c ]',
    'ab',
    ' ',
  ),
  filled: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    tie('atom'),
    fc.tuple(tie('filled'), tie('node')).map(([a, b]) => `${a}${b}`),
    fc.tuple(tie('filled'), tie('filled')).map(([a, b]) => `(?:${a}|${b})`),
    fc
      .tuple(tie('filled'), fc.constantFrom('+', '+?', '{2}', '{1,3}', '{2,}?'))
      .map(([a, count]) => `(?:${a})${count}`),
  ),
  node: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    tie('filled'),
    tie('filled'),
    fc.tuple(tie('filled'), fc.constantFrom('*', '?', '*?', '??', '{0,2}')).map(([a, count]) => `(?:${a})${count}`),
    fc.constantFrom(String.raw`\b`, String.raw`\B`),
  ),
}));

const javascript = vm.createContext({});

/** What JavaScript finds; undefined if it goes back and forth for too long, as it may with repetitions of repetitions. */
const javascriptMatches = (pattern: string, flags: string, text: string): [number, string][] | undefined => {
  Object.assign(javascript, { pattern, flags, text });
  const code = 'JSON.stringify([...text.matchAll(new RegExp(pattern, flags))].map((match) => [match.index, match[0]]))';
  try {
    return JSON.parse(vm.runInContext(code, javascript, { timeout: 50 }) as string) as [number, string][];
  } catch (error) {
    assert.equal((error as NodeJS.ErrnoException).code, 'ERR_SCRIPT_EXECUTION_TIMEOUT');
    return undefined;
  }
};

test('the same matches as JavaScript has', () => {
  const line = fc.string({ unit: fc.constantFrom('a', 'b', 'c', ' ', '\n'), minLength: 1, maxLength: 90 });
  const property = fc.property(expressions.filled, line, fc.boolean(), (pattern, text, ignoreCase) => {
    const bytes = new Uint8Array(Math.ceil((text.length + 1) / PAGE) * PAGE);
    bytes.set(Buffer.from(text, 'latin1'));
    const inZeros = javascriptMatches(pattern, 'g', '\0'.repeat(100));
    const expected = javascriptMatches(pattern, ignoreCase ? 'gi' : 'g', Buffer.from(bytes).toString('latin1'));
    fc.pre(inZeros?.length === 0 && expected !== undefined);
    assert.deepEqual(places(find(bytes, pattern, { ignoreCase }).matches), expected);
  });
  fc.assert(property, { numRuns: 400 });
});

test('matches of at most so many bytes are found across windows that are hardly longer', () => {
  const line = fc.string({ unit: fc.constantFrom('a', 'b', 'c', ' ', '\n'), minLength: 1, maxLength: 2000 });
  const patterns = ['ab{1,3}c', '[ab]{2,9}?c', String.raw`\b\w{3}\b`, 'a.{0,7}c|bb', 'c a', 'abc'];
  const property = fc.property(
    fc.constantFrom(...patterns),
    line,
    fc.integer({ min: 200, max: 400 }),
    (pattern, text, windowBytes) => {
      const bytes = Buffer.from(text.padEnd(Math.ceil(text.length / PAGE) * PAGE, '\n'), 'latin1');
      const expected = [...bytes.toString('latin1').matchAll(new RegExp(pattern, 'g'))].map(
        ({ index, 0: match }): [number, string] => [index, match],
      );
      assert.deepEqual(places(find(bytes, pattern, { windowBytes }).matches), expected);
    },
  );
  fc.assert(property, { numRuns: 150 });
});

test('bytes, characters beyond ASCII, letters of either case', () => {
  const found = (text: string | Uint8Array, pattern: string, ignoreCase = false): number[] =>
    find(Buffer.from(text), pattern, { ignoreCase }).matches.map(({ offset }) => offset);
  assert.deepEqual(found('x€y€', '€'), [1, 5]);
  assert.deepEqual(found('x€y€', String.raw`\u{20ac}y`), [1]);
  assert.deepEqual(found(Uint8Array.of(1, 0xff, 0xfe, 0xff), String.raw`[\xfe-\xff]{2,}`), [1]);
  assert.deepEqual(found('größe GRÖSSE GRÖßE', 'gr[öä]ße', true), [0, 16]);
  assert.deepEqual(found('мир МИР', 'м[а-я]р', true), [0, 7]);
  assert.deepEqual(found('a{1}', String.raw`a\{1`), [0]);
  assert.deepEqual(found('192.168.1.4 1.2.3', String.raw`\b\d{1,3}(\.\d{1,3}){3}\b`), [0]);
});

test('expressions that explode elsewhere take their time by the byte', () => {
  const start = performance.now();
  const many = Buffer.alloc(16 * 1024, 'a');
  assert.equal(find(many, '(a|aa)+b').matches.length, 0);
  assert.equal(find(many, '(a*)*(a*)*b').matches.length, 0);
  assert.equal(find(many, '(?:a?){30}a{30}b').matches.length, 0);
  // A match at every byte, each with a longer one to be hoped for: would be 130 million steps.
  const { matches, matcher } = find(many, 'a(?:.*b)?');
  assert.equal(matches.length, many.length);
  assert.equal(matcher.isCut, true);
  // The same with a "b" that the first of them do not reach: the others are not followed so far any more.
  assert.ok(find(Buffer.from(`${'a'.repeat(70_000)}b`), 'a(?:.*b)?').matches.length > 60_000);
  // More states than are kept.
  const random = Buffer.from(Uint32Array.from({ length: 5000 }, (_, index) => Math.imul(index + 1, 2654435761)).buffer);
  const letters = random.map((byte) => 97 + (byte & 1));
  assert.equal(find(letters, '(a|b)*a(a|b){40}c').matches.length, 0);
  assert.ok(performance.now() - start < 60_000);
});

test('what cannot be searched for is refused, with its place', () => {
  const refused = (pattern: string): string => {
    try {
      new RegexMatcher(new SearchMemory(), pattern, false);
    } catch (error) {
      const { code, message } = error as { code: string; message: string };
      assert.match(message, /^[A-Z\\].*\.$/);
      return code;
    }
    return 'none';
  };
  const wrong = [
    'a(',
    'a)',
    '[a',
    'a{',
    '*',
    'a**',
    '(?=a)',
    '(?<n>a)',
    String.raw`\1`,
    String.raw`\q`,
    '^a',
    'a$',
    'a{3,2}',
    'a{2000}',
    '[z-a]',
    '[^é]',
    '[\\x01-é]',
    '\\',
    '',
    'a*',
    'x?|y',
    '('.repeat(100),
    'a'.repeat(5000),
    '(((a{100}){100}){100}){100}',
    `[${String.fromCharCode(0x100)}-${String.fromCharCode(0xffff)}]`,
  ];
  for (const pattern of wrong) {
    assert.equal(refused(pattern), 'INVALID_REGEX', pattern.slice(0, 20));
  }
  for (const [pattern, escaped] of [
    ['a$', String.raw`\$`],
    ['^a', String.raw`\^`],
    ['*', String.raw`\*`],
    ['a{', String.raw`\{`],
  ] as const) {
    assert.throws(
      () => new RegexMatcher(new SearchMemory(), pattern, false),
      ({ hint }: { hint?: string }) => hint!.endsWith(`the character is ${escaped}`),
    );
    assert.equal(refused(escaped), 'none', escaped);
  }
  for (const pattern of [String.raw`\x00`, '.', '[^a]{4}', String.raw`\x00{60}`]) {
    assert.equal(refused(pattern), 'PATTERN_MATCHES_ZEROS', pattern);
  }
});
