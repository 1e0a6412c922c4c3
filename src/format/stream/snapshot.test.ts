// An opened stream file reads as the memory that a destination would have loaded.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { patternPage, richStream, StreamBuilder, type TestRecord } from '../../../test/streams.js';
import { pageIndex } from '../../memory/units.js';
import { ByteWriter } from '../byte-writer.js';
import { openSnapshot, type SnapshotOptions } from '../open-snapshot.js';
import { PageKind, type ReadAt, type Snapshot } from '../snapshot.js';
import { ElementType } from './constants.js';
import { RecordRun } from './record-run.js';
import { normalRecord, ramBodyEnd, ramPart, ramStart, streamEnd, xbzrleRecord, zeroRecord } from './write.js';

/** Opens a stream in memory; `reads` counts what it asked for since opening. */
const open = (bytes: Uint8Array, options: SnapshotOptions = {}): { snapshot: Snapshot; reads: () => number } => {
  let reads = 0;
  const readAt: ReadAt = (position, target) => {
    reads += 1;
    assert.ok(position + target.length <= bytes.length);
    target.set(bytes.subarray(position, position + target.length));
  };
  const snapshot = openSnapshot(readAt, bytes.length, options);
  reads = 0;
  return { snapshot, reads: () => reads };
};

/** The whole content of each block, read into memory that was not clean. */
const contents = (snapshot: Snapshot, pagesPerRead = 1000): Map<string, Uint8Array> =>
  new Map(
    snapshot.setup.blocks.map(({ index, name, usedLength }) => {
      const pageCount = usedLength / snapshot.setup.targetPageSize;
      const target = new Uint8Array(usedLength).fill(0xee);
      for (let page = 0; page < pageCount; page += pagesPerRead) {
        const count = Math.min(pagesPerRead, pageCount - page);
        const { targetPageSize: size } = snapshot.setup;
        snapshot.readPages(index, pageIndex(page), count, target.subarray(page * size, (page + count) * size));
      }
      return [name, target];
    }),
  );

test('a stream with everything', () => {
  const { bytes, memory } = richStream();
  const { snapshot } = open(bytes);
  assert.deepEqual(contents(snapshot), memory);
  assert.deepEqual(contents(snapshot, 1), memory);
  // pc.ram: pages 1, 2 and 5 present; 0 and 63 zero, the latter after it was present.
  assert.deepEqual(snapshot.counts(0), { presentPages: 3, zeroPages: 2, absentPages: 59 });
  assert.deepEqual(snapshot.counts(1), { presentPages: 1, zeroPages: 1, absentPages: 2 });
  assert.deepEqual(snapshot.counts(2), { presentPages: 1, zeroPages: 0, absentPages: 0 });
  const kinds = [0, 1, 3, 63].map((page) => snapshot.kindOf(0, pageIndex(page)));
  assert.deepEqual(kinds, [PageKind.zero, PageKind.present, PageKind.absent, PageKind.zero]);
  const present: number[] = [];
  for (let page = pageIndex(0); (page = snapshot.nextPresent(0, page)) < 64; page = pageIndex(page + 1)) {
    present.push(page);
  }
  assert.deepEqual(present, [1, 2, 5]);
  const upTo = (from: number, end: number): number => snapshot.nextPresent(0, pageIndex(from), pageIndex(end));
  assert.deepEqual([upTo(3, 5), upTo(3, 6), upTo(6, 60), upTo(64, 64)], [5, 5, 60, 64]);
});

test('any sequence of records, against the memory it makes', () => {
  const blocks = [
    { name: 'a', usedLength: 1100 * 4096 },
    { name: 'b', usedLength: 3 * 4096 },
  ];
  const record = fc
    .tuple(
      fc.constantFrom('a', 'b'),
      fc.constantFrom(0, 1, 2, 511, 512, 1099),
      fc.constantFrom('zero' as const, 'normal' as const, 'xbzrle' as const),
      fc.nat(1000),
    )
    .map(([block, page, kind, seed]): TestRecord => {
      const where = { block, page: block === 'b' ? page % 3 : page };
      // Some bytes only, so that XBZRLE does not overflow.
      const content = new Uint8Array(4096);
      content.set(patternPage(seed, 64), seed * 4);
      return kind === 'zero' ? { ...where, kind } : { ...where, kind, content };
    });
  fc.assert(
    fc.property(fc.array(fc.array(record, { maxLength: 12 }), { maxLength: 4 }), (parts) => {
      const builder = new StreamBuilder().header().ramStart(blocks);
      for (const records of parts) {
        builder.part(records);
      }
      const { snapshot } = open(builder.end().devices([]).bytes);
      assert.deepEqual(contents(snapshot, 700), builder.memory);
      const last = new Map(parts.flat().map(({ block, page, kind }) => [`${block}${page}`, kind]));
      const kindsOf = (block: string): string[] =>
        [...last].filter(([key]) => key.startsWith(block)).map(([, kind]) => kind);
      for (const [index, { name, usedLength }] of blocks.entries()) {
        const zeroPages = kindsOf(name).filter((kind) => kind === 'zero').length;
        const presentPages = kindsOf(name).length - zeroPages;
        const absentPages = usedLength / 4096 - zeroPages - presentPages;
        assert.deepEqual(snapshot.counts(index), { presentPages, zeroPages, absentPages });
      }
    }),
    { numRuns: 60 },
  );
});

