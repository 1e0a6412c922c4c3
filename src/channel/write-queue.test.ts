import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { byteLength, WriteQueue } from './write-queue.js';

test('whatever each system call takes, all bytes leave in order and each memory comes back once its last byte left', () => {
  const sizes = fc.array(fc.oneof(fc.nat(20), fc.nat(300)), { maxLength: 700 });
  const shares = fc.array(fc.double({ min: 0.1, max: 1, noNaN: true }), { minLength: 1, maxLength: 50 });
  fc.assert(
    fc.property(sizes, shares, (lengths, taken) => {
      const queue = new WriteQueue();
      const all = Uint8Array.from(
        { length: lengths.reduce((sum, length) => sum + length, 0) },
        (_, index) => index % 251,
      );
      const ends: number[] = [];
      const done: number[] = [];
      const wire: number[] = [];
      let at = 0;
      for (const [index, length] of lengths.entries()) {
        queue.push(all.subarray(at, (at += length)), (error) => {
          assert.equal(error, undefined);
          done.push(index);
          assert.ok(wire.length >= ends[index]!);
        });
        ends.push(at);
      }
      for (let call = 0; queue.length > 0; call++) {
        const pieces = queue.batch();
        assert.ok(pieces.length > 0 && pieces.length <= 1024);
        const byteCount = byteLength(pieces);
        const written = Math.min(byteCount, 1 + Math.floor(byteCount * taken[call % taken.length]!));
        wire.push(...Buffer.concat(pieces).subarray(0, written));
        queue.completed(written);
      }
      assert.deepEqual(Uint8Array.from(wire), all);
      assert.deepEqual(done, [...lengths.keys()]);
    }),
    { numRuns: 30 },
  );
});

test('a batch is one large piece, or several small ones', () => {
  const queue = new WriteQueue();
  for (const length of [8, 3 << 20, 8, 8]) {
    queue.push(new Uint8Array(length), () => {});
  }
  const batches: number[] = [];
  while (queue.length > 0) {
    const pieces = queue.batch();
    batches.push(pieces.length);
    queue.completed(byteLength(pieces));
  }
  assert.deepEqual(batches, [1, 1, 2]);
});
