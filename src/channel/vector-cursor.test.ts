import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { WriteVector } from './channel.js';
import { VectorCursor } from './vector-cursor.js';

/** Pieces of `memory` as entries, with addresses that cross a 32-bit border. */
const vectorOf = (memory: Uint8Array, pieces: readonly (readonly [number, number])[]): WriteVector => {
  const base = 2 ** 32 * 5 - 100;
  const entries = new Uint8Array(pieces.length * 16);
  const view = new DataView(entries.buffer);
  for (const [index, [offset, length]] of pieces.entries()) {
    view.setBigUint64(index * 16, BigInt(base + offset), true);
    view.setBigUint64(index * 16 + 8, BigInt(length), true);
  }
  return { memory, base, entries, byteCount: pieces.reduce((sum, [, length]) => sum + length, 0) };
};

test('however it is cut, the pieces leave whole and in order, and what is left starts where the last call stopped', () => {
  const memory = Uint8Array.from({ length: 400 }, (_, index) => index % 251);
  const piece = fc.tuple(fc.nat(200), fc.nat(200));
  fc.assert(
    fc.property(
      fc.array(piece, { maxLength: 20 }),
      fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 1 }),
      (pieces, cuts) => {
        const vector = vectorOf(memory, pieces);
        const expected = pieces.flatMap(([offset, length]) => [...memory.subarray(offset, offset + length)]);
        const cursor = new VectorCursor(vector);
        const written: number[] = [];
        for (let turn = 0; cursor.count > 0; turn += 1) {
          assert.equal(cursor.entries.length, cursor.count * 16);
          const view = new DataView(cursor.entries.buffer, cursor.entries.byteOffset);
          // The system's half: takes some bytes of what the entries name.
          let room = cuts[turn % cuts.length]!;
          let taken = 0;
          for (let entry = 0; entry < cursor.count && room > 0; entry += 1) {
            const offset = Number(view.getBigUint64(entry * 16, true)) - vector.base;
            const length = Math.min(room, Number(view.getBigUint64(entry * 16 + 8, true)));
            written.push(...memory.subarray(offset, offset + length));
            room -= length;
            taken += length;
          }
          cursor.advance(taken);
          if (cursor.count > 0) {
            assert.equal(cursor.piece![0], expected[written.length]);
          }
        }
        assert.equal(cursor.piece, undefined);
        assert.deepEqual(written, expected);
      },
    ),
  );
});