test('runs of pages, in any order, again and again, cut by zero pages and by the ends of reads', () => {
  const run = fc
    .record({
      block: fc.constantFrom('a', 'b'),
      kind: fc.constantFrom('zero' as const, 'normal' as const, 'normal' as const),
      first: fc.nat(60),
      count: fc.integer({ min: 1, max: 12 }),
      seed: fc.nat(1000),
    })
    .map(({ block, kind, first, count, seed }) =>
      Array.from({ length: count }, (_, index): TestRecord => {
        const where = { block, page: first + index };
        return kind === 'zero' ? { ...where, kind } : { ...where, kind, content: patternPage(seed + index) };
      }),
    );
  const runs = fc.array(run, { minLength: 1, maxLength: 12 });
  fc.assert(
    fc.property(runs, runs, fc.integer({ min: 1, max: 72 }), (first, second, pagesPerRead) => {
      const builder = new StreamBuilder().header().ramStart([
        { name: 'a', usedLength: 72 * 4096 },
        { name: 'b', usedLength: 72 * 4096 },
      ]);
      const { snapshot } = open(builder.part(first.flat()).part(second.flat()).end().devices([]).bytes);
      // Not deepEqual: it takes minutes to say how two memories differ.
      for (const [name, bytes] of contents(snapshot, pagesPerRead)) {
        assert.equal(Buffer.compare(bytes, builder.memory.get(name)!), 0, `the content of ${name}`);
      }
      const last = new Map([...first, ...second].flat().map(({ block, page, kind }) => [`${block}${page}`, kind]));
      for (const { index, name } of snapshot.setup.blocks) {
        const kinds = [...last].filter(([key]) => key.startsWith(name)).map(([, kind]) => kind);
        const presentPages = kinds.filter((kind) => kind === 'normal').length;
        const zeroPages = kinds.length - presentPages;
        assert.deepEqual(snapshot.counts(index), { presentPages, zeroPages, absentPages: 72 - kinds.length });
      }
    }),
    { numRuns: 100 },
  );
});

test('a run of records ends where one is odd', () => {
  const run = new RecordRun(4096);
  const records = new ByteWriter();
  for (const page of [3, 4, 5, 7]) {
    normalRecord(records, page * 4096, patternPage(page));
  }
  zeroRecord(records, 8 * 4096);
  zeroRecord(records, 9 * 4096);
  const bytes = records.copy();
  const stride = 8 + 4096;
  const found = (start: number, end = bytes.length, usedLength = 100 * 4096): unknown => {
    const length = run.read(bytes, start, end, usedLength);
    return length === 0 ? 'none' : [run.isZero, run.firstPage, run.pageCount, length];
  };
  assert.deepEqual(found(0), [false, 3, 3, 3 * stride]);
  assert.deepEqual(found(0, 3 * stride - 1), [false, 3, 2, 2 * stride], 'a record that is not all there');
  assert.deepEqual(found(0, bytes.length, 5 * 4096), [false, 3, 2, 2 * stride], 'a page outside the block');
  assert.deepEqual(found(0, bytes.length, 3 * 4096), 'none');
  assert.deepEqual(found(3 * stride), [false, 7, 1, stride]);
  assert.deepEqual(found(4 * stride), [true, 8, 2, 18]);
  assert.deepEqual(found(4 * stride, 4 * stride + 17), [true, 8, 1, 9]);
  for (const [at, value] of [
    [4 * stride + 8 + 9, 1], // the fill of the second zero page
    [4 * stride + 9 + 1, 1], // the address of the second zero page
    [4 * stride + 9 + 7, 0x02], // its flags: it names its block
  ] as const) {
    const before = bytes[at]!;
    bytes[at] = value;
    assert.deepEqual(found(4 * stride), [true, 8, 1, 9], `byte ${at - 4 * stride}`);
    bytes[at] = before;
  }
  bytes[0] = 0xff;
  assert.equal(found(0), 'none', 'an address that no number holds');
});

