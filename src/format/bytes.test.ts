// Integers and text there and back, with the writer growing at every place a value can cross.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { ByteWriter } from './byte-writer.js';
import { be16, be32, be64, be64Exact, isPrintable, latin1 } from './bytes.js';

test('what is written is read, wherever the buffer has to grow', () => {
  for (let capacity = 0; capacity <= 24; capacity += 1) {
    const bytes = new ByteWriter(capacity)
      .u8(0xfe)
      .be16(0xfedc)
      .be32(0xfedcba98)
      .be64(0x1f_edcb_a987_6543)
      .str8('id')
      .copy();
    assert.equal(bytes[0], 0xfe);
    assert.equal(be16(bytes, 1), 0xfedc);
    assert.equal(be32(bytes, 3), 0xfedcba98);
    assert.equal(be64(bytes, 7), 0x1f_edcb_a987_6543);
    assert.equal(latin1(bytes, 16, 18), 'id');
  }
});

test('64-bit values beyond what a number holds are not numbers, but have an exact text', () => {
  fc.assert(
    fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), (value) => {
      const bytes = new Uint8Array(8);
      new DataView(bytes.buffer).setBigUint64(0, value);
      assert.equal(be64Exact(bytes, 0), value);
      assert.equal(be64(bytes, 0), value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : Number.NaN);
    }),
  );
});

test('printable is 20 to 7e', () => {
  for (let byte = 0; byte < 256; byte += 1) {
    assert.equal(isPrintable(Uint8Array.of(0x41, byte), 0, 2), byte >= 0x20 && byte <= 0x7e);
  }
});
