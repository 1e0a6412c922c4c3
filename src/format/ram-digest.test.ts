// The digest of guest memory: of the content and nothing else, and of every bit of it.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { patternPage } from '../../test/streams.js';
import { RamDigest } from './ram-digest.js';

const PAGE = 4096;
const MIB = 2 ** 20;
const BLOCKS = [
  { name: 'pc.ram', usedLength: 3 * MIB },
  { name: 'pc.bios', usedLength: 64 * PAGE },
];

/** Digest of memory, given whole. */
const digestOf = (memory: readonly Uint8Array[]): RamDigest => {
  const digest = new RamDigest(memory.map((bytes, index) => ({ name: BLOCKS[index]!.name, usedLength: bytes.length })));
  memory.forEach((bytes, block) => {
    for (let at = 0; at < bytes.length; at += MIB) {
      digest.set(block, at, bytes.subarray(at, at + MIB));
    }
  });
  return digest;
};

test('pages in any order, again and again, zeroed or not: only what memory holds in the end counts', () => {
  const arrivals = fc.array(
    fc.record({ block: fc.nat(1), page: fc.nat(63), content: fc.nat(5), explicit: fc.boolean() }),
    { maxLength: 60 },
  );
  fc.assert(
    fc.property(arrivals, (list) => {
      const memory = BLOCKS.map(({ usedLength }) => new Uint8Array(usedLength));
      const digest = new RamDigest(BLOCKS);
      for (const { block, page: index, content, explicit } of list) {
        const page = block === 0 ? index * 12 : index;
        const bytes = content === 0 ? new Uint8Array(PAGE) : patternPage(content);
        memory[block]!.set(bytes, page * PAGE);
        if (content === 0 && explicit) {
          digest.clear(block, page * PAGE, PAGE);
        } else {
          digest.set(block, page * PAGE, bytes);
        }
      }
      assert.deepEqual(digest.blocks(), digestOf(memory).blocks());
    }),
    { numRuns: 30 },
  );
});

test('any flipped bits of any byte: the digest of that MiB differs, and of no other', () => {
  const memory = [new Uint8Array(3 * MIB), new Uint8Array(64 * PAGE)];
  for (let page = 0; page < 700; page += 3) {
    memory[0]!.set(patternPage(page), page * PAGE);
  }
  const original = digestOf(memory).blocks();
  fc.assert(
    fc.property(fc.nat(3 * MIB - 1), fc.integer({ min: 1, max: 255 }), (at, flip) => {
      memory[0]![at]! ^= flip;
      const changed = digestOf(memory).blocks();
      memory[0]![at]! ^= flip;
      const differing = [0, 1, 2].filter((mib) => changed[0]!.mebibytes[mib] !== original[0]!.mebibytes[mib]);
      assert.deepEqual(differing, [Math.floor(at / MIB)]);
      assert.deepEqual(changed[1], original[1]);
    }),
    { numRuns: 60 },
  );
});

test('pages that changed places, words that did, a page moved: seen', () => {
  const memory = (...pages: readonly [number, Uint8Array][]): unknown => {
    const bytes = new Uint8Array(MIB);
    for (const [page, content] of pages) {
      bytes.set(content, page * PAGE);
    }
    return digestOf([bytes]).blocks();
  };
  const [a, b] = [patternPage(1), patternPage(2)];
  const swapped = a.slice();
  swapped.set(a.subarray(0, 4), 16);
  swapped.set(a.subarray(16, 20), 0);
  const all = [memory([3, a], [4, b]), memory([3, b], [4, a]), memory([3, a], [5, b]), memory([3, swapped], [4, b])];
  assert.equal(new Set(all.map((digest) => JSON.stringify(digest))).size, all.length);
});

test('zero memory has no digest, however large it claims to be', () => {
  const digest = new RamDigest([{ name: 'huge', usedLength: 2 ** 52 }]);
  digest.set(0, 2 ** 51, new Uint8Array(MIB));
  assert.deepEqual(digest.blocks(), [{ name: 'huge', usedLength: 2 ** 52, mebibytes: {} }]);
  digest.set(0, 2 ** 51, patternPage(1));
  assert.deepEqual(Object.keys(digest.blocks()[0]!.mebibytes), [String(2 ** 31)]);
});

// What docs/hostile-input.md promises of pages that lie far from each other: a thirtieth of what is in them.
test('strewn pages, one in each MiB: the digest takes a small part of what they hold, and is that of any other order', () => {
  const mebibytes = 20_000;
  const digest = new RamDigest([{ name: 'ram', usedLength: mebibytes * 2 ** 20 }]);
  const page = new Uint8Array(4096).fill(7);
  digest.set(0, 0, page);
  const before = process.memoryUsage();
  for (let mebibyte = 1; mebibyte < mebibytes; mebibyte += 1) {
    digest.set(0, mebibyte * 2 ** 20, page);
  }
  const { heapUsed, external } = process.memoryUsage();
  const taken = heapUsed + external - before.heapUsed - before.external;
  assert.ok(taken < (mebibytes * 4096) / 8, `${taken} bytes, garbage included`);
});

test('a MiB that fills page by page, in any order, has the digest of one that was hashed at once', () => {
  const content = Uint8Array.from({ length: 2 ** 20 }, (_, at) => (at * 31 + (at >> 12)) & 0xff);
  const whole = new RamDigest([{ name: 'ram', usedLength: 2 ** 20 }]);
  whole.set(0, 0, content);
  for (const stride of [1, 7, 101, 255]) {
    const paged = new RamDigest([{ name: 'ram', usedLength: 2 ** 20 }]);
    for (let index = 0; index < 256; index += 1) {
      const page = (index * stride) % 256;
      paged.set(0, page * 4096, content.subarray(page * 4096, (page + 1) * 4096));
      // Again, with other content in between.
      if (index % 50 === 3) {
        paged.set(0, page * 4096, content.subarray(0, 4096));
        paged.clear(0, page * 4096, 4096);
        paged.set(0, page * 4096, content.subarray(page * 4096, (page + 1) * 4096));
      }
    }
    assert.deepEqual(paged.blocks(), whole.blocks(), `stride ${stride}`);
  }
});

test('more MiBs with content than a digest may have: named, and no MiB that is there already', () => {
  const digest = new RamDigest([{ name: 'pc.ram', usedLength: 2 ** 40 }], { chunkLimit: 3 });
  for (const mib of [0, 2 ** 19, 7]) {
    digest.set(0, mib * MIB, patternPage(mib + 1));
  }
  const before = digest.blocks();
  // A MiB that has some may have more of them, and is none more; nor is one that is cleared.
  digest.set(0, 7 * MIB, patternPage(8));
  digest.clear(0, 9 * MIB, PAGE);
  assert.throws(() => digest.set(0, 8 * MIB, patternPage(1)), {
    name: 'RamferryError',
    code: 'DIGEST_TOO_LARGE',
    value: 'pc.ram',
    message: /"pc\.ram" has content in more than 3 MiB/,
  });
  assert.deepEqual(digest.blocks(), before);
});
