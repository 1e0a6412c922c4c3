// How many pages differ, against a Map; and the estimate, once the table is full.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { random } from '../../test/random.js';
import { DistinctPages } from './distinct-pages.js';

/** A digest as good as any, for content number `value`. */
const digestOf = (value: number): Int32Array => {
  const next = random(value + 1);
  return Int32Array.from({ length: 4 }, () => next() * 2 ** 32);
};

const GROUP_PAGES = 1000;
const groupOf = (page: number): number => Math.floor(page / GROUP_PAGES);

test('exact: different contents by the group in which they came first, and the most repeated ones', () => {
  fc.assert(
    fc.property(fc.array(fc.nat(300), { minLength: 1, maxLength: 3000 }), (contents) => {
      const distinct = new DistinctPages(3, groupOf);
      const first = new Map<number, number>();
      const copies = new Map<number, number>();
      contents.forEach((content, page) => {
        distinct.add(digestOf(content), page);
        if (!first.has(content)) {
          first.set(content, page);
        }
        copies.set(content, (copies.get(content) ?? 0) + 1);
      });
      assert.ok(distinct.isExact);
      for (const group of [0, 1, 2]) {
        assert.equal(distinct.distinct(group), [...first.values()].filter((page) => groupOf(page) === group).length);
      }
      const most = distinct.mostRepeated(5);
      const expected = [...copies.values()].filter((count) => count > 1).sort((a, b) => b - a);
      assert.deepEqual(
        most.map((repeated) => repeated.copies),
        expected.slice(0, 5),
      );
      for (const repeated of most) {
        const content = contents[repeated.first]!;
        assert.deepEqual([first.get(content), copies.get(content)], [repeated.first, repeated.copies]);
      }
    }),
    { numRuns: 60 },
  );
});

test('the table grows without losing anything', () => {
  const distinct = new DistinctPages(1, () => 0);
  for (let page = 0; page < 50_000; page += 1) {
    distinct.add(digestOf(page % 25_000), page);
  }
  assert.deepEqual([distinct.isExact, distinct.distinct(0)], [true, 25_000]);
  assert.ok(distinct.mostRepeated(3).every(({ copies, first }) => copies === 2 && first < 25_000));
});

test('copies from before the table grew count', () => {
  const distinct = new DistinctPages(1, () => 0);
  for (let page = 0; page < 20_000; page += 1) {
    distinct.add(digestOf(page < 100 ? 7 : page), page);
  }
  assert.deepEqual(distinct.mostRepeated(5), [{ first: 0, copies: 100 }]);
});

test('digests that differ in one word are different', () => {
  const distinct = new DistinctPages(1, () => 0);
  distinct.add(digestOf(1), 0);
  for (let word = 0; word < 4; word += 1) {
    const other = digestOf(1);
    other[word] += 1;
    distinct.add(other, 1 + word);
  }
  assert.equal(distinct.distinct(0), 5);
});

test('a full table goes on with a sample: near the truth, however often each content comes', () => {
  const distinct = new DistinctPages(2, (page) => (page < 60_000 ? 0 : 1), 2 ** 12);
  const contents = 40_000;
  // Group 0 has contents 0 to 19,999 three times each; group 1 repeats half of them and has 20,000 of its own.
  for (let page = 0; page < 60_000; page += 1) {
    distinct.add(digestOf(page % 20_000), page);
  }
  for (let page = 60_000; page < 90_000; page += 1) {
    distinct.add(digestOf(page - 50_000), page);
  }
  assert.ok(!distinct.isExact);
  assert.deepEqual(distinct.mostRepeated(5), []);
  // 1,500 to 3,000 of them are in the table: a standard deviation is 2.6 % at most, of each half 3.7 %.
  const [a, b] = [distinct.distinct(0), distinct.distinct(1)];
  assert.ok(Math.abs(a + b - contents) < 0.13 * contents, `${a} + ${b}`);
  assert.ok(Math.abs(a - contents / 2) < 0.18 * (contents / 2), `${a}`);
  assert.ok(Math.abs(b - contents / 2) < 0.18 * (contents / 2), `${b}`);
});
