// The digests of millions of MiBs, read without an object for each.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { SavedMebibytes } from './saved-mebibytes.js';

const parse = (json: string): SavedMebibytes | undefined => {
  const bytes = Buffer.from(json);
  return SavedMebibytes.parse(bytes, 1, bytes.length - 1);
};

const hash = fc.string({ unit: fc.constantFrom(...'0123456789abcdef'), minLength: 16, maxLength: 16 });

test('what JSON.stringify writes is read back', () => {
  fc.assert(
    fc.property(fc.dictionary(fc.integer({ min: 0, max: 2 ** 31 }).map(String), hash), (saved) => {
      const read = parse(JSON.stringify(saved))!;
      const keys = Object.keys(saved).map(Number);
      assert.deepEqual([...read.numbers], keys);
      for (const key of keys) {
        assert.equal(read.get(key), saved[key]);
        assert.equal(read.get(key + 1), saved[key + 1]);
      }
      assert.equal(read.get(-1), undefined);
    }),
  );
});

test('anything else is none', () => {
  const right = '{"1":"0123456789abcdef","20":"fedcba9876543210"}';
  assert.equal(parse(right)?.get(20), 'fedcba9876543210');
  for (let at = 1; at < right.length - 1; at += 1) {
    for (const other of ['', 'x', '"', ',', ' ', '1"']) {
      const text = right.slice(0, at) + other + right.slice(at + 1);
      const read = parse(text);
      const isDigits = /^\{("\d+":"[0-9a-f]{16}",?)*\}$/.test(text) && !text.includes(',}');
      assert.ok(read === undefined || isDigits, text);
    }
  }
  assert.equal(parse('{"2":"0123456789abcdef","1":"0123456789abcdef"}'), undefined);
  assert.equal(parse('{"1":"0123456789ABCDEF"}'), undefined);
  assert.equal(parse('{}')?.numbers.length, 0);
});

test('50 MB of them take their own size and little more', () => {
  const count = 1_000_000;
  const bytes = Buffer.alloc(28 * count, ' ');
  let length = bytes.write('{');
  for (let mebibyte = 0; mebibyte < count; mebibyte += 1) {
    length += bytes.write(`"${mebibyte}":"0123456789abcdef"${mebibyte === count - 1 ? '}' : ','}`, length, 'latin1');
  }
  const before = process.memoryUsage();
  const read = SavedMebibytes.parse(bytes, 1, length - 1)!;
  const after = process.memoryUsage();
  assert.equal(read.numbers.length, count);
  const taken = after.heapUsed + after.external - before.heapUsed - before.external;
  assert.ok(taken < bytes.length, `${taken} bytes`);
});
