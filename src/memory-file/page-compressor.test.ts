import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inflateSync } from 'node:zlib';
import { PageCompressor } from './page-compressor-node.js';

const random = new Uint8Array(4096).map((_, index) => (index * index * 2654435761 + (index ^ 0x5a) * 40503) >>> 11);

test('each page by itself: zero ones have no content, ones that do not shrink stay as they are', async () => {
  const compressor = new PageCompressor(4096, 2);
  try {
    const contents = [
      new Uint8Array(4096),
      new Uint8Array(Buffer.alloc(4096, 'guest memory ')),
      random,
      new Uint8Array(4096).fill(7),
      new Uint8Array(4096),
    ];
    const batches = [compressor.claim()!, compressor.claim()!, compressor.claim()!, compressor.claim()!];
    assert.equal(compressor.claim(), undefined);
    // All under way at once, the second time over what the first has left.
    for (const rotation of [0, 1]) {
      await Promise.all(
        batches.map(async (batch, index) => {
          const pages = contents.map((_, page) => contents[(page + index + rotation) % contents.length]!);
          pages.forEach((content, page) => {
            batch.pages.set(content, page * 4096);
          });
          await compressor.compress(batch, pages.length);
          let at = 0;
          pages.forEach((content, page) => {
            const length = batch.lengths[page]!;
            const data = Buffer.from(batch.data.slice(at, at + length));
            at += length;
            const isZero = content.every((byte) => byte === 0);
            assert.equal(length === 0, isZero);
            assert.equal(length === 4096, content === random);
            assert.deepEqual(
              isZero ? Buffer.alloc(4096) : length === 4096 ? data : inflateSync(data),
              Buffer.from(content),
            );
          });
        }),
      );
    }
  } finally {
    await compressor.close();
  }
});

test('a batch whose thread has ended is rejected, and so is every one after it', async () => {
  const compressor = new PageCompressor(4096, 1);
  const [first, second] = [compressor.claim()!, compressor.claim()!];
  const underWay = compressor.compress(first, 256);
  await compressor.close();
  await assert.rejects(underWay, /ended/);
  await assert.rejects(compressor.compress(second, 1), /ended/);
});
