// Whatever lies where in a guest's memory is found there: across pages, windows and blocks that are neighbours, and into pages that
// are zero; of what is zero, nothing is read.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { type ToyBlock, toySnapshot } from '../../../test/toy-snapshot.js';
import type { PhysicalMap, PhysicalRange } from '../physical-map.js';
import { LiteralMatcher } from './literal-matcher.js';
import { type Match, MemorySearch } from './memory-search.js';
import { hexNeedle, type Needle, TEXT_ENCODINGS, textNeedles } from './needle.js';
import { SearchMemory } from './search-memory.js';
import { memoryStretches } from './stretches.js';

const PAGE = 16;

/** Of addresses alone. */
const mapOf = (ranges: readonly PhysicalRange[]): PhysicalMap => ({ ranges }) as unknown as PhysicalMap;

interface Found {
  readonly matches: readonly Match[];
  readonly count: number;
}

const find = (
  blocks: readonly ToyBlock[],
  ranges: readonly PhysicalRange[] | undefined,
  needles: readonly Needle[],
  { limit = Number.POSITIVE_INFINITY, windowBytes = 512 } = {},
): Found => {
  const { snapshot } = toySnapshot(blocks, PAGE);
  const memory = new SearchMemory(windowBytes);
  const all = new Set(blocks.keys());
  const stretches = memoryStretches(snapshot, ranges && mapOf(ranges), all);
  const matches: Match[] = [];
  const search = new MemorySearch(snapshot, stretches, memory, new LiteralMatcher(memory, needles), {
    limit,
    visit: (match) => matches.push(match),
  });
  while (search.step() > 0) {}
  return { matches, count: search.count };
};

const hexOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const text = (value: string, ignoreCase = false): Needle[] =>
  textNeedles(value, { encodings: TEXT_ENCODINGS, ignoreCase });

/** Pages of few different bytes, most of them stored; a stored page may be zero. */
const pages = fc.array(
  fc.oneof(
    { weight: 3, arbitrary: fc.uint8Array({ minLength: PAGE, maxLength: PAGE, max: 2 }) },
    { weight: 1, arbitrary: fc.constant(undefined) },
  ),
  { minLength: 1, maxLength: 120 },
);

test('all places, and no others, in any memory and through windows of any length', () => {
  const needle = fc
    .uint8Array({ minLength: 1, maxLength: 24, max: 2 })
    .filter((bytes) => bytes.some((byte) => byte > 0));
  const property = fc.property(
    pages,
    pages,
    needle,
    fc.integer({ min: 200, max: 700 }),
    fc.boolean(),
    (a, b, bytes, windowBytes, adjacent) => {
      const blocks = [
        { name: 'a', pages: a },
        { name: 'b', pages: b },
      ];
      const { flat } = toySnapshot(blocks, PAGE);
      const [first, second] = flat as [Uint8Array, Uint8Array];
      const base = 0x1000;
      const gap = adjacent ? 0 : PAGE;
      const ranges = [
        { address: base, block: 1, offset: 0, bytes: second.length },
        { address: base + second.length + gap, block: 0, offset: 0, bytes: first.length },
      ];
      const expected: number[] = [];
      const lookThrough = (memory: Buffer, address: number): void => {
        for (let at = memory.indexOf(bytes); at >= 0; at = memory.indexOf(bytes, at + 1)) {
          expected.push(address + at);
        }
      };
      if (adjacent) {
        lookThrough(Buffer.concat([second, first]), base);
      } else {
        lookThrough(Buffer.from(second), base);
        lookThrough(Buffer.from(first), base + second.length + gap);
      }
      const { matches } = find(blocks, ranges, [hexNeedle(hexOf(bytes))], { windowBytes });
      assert.deepEqual(
        matches.map(({ address }) => address),
        expected,
      );
      for (const { block, offset, address } of matches) {
        const range = ranges.find((each) => each.block === block)!;
        assert.equal(range.address + offset, address);
      }
    },
  );
  fc.assert(property, { numRuns: 600 });
});

