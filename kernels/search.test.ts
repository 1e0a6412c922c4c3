// Every search kernel, wasm and twin, against what plain array code says (TS-8).

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { bindSearchKernels, type SearchKernels } from './index.js';
import { bindSearchTwin } from './twin/search-twin.js';

const NEEDLE = 8192;
const TABLE = 16384;

const forBoth = (body: (kernels: SearchKernels, bytes: Buffer, name: string) => void): void => {
  for (const [name, bind] of [
    ['wasm', bindSearchKernels],
    ['twin', bindSearchTwin],
  ] as const) {
    const memory = new WebAssembly.Memory({ initial: 1, maximum: 1 });
    body(bind(memory), Buffer.from(memory.buffer), name);
  }
};

/** Few different bytes, so that much is found. */
const content = fc.uint8Array({ minLength: 1, maxLength: 400, max: 3 });

test('findMasked finds the first place at which every masked byte fits, and looks at no place outside (TS-8)', () => {
  forBoth((kernels, bytes, name) => {
    const needles = fc.array(fc.tuple(fc.nat(3), fc.constantFrom(0xff, 0xff, 0xfe, 0)), {
      minLength: 1,
      maxLength: 40,
    });
    const check = fc.property(content, needles, fc.nat(400), fc.nat(400), fc.nat(1000), (hay, needle, a, b, choice) => {
      bytes.fill(2);
      bytes.set(hay, 100);
      const length = needle.length;
      needle.forEach(([value, mask], index) => {
        bytes[NEEDLE + index] = value & mask;
        bytes[NEEDLE + length + index] = mask;
      });
      const from = 100 + Math.min(a, b, hay.length);
      const end = 100 + Math.min(Math.max(a, b), hay.length);
      let expected = from;
      const isAt = (place: number): boolean =>
        needle.every(([value, mask], index) => (bytes[place + index]! & mask) === (value & mask));
      while (expected < end && !isAt(expected)) {
        expected += 1;
      }
      const first = choice % length;
      const second = Math.floor(choice / length) % length;
      assert.equal(kernels.findMasked(from, end, NEEDLE, length, first, second), expected, name);
    });
    fc.assert(check, { numRuns: 1500 });
  });
});

test('findMasked finds a needle at each place of the lanes (TS-8)', () => {
  forBoth((kernels, bytes, name) => {
    bytes.set([7, 8, 9, 0xff, 0xff, 0xff], NEEDLE);
    for (let place = 0; place < 300; place += 1) {
      bytes.fill(0, 0, NEEDLE);
      bytes.set([7, 8, 9], place);
      assert.equal(kernels.findMasked(0, 300, NEEDLE, 3, 0, 2), place, name);
      assert.equal(kernels.findMasked(0, place, NEEDLE, 3, 2, 1), place, `${name}: not at the end itself`);
      assert.equal(kernels.findMasked(place + 1, 301, NEEDLE, 3, 1, 1), 301, `${name}: not before the start`);
    }
  });
});

test('findRun finds the first run that is long enough, runEnd its end (TS-8)', () => {
  forBoth((kernels, bytes, name) => {
    const check = fc.property(content, fc.integer({ min: 1, max: 12 }), fc.nat(400), (hay, least, start) => {
      bytes.fill(1, TABLE, TABLE + 256);
      bytes[TABLE] = 0;
      bytes.set(hay, 0);
      const from = Math.min(start, hay.length);
      let expected = hay.length;
      for (let place = hay.length - least; place >= from; place -= 1) {
        if (hay.subarray(place, place + least).every((byte) => byte !== 0)) {
          expected = place;
        }
      }
      assert.equal(kernels.findRun(from, hay.length, TABLE, least), expected, name);
      const stop = hay.indexOf(0, from);
      assert.equal(kernels.runEnd(from, hay.length, TABLE), stop < 0 ? hay.length : stop, name);
    });
    fc.assert(check, { numRuns: 1500 });
  });
});
