// Bad mapped-ram files: every case of which QEMU crashes, hangs or loads garbage, cuts, and mutations.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { startCpuTimer } from '../../../test/cpu-time.js';
import { headerOffset, mappedRamFile, richMappedRamFile, type TestFile } from '../../../test/mapped-ram-builder.js';
import { RamferryError } from '../../memory/errors.js';
import { ByteWriter } from '../byte-writer.js';
import { openSnapshot } from '../open-snapshot.js';
import type { Snapshot } from '../snapshot.js';
import { zeroRecord } from '../stream/write.js';

const open = (bytes: Uint8Array, sizeBytes = bytes.length): Snapshot =>
  openSnapshot((position, target) => {
    assert.ok(position >= 0 && position + target.length <= sizeBytes, `${position} + ${target.length}`);
    // What a sparse file has beyond its data.
    target.fill(0);
    target.set(bytes.subarray(position, position + target.length));
  }, sizeBytes);

const put64 = (bytes: Uint8Array, at: number, value: bigint): void =>
  new DataView(bytes.buffer, bytes.byteOffset).setBigUint64(at, value);

// MR-5, MR-14, MR-17, MR-20, MR-24: header fields are at 0 (version), 4 (page size), 12 (bitmap) and 20 (pages).
const cases: readonly [
  what: string,
  code: string,
  spoil: (file: TestFile) => { offset: number; value?: number | bigint | string },
][] = [
  ['version 2', 'MAPPED_RAM_VERSION', (file) => field32(file, 0, 2)],
  ['page size 0', 'MAPPED_RAM_PAGE_SIZE', (file) => field64(file, 4, 0n)],
  ['page size 2^40', 'MAPPED_RAM_PAGE_SIZE', (file) => field64(file, 4, 2n ** 40n)],
  ['page size 8192', 'MAPPED_RAM_PAGE_SIZE', (file) => field64(file, 4, 8192n)],
  ['page size 2048: a bitmap longer than the block', 'MAPPED_RAM_PAGE_SIZE', (file) => field64(file, 4, 2048n)],
  ['bitmap beyond the file', 'MAPPED_RAM_BITMAP_OFFSET', (file) => field64(file, 12, 2n ** 63n)],
  ['bitmap in the stream', 'MAPPED_RAM_BITMAP_OFFSET', (file) => field64(file, 12, 0n)],
  [
    'bitmap of another block',
    'MAPPED_RAM_BITMAP_OFFSET',
    (file) => field64(file, 12, BigInt(file.layouts[1]!.bitmapOffset)),
  ],
  ['pages at 2^63', 'MAPPED_RAM_PAGES_OFFSET', (file) => field64(file, 20, 2n ** 63n)],
  ['pages behind the end', 'MAPPED_RAM_PAGES_OFFSET', (file) => field64(file, 20, BigInt(file.bytes.length) & ~4095n)],
  ['pages over the bitmap', 'MAPPED_RAM_PAGES_OFFSET', (file) => field64(file, 20, 0n)],
  ['pages not aligned', 'MAPPED_RAM_PAGES_OFFSET', (file) => field64(file, 20, 2n ** 20n + 512n)],
  ['block of 2^63 bytes', 'LENGTH_TOO_LARGE', (file) => field64(file, -8, 2n ** 63n)],
  ['a total of 2^63', 'LENGTH_TOO_LARGE', (file) => field64(file, -23, 2n ** 63n + 4n)],
  ['block longer than the total', 'RAM_TOTAL', (file) => field64(file, -8, 2n ** 40n)],
  [
    'a bit behind the last page',
    'MAPPED_RAM_BITMAP',
    (file) => {
      const offset = file.layouts[0]!.bitmapOffset + 39;
      file.bytes[offset] = 0x80;
      return { offset, value: 319 };
    },
  ],
  [
    'a name with NUL',
    'NAME_NOT_PRINTABLE',
    (file) => {
      file.bytes[headerOffset(file, 0) - 10] = 0;
      return { offset: headerOffset(file, 0) - 14, value: 'pc.r\0m' };
    },
  ],
  [
    'a page record',
    'MAPPED_RAM_RECORD',
    (file) => {
      file.bytes.set(zeroRecord(new ByteWriter(), 0, 'pc.ram').copy(), file.streamOffset + 5);
      return { offset: file.streamOffset + 5, value: 2 };
    },
  ],
  [
    'a flush mark of multifd',
    'MAPPED_RAM_RECORD',
    (file) => {
      put64(file.bytes, file.streamOffset + 5, 0x200n);
      return { offset: file.streamOffset + 5, value: 0x200 };
    },
  ],
];

