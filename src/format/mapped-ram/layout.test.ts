import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { type FileOffset, fileOffset } from '../../memory/units.js';
import { be64, latin1 } from '../bytes.js';
import { bitmapBytesOf, layoutBlock, MAPPED_RAM_HEADER_BYTES, mappedRamStart, readMappedRamHeader } from './layout.js';

// MR-4, MR-5, MR-23, MR-30
test('layout: the positions that QEMU 10 chose for a 64 MiB q35, at byte 0 and at an offset', () => {
  // spec/qemu-wire-format.md 3.2, 3.3: headers at 0x6f and 0x410001e, with offset=0x1234 at 0x12a3.
  assert.deepEqual(layoutBlock(fileOffset(0x6f), 64 * 2 ** 20, 4096), {
    bitmapOffset: 0x8b,
    bitmapBytes: 2048,
    pagesOffset: 0x100000,
    end: 0x4100000,
  });
  assert.deepEqual(layoutBlock(fileOffset(0x410001e), 16 * 2 ** 20, 4096), {
    bitmapOffset: 0x410003a,
    bitmapBytes: 512,
    pagesOffset: 0x4200000,
    end: 0x5200000,
  });
  assert.equal(layoutBlock(fileOffset(0x12a3), 64 * 2 ** 20, 4096).pagesOffset, 0x100000);
});

const positions = fc.integer({ min: 0, max: 2 ** 45 }).map(fileOffset);
const blockLists = fc.array(fc.record({ pages: fc.integer({ min: 0, max: 2 ** 24 }), pageSize: fc.constant(4096) }), {
  minLength: 0,
  maxLength: 5,
});

// MR-4, MR-5, MR-6, MR-7, MR-20, MR-29
test('start section: areas are aligned, apart from each other and from the stream, wherever it begins', () => {
  fc.assert(
    fc.property(positions, blockLists, (start, sizes) => {
      const blocks = sizes.map(({ pages }, index) => ({ name: `block${index}`, usedLength: pages * 4096 }));
      const { pieces, layouts, end } = mappedRamStart(start, 7, blocks, 4096);
      const areas = [
        ...pieces.map(({ position, bytes }) => ({ from: position as number, to: position + bytes.length })),
        ...layouts.flatMap(({ bitmapOffset, bitmapBytes, pagesOffset, end: to }) => [
          { from: bitmapOffset as number, to: bitmapOffset + bitmapBytes },
          { from: pagesOffset as number, to: to as number },
        ]),
      ].sort((a, b) => a.from - b.from || a.to - b.to);
      areas.reduce((before, area) => {
        assert.ok(before <= area.from, `an area begins at ${area.from} inside another one that ends at ${before}`);
        return area.to;
      }, start as number);
      assert.equal(end, areas.at(-1)!.to);
      let used = pieces.reduce((sum, { bytes }) => sum + bytes.length, 0);
      layouts.forEach(({ bitmapBytes, pagesOffset }, index) => {
        assert.equal(pagesOffset % 2 ** 20, 0);
        assert.equal(bitmapBytes, 8 * Math.ceil(sizes[index]!.pages / 64));
        used += bitmapBytes + 2 ** 20 + blocks[index]!.usedLength;
      });
      assert.ok(end - start <= used);
    }),
  );
});

// MR-17, MR-30
test('start section: headers are what a reader needs, in big-endian', () => {
  const start = 0x50 as FileOffset;
  const blocks = [
    { name: 'pc.ram', usedLength: 64 * 2 ** 20 },
    { name: '/rom@etc/acpi/tables', usedLength: 2 ** 17 },
  ];
  const { pieces, layouts } = mappedRamStart(start, 2, blocks, 4096);
  assert.equal(pieces.length, 3);
  blocks.forEach(({ name, usedLength }, index) => {
    const { position, bytes } = pieces[index]!;
    const at = bytes.length - MAPPED_RAM_HEADER_BYTES;
    assert.equal(be64(bytes, at - 8), usedLength);
    assert.equal(latin1(bytes, at - 8 - name.length, at - 8), name);
    const { bitmapOffset, pagesOffset } = layouts[index]!;
    assert.equal(bitmapOffset, position + bytes.length);
    assert.deepEqual(readMappedRamHeader(bytes, at), {
      version: 1,
      pageSize: 4096n,
      bitmapOffset: BigInt(bitmapOffset),
      pagesOffset: BigInt(pagesOffset),
    });
  });
  assert.deepEqual([...pieces[2]!.bytes], [0, 0, 0, 0, 0, 0, 0, 0x10, 0x7e, 0, 0, 0, 2]);
});

test('start section: two blocks of one name are refused', () => {
  const twice = [
    { name: 'pc.ram', usedLength: 4096 },
    { name: 'pc.ram', usedLength: 4096 },
  ];
  assert.throws(() => mappedRamStart(fileOffset(0), 2, twice, 4096), { code: 'USAGE_DUPLICATE_BLOCK' });
});

// MR-23
test('bitmap: whole 64-bit words', () => {
  assert.deepEqual([0, 1, 64, 65, 1024].map(bitmapBytesOf), [0, 8, 8, 16, 128]);
});
