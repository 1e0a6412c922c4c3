// An opened mapped-ram file reads as the memory that a destination would have loaded.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { mappedRamFile, richMappedRamFile, type TestFile } from '../../../test/mapped-ram-builder.js';
import { testConfiguration } from '../../../test/streams.js';
import { pageIndex } from '../../memory/units.js';
import { ByteWriter } from '../byte-writer.js';
import { openSnapshot, type SnapshotOptions } from '../open-snapshot.js';
import { PageKind, type Snapshot } from '../snapshot.js';
import { ElementType, RecordFlag } from '../stream/constants.js';
import { ramBodyEnd, ramPart, sectionHeader, streamEnd, streamHeader } from '../stream/write.js';
import { PageBitmap } from './page-bitmap.js';
import { MappedRamSnapshot } from './snapshot.js';

const open = (
  { bytes }: Pick<TestFile, 'bytes'>,
  options: SnapshotOptions = {},
): { snapshot: MappedRamSnapshot; reads: { position: number; length: number }[] } => {
  const reads: { position: number; length: number }[] = [];
  const snapshot = openSnapshot(
    (position, target) => {
      assert.ok(position >= 0 && position + target.length <= bytes.length);
      reads.push({ position, length: target.length });
      target.set(bytes.subarray(position, position + target.length));
    },
    bytes.length,
    options,
  );
  assert.ok(snapshot instanceof MappedRamSnapshot);
  return { snapshot, reads };
};

/** The whole content of each block, read into memory that was not clean. */
const contents = (snapshot: Snapshot, pagesPerRead: number): Map<string, Uint8Array> =>
  new Map(
    snapshot.setup.blocks.map(({ index, name, usedLength }) => {
      const { targetPageSize: size } = snapshot.setup;
      const target = new Uint8Array(usedLength).fill(0xee);
      for (let page = 0; page < usedLength / size; page += pagesPerRead) {
        const count = Math.min(pagesPerRead, usedLength / size - page);
        snapshot.readPages(index, pageIndex(page), count, target.subarray(page * size, (page + count) * size));
      }
      return [name, target];
    }),
  );

// MR-1, MR-16
test('content: present pages from their places, absent ones zero although stale bytes lie there', () => {
  const file = richMappedRamFile();
  const { snapshot } = open(file);
  for (const pagesPerRead of [1, 7, 64, 1000]) {
    assert.deepEqual(contents(snapshot, pagesPerRead), file.memory);
  }
  assert.deepEqual(snapshot.counts(0), { presentPages: 11, zeroPages: 0, absentPages: 289 });
  assert.deepEqual(snapshot.counts(2), { presentPages: 0, zeroPages: 0, absentPages: 65 });
  assert.deepEqual(snapshot.summary.tail, file.tail);
  assert.deepEqual(
    snapshot.summary.devices.map(({ name, bytes }) => [name, bytes]),
    [
      ['timer', 24],
      ['cpu', 5000],
    ],
  );
  assert.deepEqual([snapshot.summary.warnings, snapshot.summary.complete], [[], true]);
  assert.equal(snapshot.kindOf(0, pageIndex(64)), PageKind.present);
  assert.equal(snapshot.kindOf(0, pageIndex(100)), PageKind.absent);
});

// MR-20: everything counts from the start of the file, the offsets in it and those that are shown.
test('at an offset: the same memory, and the same file read from byte 0 is refused', () => {
  const file = richMappedRamFile({ start: 0x1234 });
  const { snapshot } = open(file, { startOffset: 0x1234 });
  assert.deepEqual(contents(snapshot, 50), file.memory);
  assert.equal(snapshot.summary.bytes, file.bytes.length - 0x1234);
  assert.throws(() => open({ bytes: file.bytes.subarray(0x1234) }), {
    code: 'MAPPED_RAM_BITMAP_OFFSET',
    hint: /4660 bytes further on/,
  });
});

test('another page size than 4096', () => {
  const file = mappedRamFile([{ name: 'mach-virt.ram', pages: 70, present: [0, 3, 69] }], { pageSize: 65536 });
  assert.deepEqual(contents(open(file).snapshot, 9), file.memory);
});

// MR-30
test('opening reads heads, bitmaps and the tail; runs are read in one piece', () => {
  const present = Array.from({ length: 5000 }, (_, page) => page).filter((page) => page < 3000 || page > 4000);
  const file = mappedRamFile([{ name: 'pc.ram', pages: 10_000, present }]);
  const { snapshot, reads } = open(file);
  // The first piece is read before it is known what the file is.
  assert.ok(reads.reduce((sum, { length }) => sum + length, 0) < 2 ** 20 + 2 * 128 * 1024 + 1256);
  assert.equal(snapshot.indexBytes, 1256);
  const { pagesOffset } = file.layouts[0]!;
  assert.deepEqual(snapshot.presentRun(0, pageIndex(0)), { firstPage: 0, pageCount: 3000, offset: pagesOffset });
  const second = { firstPage: 4001, pageCount: 999, offset: pagesOffset + 4001 * 4096 };
  assert.deepEqual(snapshot.presentRun(0, pageIndex(3000)), second);
  assert.equal(snapshot.presentRun(0, pageIndex(5000)), undefined);
  assert.equal(snapshot.presentRun(0, pageIndex(3000), 4001), undefined);
  assert.equal(snapshot.nextPresent(0, pageIndex(3000)), 4001);
  assert.equal(snapshot.nextPresent(0, pageIndex(5000)), 10_000);
  assert.equal(snapshot.nextPresent(0, pageIndex(3000), pageIndex(4001)), 4001);
  assert.equal(snapshot.nextPresent(0, pageIndex(3000), pageIndex(4002)), 4001);
  assert.equal(snapshot.nextPresent(0, pageIndex(5000), pageIndex(6000)), 6000);
  reads.length = 0;
  snapshot.readPages(0, pageIndex(2990), 1100, new Uint8Array(1100 * 4096));
  assert.deepEqual(
    reads.map(({ length }) => length / 4096),
    [10, 89],
  );
});