const field64 = (file: TestFile, at: number, value: bigint): { offset: number; value?: number | bigint } => {
  const offset = headerOffset(file, 0) + at;
  put64(file.bytes, offset, value);
  return { offset, value: at < 0 && value < 2n ** 53n ? Number(value) : value };
};
const field32 = (file: TestFile, at: number, value: number): { offset: number; value: number } => {
  const offset = headerOffset(file, 0) + at;
  new DataView(file.bytes.buffer).setUint32(offset, value);
  return { offset, value };
};

for (const [what, code, spoil] of cases) {
  test(`refused: ${what}`, () => {
    const file = richMappedRamFile();
    const { offset, value } = spoil(file);
    const cpuMs = startCpuTimer();
    assert.throws(
      () => open(file.bytes),
      (error) => {
        assert.ok(error instanceof RamferryError);
        assert.deepEqual([error.kind, error.code, error.offset, error.value], ['invalid', code, offset, value]);
        assert.match(error.message, new RegExp(`byte ${offset}\\.$`));
        return true;
      },
    );
    assert.ok(cpuMs() < 1000);
  });
}

test('block names are printable: slashes, as QEMU’s ROMs have them, are nothing special', () => {
  const snapshot = open(mappedRamFile([{ name: '/rom@../../etc/passwd', pages: 1 }]).bytes);
  assert.equal(snapshot.setup.blocks[0]!.name, '/rom@../../etc/passwd');
});

test('a huge sparse file: bitmaps within the limit, or refused before anything is allocated', () => {
  const pages = 2 ** 30;
  const { bytes, layouts } = mappedRamFile([{ name: 'pc.ram', pages: 1 }]);
  const header = layouts[0]!.bitmapOffset - 28;
  put64(bytes, header - 8, BigInt(pages) * 4096n);
  // The total, with its flag.
  put64(bytes, header - 8 - 7 - 8, BigInt(pages) * 4096n + 4n);
  const cpuMs = startCpuTimer();
  // Its pages are where a bitmap of 128 MiB leaves them, and the stream ends with them.
  put64(bytes, header + 20, 2n ** 28n);
  assert.throws(
    () =>
      openSnapshot((_, target) => void target.set(bytes.subarray(0, target.length)), 2 ** 43, {
        indexLimitBytes: 2 ** 20,
      }),
    {
      code: 'INDEX_TOO_LARGE',
    },
  );
  assert.ok(cpuMs() < 1000);
});

test('cut anywhere it is incomplete, at the offset where it ends', () => {
  const { bytes, tail, layouts } = richMappedRamFile();
  const eof = bytes.length - tail.description.length - 6;
  const cuts = [
    ...Array.from({ length: 200 }, (_, index) => index + 1),
    ...layouts.flatMap(({ bitmapOffset, pagesOffset, end }) =>
      [bitmapOffset, pagesOffset, end].flatMap((at) => [at - 1, at, at + 1]),
    ),
    ...Array.from({ length: 5000 }, (_, index) => eof - index),
  ];
  for (const end of cuts.filter((at) => at <= eof)) {
    assert.throws(() => open(bytes.subarray(0, end)), { code: 'STREAM_INCOMPLETE', offset: end }, `cut at ${end}`);
  }
});
