// XBZRLE: the vectors and corner cases of spec/qemu-wire-format.md 2.6, and a round trip.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { decodeXbzrle, encodeXbzrle, XBZRLE_OVERFLOW } from './xbzrle.js';

const PAGE = 4096;

const decode = (encoded: string, page = new Uint8Array(PAGE)): Uint8Array => {
  const bytes = Buffer.from(encoded.replaceAll(' ', ''), 'hex');
  decodeXbzrle(bytes, 0, bytes.length, page, 1000);
  return page;
};

/** A zero page with some bytes set. */
const pageWith = (bytes: Readonly<Record<number, number>>): Uint8Array => {
  const page = new Uint8Array(PAGE);
  for (const [at, value] of Object.entries(bytes)) {
    page[Number(at)] = value;
  }
  return page;
};

test('the vectors, both ways', () => {
  for (const [encoded, page] of [
    ['00 01 01', pageWith({ 0: 1 })],
    ['ff1f 01 aa', pageWith({ 4095: 0xaa })],
    ['02 02 1122', pageWith({ 2: 0x11, 3: 0x22 })],
  ] as const) {
    const out = new Uint8Array(PAGE);
    const length = encodeXbzrle(new Uint8Array(PAGE), page, out);
    assert.equal(Buffer.from(out.subarray(0, length)).toString('hex'), encoded.replaceAll(' ', ''));
    assert.deepEqual(decode(encoded), page);
  }
});

test('what is allowed: nothing at all, over-long lengths, an end before the end of the page', () => {
  assert.deepEqual(decode(''), new Uint8Array(PAGE));
  assert.deepEqual(decode('8200 8100 aa'), pageWith({ 2: 0xaa }));
  assert.deepEqual(decode('00 01 aa', new Uint8Array(PAGE).fill(7)), new Uint8Array(PAGE).fill(7).fill(0xaa, 0, 1));
});

test('what is not', () => {
  for (const [what, encoded] of [
    ['a lone byte', '05'],
    ['an equal run without a changed run', '8100'],
    ['an equal run and half a changed run', '05 01'],
    ['an empty equal run that is not the first', '00 01 aa 00 01 bb'],
    ['an empty changed run', '05 00 aa'],
    ['an equal run beyond the page', 'ff7f 01 aa'],
    ['a changed run beyond the page', 'ff1f 02 aabb'],
    ['a changed run beyond the input', '00 05 aabb'],
    ['a length of three bytes', '8080 01 aa'],
  ] as const) {
    assert.throws(() => decode(encoded), { kind: 'invalid', code: 'XBZRLE' }, what);
  }
  assert.throws(() => decode('00 01 aa 00 01 bb'), { offset: 1004 });
});

test('an encoded page decodes to itself, and is never longer than a page', () => {
  const page = fc.uint8Array({ minLength: 512, maxLength: 512, max: 3 });
  fc.assert(
    fc.property(page, page, fc.nat(512), (oldPage, random, same) => {
      const newPage = random.slice();
      newPage.set(oldPage.subarray(0, same));
      const out = new Uint8Array(512);
      const length = encodeXbzrle(oldPage, newPage, out);
      if (length === XBZRLE_OVERFLOW) {
        return;
      }
      const decoded = oldPage.slice();
      decodeXbzrle(out, 0, length, decoded, 0);
      assert.deepEqual(decoded, newPage);
      assert.equal(length === 0, Buffer.compare(oldPage, newPage) === 0);
    }),
  );
});

test('a page that changed in every other byte overflows', () => {
  const newPage = Uint8Array.from({ length: PAGE }, (_, at) => at % 2);
  assert.equal(encodeXbzrle(new Uint8Array(PAGE), newPage, new Uint8Array(PAGE)), XBZRLE_OVERFLOW);
});

test('the largest page that lengths can describe', () => {
  const newPage = new Uint8Array(16384);
  newPage[16383] = 9;
  const out = new Uint8Array(16384);
  const length = encodeXbzrle(new Uint8Array(16384), newPage, out);
  assert.deepEqual(Buffer.from(out.subarray(0, length)).toString('hex'), 'ff7f0109');
});