test('neighbouring pages come with one read', () => {
  const records = Array.from(
    { length: 600 },
    (_, page): TestRecord =>
      page % 7 === 3
        ? { block: 'a', page, kind: 'zero' }
        : { block: 'a', page, kind: 'normal', content: patternPage(page) },
  );
  const builder = new StreamBuilder().header().ramStart([{ name: 'a', usedLength: 600 * 4096 }]);
  const { snapshot, reads } = open(builder.part(records).end().devices([]).bytes);
  assert.deepEqual(contents(snapshot, 600), builder.memory);
  // 514 pages in stretches of at most 1 MiB.
  assert.equal(reads(), 3);
});

test('a huge block of which little is stored costs what is stored', () => {
  const usedLength = 2 ** 50;
  const out = new StreamBuilder().header();
  // By hand: the builder keeps memory for its blocks.
  out.raw(ramStart(1, [{ name: 'a', usedLength }])).raw(ramPart(2, 1));
  const records = new ByteWriter();
  for (let page = 0; page < 100; page += 1) {
    zeroRecord(records, page * 2 ** 40, 'a');
  }
  normalRecord(records, usedLength - 4096, patternPage(5), 'a');
  const { snapshot } = open(out.raw(records.copy()).raw(ramBodyEnd(1)).end().devices([]).bytes);
  assert.deepEqual(snapshot.counts(0), { presentPages: 1, zeroPages: 100, absentPages: 2 ** 38 - 101 });
  assert.equal(snapshot.nextPresent(0, pageIndex(0)), 2 ** 38 - 1);
  assert.equal(snapshot.nextPresent(0, pageIndex(2 ** 38)), 2 ** 38);
  assert.ok(snapshot.indexBytes < 101 * 5000);
  const page = new Uint8Array(4096);
  snapshot.readPages(0, pageIndex(2 ** 38 - 1), 1, page);
  assert.deepEqual(page, patternPage(5));
});

test('the index has a limit', () => {
  const bytes = richStream().bytes;
  const { snapshot } = open(bytes);
  assert.throws(() => open(bytes, { indexLimitBytes: snapshot.indexBytes - 1 }), { code: 'INDEX_TOO_LARGE' });
  open(bytes, { indexLimitBytes: snapshot.indexBytes });
});

test('bytes behind the stream are a warning; a broken XBZRLE record is found when opening', () => {
  const { bytes } = richStream();
  const { snapshot } = open(Buffer.concat([bytes, Buffer.alloc(5)]));
  assert.deepEqual(snapshot.summary.warnings, [`5 bytes follow the stream, from byte ${bytes.length} on.`]);
  const broken = new StreamBuilder()
    .header()
    .ramStart([{ name: 'a', usedLength: 4096 }])
    .raw(ramPart(2, 1));
  broken.raw(xbzrleRecord(new ByteWriter(), 0, Uint8Array.of(5), 'a').copy()).raw(ramBodyEnd(1));
  assert.throws(() => open(broken.end().devices([]).bytes), { kind: 'invalid', code: 'XBZRLE' });
});

test('pages outside the block, and targets of another size, are the caller’s mistake', () => {
  const { snapshot } = open(richStream().bytes);
  assert.throws(() => snapshot.readPages(0, pageIndex(60), 5, new Uint8Array(5 * 4096)), { kind: 'usage' });
  assert.throws(() => snapshot.readPages(0, pageIndex(0), 1, new Uint8Array(4097)), { kind: 'usage' });
});

test('a page that came as two thousand differences is put together with a few reads', () => {
  const count = 2000;
  const out = new ByteWriter();
  normalRecord(out, 0, new Uint8Array(4096).fill(1), 'a');
  for (let index = 0; index < count; index += 1) {
    // One byte more of the page is 2 each time.
    const at = index % 127;
    xbzrleRecord(out, 0, Uint8Array.of(at, 1, 2 + (index % 100)), 'a');
  }
  const builder = new StreamBuilder().header().raw(ramStart(1, [{ name: 'a', usedLength: 4096 }]));
  builder.raw(ramPart(ElementType.SECTION_PART, 1)).raw(out.copy()).raw(ramBodyEnd(1));
  builder.raw(ramPart(ElementType.SECTION_END, 1)).raw(ramBodyEnd(1)).raw(streamEnd(''));
  const { snapshot, reads } = open(builder.bytes);
  const target = new Uint8Array(4096);
  snapshot.readPages(0, pageIndex(0), 1, target);
  const expected = new Uint8Array(4096).fill(1);
  for (let index = 0; index < count; index += 1) {
    expected[index % 127] = 2 + (index % 100);
  }
  assert.deepEqual(target, expected);
  assert.ok(reads() < 10, `${reads()} reads`);
});