const filled = (...parts: readonly (string | Uint8Array)[]): Uint8Array => {
  const page = new Uint8Array(PAGE);
  page.set(Buffer.concat(parts.map((part) => Buffer.from(part))));
  return page;
};

test('zero and absent pages are not read', () => {
  const blocks = [{ name: 'a', pages: [...Array<undefined>(50_000), filled('needle'), ...Array<undefined>(50_000)] }];
  const { snapshot, readPages } = toySnapshot(blocks, PAGE);
  const memory = new SearchMemory(4096);
  const stretches = memoryStretches(snapshot, undefined, new Set([0]));
  const search = new MemorySearch(snapshot, stretches, memory, new LiteralMatcher(memory, text('needle')), {
    limit: 1,
    visit: ({ offset }) => assert.equal(offset, 50_000 * PAGE),
  });
  while (search.step() > 0) {}
  assert.equal(search.count, 1);
  assert.equal(readPages(), 1);
});

test('a block that is at two addresses is looked through once, with the lower one; what has no address, without', () => {
  const blocks = [
    { name: 'bios', pages: [filled('needle')] },
    { name: 'vga', pages: [undefined, filled('a needle')] },
  ];
  const ranges = [
    { address: 0xf0000, block: 0, offset: 0, bytes: PAGE },
    { address: 0xffff0000, block: 0, offset: 0, bytes: PAGE },
  ];
  const { matches } = find(blocks, ranges, text('needle'));
  assert.deepEqual(
    matches.map(({ block, offset, address }) => ({ block, offset, address })),
    [
      { block: 0, offset: 0, address: 0xf0000 },
      { block: 1, offset: PAGE + 2, address: undefined },
    ],
  );
});

test('only what is asked for is listed, and all is counted', () => {
  const blocks = [{ name: 'a', pages: Array.from({ length: 90 }, () => filled('x')) }];
  const { matches, count } = find(blocks, undefined, [hexNeedle('78')], { limit: 7 });
  assert.deepEqual([matches.length, count], [7, 90]);
});

test('what is around a match comes with it, across windows', () => {
  const pages = Array.from({ length: 60 }, (_, index) => filled(`<${String(index).padStart(12, '0')}>`));
  pages[32] = filled('0123456789needle');
  const { matches } = find([{ name: 'a', pages }], undefined, text('needle'), { windowBytes: 600 });
  assert.equal(Buffer.from(matches[0]!.before).toString('latin1').slice(-10), '0123456789');
  assert.equal(Buffer.from(matches[0]!.after).toString('latin1').slice(0, 14), '<000000000033>');
});

test('a needle longer than what is shown around a match, wherever a window ends', () => {
  const needle = Uint8Array.from({ length: 20 * PAGE }, (_, index) => 1 + (index % 251));
  for (let at = 0; at < 100 * PAGE; at += 37) {
    const bytes = new Uint8Array(130 * PAGE).fill(0xff);
    bytes.set(needle, at);
    const pages = Array.from({ length: 130 }, (_, page) => bytes.subarray(page * PAGE, (page + 1) * PAGE));
    const { matches } = find([{ name: 'a', pages }], undefined, [hexNeedle(hexOf(needle))], { windowBytes: 90 * PAGE });
    assert.deepEqual(
      matches.map(({ offset }) => offset),
      [at],
    );
  }
});

test('a page of zeros within a needle', () => {
  const first = new Uint8Array(PAGE);
  first[PAGE - 1] = 0x41;
  const last = new Uint8Array(PAGE);
  last[4] = 0x42;
  const needle = hexNeedle(`41${'00'.repeat(PAGE + 4)}42`);
  const { matches } = find([{ name: 'a', pages: [first, undefined, last] }], undefined, [needle]);
  assert.deepEqual(
    matches.map(({ offset }) => offset),
    [PAGE - 1],
  );
});

test('letters whose cases differ in several bits are no others that have some of them', () => {
  const needles = textNeedles('ÿab', { encodings: ['utf-8'], ignoreCase: true });
  const { matches } = find(
    [{ name: 'a', pages: [filled('øab'), filled('Ÿab'), filled('źAB'), filled('ÿAb')] }],
    undefined,
    needles,
  );
  assert.deepEqual(
    matches.map(({ offset }) => offset),
    [PAGE, 3 * PAGE],
  );
});

