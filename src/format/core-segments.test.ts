// Segments of a core by virtual address: every byte of memory is in one, at each address that somebody has mapped.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { physicalSegments, virtualSegments } from './core-segments.js';
import type { PhysicalRange } from './physical-range.js';

const PAGE = 4096;
const NOWHERE = 1n << 63n;

/** Block 1 before and behind a hole, block 0 right behind its second part. */
const ranges: PhysicalRange[] = [
  { address: 0, block: 1, offset: 0, bytes: 4 * PAGE },
  { address: 8 * PAGE, block: 1, offset: 4 * PAGE, bytes: 4 * PAGE },
  { address: 12 * PAGE, block: 0, offset: 2 * PAGE, bytes: 3 * PAGE },
];
const offsetOf = (block: number, offset: number): number => (block === 0 ? 0 : 5 * PAGE) + offset;

test('without paging, virtual addresses are the physical ones', () => {
  assert.deepEqual(physicalSegments(ranges, offsetOf), [
    { virtual: 0, physical: 0, offset: 5 * PAGE, bytes: 4 * PAGE },
    { virtual: 8 * PAGE, physical: 8 * PAGE, offset: 9 * PAGE, bytes: 4 * PAGE },
    { virtual: 12 * PAGE, physical: 12 * PAGE, offset: 2 * PAGE, bytes: 3 * PAGE },
  ]);
});

test('a mapping is cut at holes and blocks; what is not mapped has an address that no processor takes', () => {
  const mapping = { virtual: 0xffff_8880_0000_0000n, physical: 2 * PAGE, bytes: 12 * PAGE };
  const { segments, ...sums } = virtualSegments(ranges, [mapping], offsetOf);
  const kernel = (page: number): bigint => 0xffff_8880_0000_0000n + BigInt(page * PAGE);
  assert.deepEqual(segments, [
    { virtual: kernel(0), physical: 2 * PAGE, offset: 7 * PAGE, bytes: 2 * PAGE },
    { virtual: kernel(6), physical: 8 * PAGE, offset: 9 * PAGE, bytes: 4 * PAGE },
    { virtual: kernel(10), physical: 12 * PAGE, offset: 2 * PAGE, bytes: 2 * PAGE },
    { virtual: NOWHERE, physical: 0, offset: 5 * PAGE, bytes: 2 * PAGE },
    { virtual: NOWHERE + BigInt(14 * PAGE), physical: 14 * PAGE, offset: 4 * PAGE, bytes: PAGE },
  ]);
  assert.deepEqual(sums, { mappings: 3, mappedBytes: 8 * PAGE, unmappedBytes: 3 * PAGE });
});

test('whatever is mapped: every mapped byte of memory is at its address, and all memory is there', () => {
  const mapping = fc.record({ physical: fc.nat(20), pages: fc.integer({ min: 1, max: 12 }) });
  fc.assert(
    fc.property(fc.array(mapping, { maxLength: 8 }), (chosen) => {
      const mappings = chosen.map(({ physical, pages }, index) => ({
        virtual: BigInt((index + 1) * 64 * PAGE),
        physical: physical * PAGE,
        bytes: pages * PAGE,
      }));
      const { segments, mappedBytes, unmappedBytes } = virtualSegments(ranges, mappings, offsetOf);
      const expected = new Map<bigint, number>();
      const isMapped = new Set<number>();
      const placeOf = (address: number): number | undefined => {
        const range = ranges.find((each) => address >= each.address && address < each.address + each.bytes);
        return range && offsetOf(range.block, range.offset + address - range.address);
      };
      for (const { virtual, physical, bytes } of mappings) {
        for (let at = 0; at < bytes; at += PAGE) {
          const place = placeOf(physical + at);
          if (place !== undefined) {
            expected.set(virtual + BigInt(at), place);
            isMapped.add(physical + at);
          }
        }
      }
      for (let address = 0; address < 16 * PAGE; address += PAGE) {
        const place = placeOf(address);
        if (place !== undefined && !isMapped.has(address)) {
          expected.set(NOWHERE + BigInt(address), place);
        }
      }
      const actual = new Map<bigint, number>();
      for (const { virtual, offset, bytes, physical } of segments) {
        assert.ok(bytes > 0);
        for (let at = 0; at < bytes; at += PAGE) {
          assert.equal(offset + at, placeOf(physical + at));
          assert.ok(!actual.has(BigInt(virtual) + BigInt(at)));
          actual.set(BigInt(virtual) + BigInt(at), offset + at);
        }
      }
      assert.deepEqual([...actual].sort(), [...expected].sort());
      assert.deepEqual([mappedBytes, unmappedBytes], [isMapped.size * PAGE, (11 - isMapped.size) * PAGE]);
    }),
    { numRuns: 300 },
  );
});

test('large pages that have all memory in them, in a thousand pieces, are written down so often and no more', () => {
  const pieces = Array.from({ length: 1024 }, (_, index) => ({
    address: index * 2 * PAGE,
    block: 0,
    offset: index * PAGE,
    bytes: PAGE,
  }));
  const mapping = (index: number) => ({ virtual: BigInt(index) * 2n ** 30n, physical: 0, bytes: 2 ** 30 });
  const mappings = Array.from({ length: 10 }, (_, index) => mapping(index));
  assert.equal(virtualSegments(pieces, mappings, (_, offset) => offset, 10_240).segments.length, 10_240);
  assert.throws(() => virtualSegments(pieces, mappings, (_, offset) => offset, 10_239), {
    kind: 'failed',
    code: 'TOO_MANY_MAPPINGS',
    message: 'The vCPUs have mapped more than 10239 pieces of memory.',
  });
});