test('stale pages are those that hold bytes without a bit', () => {
  const { snapshot } = open(richMappedRamFile());
  assert.equal(snapshot.stalePages(0, pageIndex(0), 300), 2);
  assert.equal(snapshot.stalePages(0, pageIndex(5), 1), 1);
  assert.equal(snapshot.stalePages(0, pageIndex(6), 94), 0);
  assert.equal(snapshot.stalePages(1, pageIndex(0), 1), 0);
  assert.equal(snapshot.stalePages(2, pageIndex(0), 65), 1);
});

// MR-22: as QEMU 11.0 writes blocks that x-ignore-shared leaves out, however long they are.
test('a block that was left out takes no room in the file, and cannot be read', () => {
  const capabilities = ['x-ignore-shared', 'mapped-ram'];
  const usedLength = 2 ** 46;
  const out = new ByteWriter().bytes(streamHeader(testConfiguration({ capabilities })));
  sectionHeader(out, ElementType.SECTION_START, 1, 'ram', 0, 4).be64(usedLength + RecordFlag.MEM_SIZE);
  out.str8('shared').be64(usedLength).be64(0).be32(1).be64(4096).be64(0).be64(0);
  out.bytes(ramBodyEnd(1)).bytes(ramPart(ElementType.SECTION_END, 1)).bytes(ramBodyEnd(1)).bytes(streamEnd(''));
  const { snapshot } = open({ bytes: out.copy() });
  assert.deepEqual(snapshot.counts(0), { presentPages: 0, zeroPages: 0, absentPages: 2 ** 34 });
  assert.equal(snapshot.nextPresent(0, pageIndex(0)), 2 ** 34);
  assert.equal(snapshot.kindOf(0, pageIndex(2 ** 33)), PageKind.absent);
  assert.equal(snapshot.stalePages(0, pageIndex(5), 2 ** 33), 0);
  assert.deepEqual(snapshot.cells(0, 2 ** 33)[1], { presentPages: 0, zeroPages: 0, absentPages: 2 ** 33 });
  const page = new Uint8Array(4096).fill(1);
  assert.throws(() => snapshot.readPages(0, pageIndex(2 ** 34 - 1), 1, page), {
    code: 'MEMORY_ELSEWHERE',
    value: 'shared',
  });
  assert.deepEqual([...snapshot.elsewhere], [0]);
  assert.equal(snapshot.indexBytes, 0);
});

test('the bitmaps have a limit', () => {
  const file = richMappedRamFile();
  open(file, { indexLimitBytes: 40 + 8 + 16 });
  assert.throws(() => open(file, { indexLimitBytes: 40 + 8 + 15 }), { code: 'INDEX_TOO_LARGE' });
});

test('without END: read if pages are marked, refused if none is although bytes are there', () => {
  const file = richMappedRamFile({ end: false });
  const { snapshot } = open(file);
  assert.equal(snapshot.summary.backgroundSnapshot, true);
  assert.deepEqual(contents(snapshot, 300), file.memory);
  const without = richMappedRamFile({ end: false, bitmaps: false });
  assert.throws(() => open(without, { file: 'guest.mapped' }), {
    code: 'MAPPED_RAM_NO_BITMAPS',
    file: 'guest.mapped',
    offset: without.layouts[0]!.pagesOffset,
  });
  // With END the bitmaps were written: a guest that has nothing but zero pages.
  assert.equal(open(richMappedRamFile({ bitmaps: false })).snapshot.counts(0).presentPages, 0);
});

test('page bitmap: against a plain array', () => {
  fc.assert(
    fc.property(
      fc.array(fc.boolean(), { minLength: 1, maxLength: 300 }),
      fc.nat(299),
      fc.nat(300),
      (bits, somewhere, span) => {
        const bytes = new Uint8Array(8 * Math.ceil(bits.length / 64));
        bits.forEach((bit, page) => {
          bytes[page >> 3]! |= bit ? 1 << (page & 7) : 0;
        });
        const bitmap = new PageBitmap(bytes, bits.length);
        const from = somewhere % bits.length;
        const end = Math.min(from + span, bits.length);
        const range = bits.slice(from, end);
        const found = (bit: boolean): number => (range.indexOf(bit) < 0 ? end : from + range.indexOf(bit));
        assert.equal(bitmap.nextSet(from, end), found(true));
        assert.equal(bitmap.nextClear(from, end), found(false));
        assert.equal(bitmap.count(from, end), range.filter(Boolean).length);
        assert.equal(bitmap.has(from), bits[from]);
        assert.equal(bitmap.strayBit(), undefined);
      },
    ),
  );
});