const wide = (value: string): Buffer => Buffer.from(value, 'utf16le');
const wideBig = (value: string): Buffer => wide(value).swap16();

test('text is found in each encoding, once', () => {
  const blocks = [
    {
      name: 'a',
      pages: [
        filled('abc'),
        filled(wide('abc')),
        filled('\0\0', wideBig('abc')),
        filled(wide('zabcz')),
        filled(wideBig('zabcz')),
        filled('x', wide('abc')),
      ],
    },
  ];
  const { matches } = find(blocks, undefined, text('abc'));
  assert.deepEqual(
    matches.map(({ offset, encoding }) => [offset, encoding]),
    [
      [0, 'utf-8'],
      [16, 'utf-16le'],
      [34, 'utf-16be'],
      [50, 'utf-16le'],
      [66, 'utf-16be'],
      [81, 'utf-16le'],
    ],
  );
});

test('letters beyond ASCII, in either case, where their lengths differ as well', () => {
  const found = (needle: string, ...lines: readonly (string | Uint8Array)[]): (string | undefined)[] =>
    find([{ name: 'a', pages: lines.map((line) => filled(line)) }], undefined, text(needle, true)).matches.map(
      ({ offset, encoding }) => `${offset / PAGE} ${encoding}`,
    );
  assert.deepEqual(found('größe', 'GRÖßE', Buffer.from('GröSSE'), Buffer.from('gRÖ\xdfe', 'latin1'), wide('GRÖßE')), [
    '0 utf-8',
    '2 latin-1',
    '3 utf-16le',
  ]);
  assert.deepEqual(found('мир', 'МИР', 'мИр', 'мйр', 'аир'), ['0 utf-8', '1 utf-8']);
  assert.deepEqual(found('Ⱥb', 'ⱥB', 'Ⱥb', 'ⱦb'), ['0 utf-8', '1 utf-8']);
  assert.deepEqual(found('k[', 'K[', 'K{', 'k{'), ['0 utf-8']);
});

test('hexadecimal digits, with some that do not matter', () => {
  const blocks = [{ name: 'a', pages: [filled('7ELF'), filled(Buffer.from([0x7f, 0x45, 0x12, 0x46])), filled('Eaf')] }];
  const offsets = (pattern: string): number[] =>
    find(blocks, undefined, [hexNeedle(pattern)]).matches.map(({ offset }) => offset);
  assert.deepEqual(offsets('7f 45 ?? 46'), [16]);
  assert.deepEqual(offsets('0x45 0x4C'), [1]);
  assert.deepEqual(offsets('45 ?? 6?'), [32]);
  assert.deepEqual(offsets('45 ?? 7?'), []);
});

test('patterns that cannot be searched for are refused by name', () => {
  const code = (make: () => unknown): string => {
    try {
      make();
    } catch (error) {
      return (error as { code: string }).code;
    }
    return 'none';
  };
  assert.equal(
    code(() => hexNeedle('')),
    'INVALID_PATTERN',
  );
  assert.equal(
    code(() => hexNeedle('7f4')),
    'INVALID_PATTERN',
  );
  assert.equal(
    code(() => hexNeedle('xy')),
    'INVALID_PATTERN',
  );
  assert.equal(
    code(() => hexNeedle('00 ?? 00')),
    'PATTERN_MATCHES_ZEROS',
  );
  assert.equal(
    code(() => text('')),
    'INVALID_PATTERN',
  );
  assert.equal(
    code(() => text('x'.repeat(70_000))),
    'INVALID_PATTERN',
  );
  assert.equal(
    code(() => textNeedles('日', { encodings: ['latin-1'], ignoreCase: false })),
    'NOT_ENCODABLE',
  );
  assert.equal(
    code(() => text('Ⱥ'.repeat(9), true)),
    'INVALID_PATTERN',
  );
});
