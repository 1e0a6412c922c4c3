// Figures of pages against plain definitions of them.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { patternPage } from '../../test/streams.js';
import { PageContent } from './page-content.js';

const PAGE_SIZES = [256, 1024, 4096, 65536];

/** Three pages, of which the one in the middle is `page`: figures must not depend on its neighbours. */
const amongOthers = (page: Uint8Array): Int32Array => {
  const bytes = new Uint8Array(3 * page.length).fill(0xa5);
  bytes.set(page, page.length);
  return new Int32Array(bytes.buffer);
};

const entropyOf = (page: Uint8Array): number => {
  const counts = new Map<number, number>();
  for (const byte of page) {
    counts.set(byte, (counts.get(byte) ?? 0) + 1);
  }
  return [...counts.values()].reduce((sum, count) => {
    const share = count / page.length;
    return sum - share * Math.log2(share);
  }, 0);
};

const digestOf = (content: PageContent, page: Uint8Array): string => {
  content.digest(amongOthers(page), page.length / 4);
  return [...content.digestWords].join();
};

test('entropy is Shannon’s, of pages of any size', () => {
  for (const size of PAGE_SIZES) {
    const content = new PageContent(size);
    const pages = [
      new Uint8Array(size),
      new Uint8Array(size).fill(0xff),
      patternPage(1, size),
      patternPage(2, size).map((byte) => byte & 3),
      new Uint8Array(size).map((_, index) => index),
      new Uint8Array(size).fill(7, size - 1),
    ];
    for (const [index, page] of pages.entries()) {
      const bits = content.entropyBits(amongOthers(page), size / 4);
      assert.ok(Math.abs(bits - entropyOf(page)) < 1e-9, `page ${index} of ${size} bytes: ${bits}`);
    }
  }
});

test('a page is zero if each of its bytes is', () => {
  const content = new PageContent(4096);
  assert.ok(content.isZero(amongOthers(new Uint8Array(4096)), 1024));
  for (const at of [0, 1, 2047, 4095]) {
    const page = new Uint8Array(4096);
    page[at] = 1;
    assert.ok(!content.isZero(amongOthers(page), 1024), `byte ${at}`);
  }
});

test('digests: the same for the same page, another for every other one', () => {
  for (const size of PAGE_SIZES) {
    const content = new PageContent(size);
    const digests = new Set<string>();
    const add = (page: Uint8Array): void => {
      const digest = digestOf(content, page);
      assert.equal(digestOf(content, page.slice()), digest);
      assert.ok(!digests.has(digest), `${digests.size} pages of ${size} bytes`);
      digests.add(digest);
    };
    add(new Uint8Array(size));
    const pattern = patternPage(size, size);
    for (let place = 0; place < size; place += size / 256 + 1) {
      // One bit anywhere, in a page of zeros and in one of anything.
      const page = new Uint8Array(size);
      page[place] = 1 << (place % 8);
      add(page);
      const other = pattern.slice();
      other[place] ^= 1 << (place % 8);
      add(other);
    }
    // Words that change places.
    const counting = new Int32Array(size / 4).map((_, index) => index);
    for (let word = 4; word < 64; word += 4) {
      const swapped = counting.slice();
      [swapped[word], swapped[word + 1]] = [counting[word + 1], counting[word]];
      add(new Uint8Array(swapped.buffer));
    }
  }
});

test('each word of a digest is as good as the others: none repeats among pages that hardly differ', () => {
  const content = new PageContent(4096);
  const words = [new Set<number>(), new Set<number>(), new Set<number>(), new Set<number>()];
  const page = new Uint8Array(4096);
  const pages = 5000;
  for (let number = 0; number < pages; number += 1) {
    new DataView(page.buffer).setUint32(4 * (number % 1024), number);
    digestOf(content, page);
    for (const [index, seen] of words.entries()) {
      seen.add(content.digestWords[index]);
    }
  }
  for (const [index, seen] of words.entries()) {
    // Of 2^32 values, 5000 drawn at random have 0.003 in common.
    assert.ok(seen.size >= pages - 2, `word ${index} has ${seen.size} values`);
  }
});

test('any two pages that differ have different digests', () => {
  const content = new PageContent(256);
  const page = fc.uint8Array({ minLength: 256, maxLength: 256 });
  fc.assert(
    fc.property(page, page, (a, b) => {
      assert.equal(digestOf(content, a) === digestOf(content, b), Buffer.from(a).equals(b));
    }),
    { numRuns: 300 },
  );
});
