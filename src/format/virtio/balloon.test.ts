import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { type BalloonFields, balloonFieldBytes, decodeBalloonFields, encodeBalloonFields } from './balloon.js';

const word = fc.nat(2 ** 32 - 1);

test('the fields of a balloon survive, whatever follows them', () => {
  const fields = fc.record(
    {
      targetPages: word,
      actualPages: word,
      freePageHint: fc.record({ commandId: word, status: fc.nat(3) }, { noNullPrototype: true }),
      poisonValue: word,
    },
    { requiredKeys: ['targetPages', 'actualPages'], noNullPrototype: true },
  );
  fc.assert(
    fc.property(fields as fc.Arbitrary<BalloonFields>, fc.uint8Array({ maxLength: 60 }), (expected, rest) => {
      const bytes = encodeBalloonFields(expected);
      assert.equal(balloonFieldBytes(Uint8Array.of(...bytes, ...rest)), bytes.length);
      assert.deepEqual(decodeBalloonFields(bytes), expected);
    }),
  );
});

test('fields that are cut, of another version or of no status are refused', () => {
  const good = encodeBalloonFields({ targetPages: 1, actualPages: 2, freePageHint: { commandId: 2 ** 31, status: 3 } });
  const changed = (at: number): Uint8Array => good.map((byte, index) => (index === at ? 9 : byte));
  for (const bytes of [good.subarray(0, -1), good.subarray(0, 7), changed(good.length - 1), changed(good.length - 9)]) {
    assert.throws(() => decodeBalloonFields(bytes), { code: 'BALLOON_STATE', kind: 'invalid' });
  }
});
