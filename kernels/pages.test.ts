// Every page kernel, wasm and twin, against what plain array code says (TS-8), with the bytes around every buffer.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  bindPageKernels,
  GUEST_PAGE_SIZE,
  LoadStop,
  NORMAL_RECORD_BYTES,
  type PageKernels,
  ZERO_RECORD_BYTES,
} from './index.js';
import { bindPageTwin } from './twin/pages-twin.js';

const WASM_PAGE = 65536;
const memoryOf = (byteCount: number): WebAssembly.Memory => {
  const pages = Math.ceil(byteCount / WASM_PAGE);
  return new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
};

/** Runs `body` for both implementations, each with a fresh memory. */
const forBoth = (byteCount: number, body: (kernels: PageKernels, bytes: Buffer, name: string) => void): void => {
  for (const [name, bind] of [
    ['wasm', bindPageKernels],
    ['twin', bindPageTwin],
  ] as const) {
    const memory = memoryOf(byteCount);
    body(bind(memory), Buffer.from(memory.buffer), name);
  }
};

test('isZeroPage sees one set bit anywhere in the page and none beside it (TS-8)', () => {
  forBoth(WASM_PAGE, (kernels, bytes) => {
    const page = 3 * GUEST_PAGE_SIZE + 16;
    bytes.fill(0xff);
    bytes.fill(0, page, page + GUEST_PAGE_SIZE);
    assert.equal(kernels.isZeroPage(page), 1);
    for (let i = 0; i < GUEST_PAGE_SIZE; i++) {
      bytes[page + i] = 1 << (i & 7);
      assert.equal(kernels.isZeroPage(page), 0, `byte ${i}`);
      bytes[page + i] = 0;
    }
  });
});

test('scanZero for 0..70 pages writes whole 32-bit words and nothing more (TS-8)', () => {
  forBoth(80 * GUEST_PAGE_SIZE, (kernels, bytes, name) => {
    const out = 72 * GUEST_PAGE_SIZE;
    const zero = (page: number): boolean => (page * 7) % 5 < 2;
    for (let page = 0; page < 72; page++) {
      bytes[page * GUEST_PAGE_SIZE + ((page * 977) & 4095)] = zero(page) ? 0 : 0x80;
    }
    for (let pageCount = 0; pageCount <= 70; pageCount++) {
      bytes.fill(0xee, out, out + 64);
      const expected = Buffer.alloc(64, 0xee);
      expected.fill(0, 0, Math.ceil(pageCount / 32) * 4);
      let count = 0;
      for (let page = 0; page < pageCount; page++) {
        expected[page >> 3]! |= zero(page) ? 1 << (page & 7) : 0;
        count += zero(page) ? 1 : 0;
      }
      assert.equal(kernels.scanZero(0, pageCount, out), count, `${name} ${pageCount}`);
      assert.deepEqual(bytes.subarray(out, out + 64), expected, `${name} ${pageCount}`);
    }
  });
});

// Layout of the record tests: an extent of 24 pages, a second one to load into, then small buffers and the stream.
const EXTENT_PAGES = 24;
const SOURCE = 4096;
const TARGET = SOURCE + (EXTENT_PAGES + 1) * GUEST_PAGE_SIZE;
const LIST = TARGET + (EXTENT_PAGES + 1) * GUEST_PAGE_SIZE;
const NAME = LIST + 1024;
const WRITTEN = NAME + 1024;
const RESULT = WRITTEN + 1024;
// Records have no alignment.
const STREAM = RESULT + 1024 + 3;
const MEMORY_BYTES = STREAM + 64 * NORMAL_RECORD_BYTES;

/** One record as the format has it (spec/qemu-wire-format.md 2.4). */
const record = (page: number, content: Buffer, id?: Buffer): Buffer => {
  const isZero = content.every((byte) => byte === 0);
  const head = Buffer.alloc(8);
  head.writeBigUInt64BE(BigInt(page) * 4096n + (isZero ? 2n : 8n) + (id === undefined ? 0x20n : 0n));
  return Buffer.concat([head, id ?? Buffer.alloc(0), isZero ? Buffer.alloc(1) : content]);
};

/** Page contents by number: some zero, some with a single byte at their end, the rest full. */
const content = (page: number): Buffer => {
  const bytes = Buffer.alloc(GUEST_PAGE_SIZE);
  if (page % 3 === 1) {
    bytes[4095] = page;
  } else if (page % 3 === 2) {
    bytes.fill(`page ${page} `);
  }
  return bytes;
};

const result = (bytes: Buffer): number[] => [0, 4, 8, 12].map((at) => bytes.readInt32LE(RESULT + at));

test('emitRecords writes the stream that the format describes, with and without a block id', () => {
  // Block pages up to the last one of an 8 TiB block, so that headers need more than 32 bits.
  const firstPages = fc.constantFrom(0, 1, 100, 2 ** 20 - 12, 2 ** 31 - EXTENT_PAGES);
  fc.assert(
    fc.property(
      firstPages,
      fc.array(fc.nat(EXTENT_PAGES - 1), { maxLength: 40 }),
      fc.constantFrom('', 'pc.ram'),
      (firstPage, pages, id) => {
        const name = id === '' ? undefined : Buffer.concat([Buffer.of(id.length), Buffer.from(id)]);
        forBoth(MEMORY_BYTES, (kernels, bytes) => {
          bytes.fill(0xcc, STREAM - 3);
          for (let page = 0; page < EXTENT_PAGES; page++) {
            bytes.set(content(page), SOURCE + page * GUEST_PAGE_SIZE);
          }
          bytes.set(name ?? [], NAME);
          pages.forEach((page, i) => {
            bytes.writeInt32LE(firstPage + page, LIST + 4 * i);
          });
          const before = Buffer.from(bytes);
          const expected = Buffer.concat(
            pages.map((page, i) => record(firstPage + page, content(page), i === 0 ? name : undefined)),
          );
          const zero = kernels.emitRecords(LIST, pages.length, SOURCE, firstPage, NAME, name?.length ?? 0, STREAM);
          assert.equal(zero, pages.filter((page) => page % 3 === 0).length);
          expected.copy(before, STREAM);
          assert.ok(bytes.equals(before));
        });
      },
    ),
    { numRuns: 30 },
  );
});

test('emitVector names the pieces of the same stream, the pages where they lie', () => {
  // Addresses with a high half, as processes have them; and a base from which the low half carries over.
  const bases = fc.constantFrom(0, 0x7f12_3456_7000, 2 ** 40 - 4096);
  const firstPages = fc.constantFrom(0, 100, 2 ** 31 - EXTENT_PAGES);
  fc.assert(
    fc.property(
      bases,
      firstPages,
      fc.array(fc.nat(EXTENT_PAGES - 1), { maxLength: 40 }),
      fc.constantFrom('', 'pc.ram'),
      (base, firstPage, pages, id) => {
        const name = id === '' ? undefined : Buffer.concat([Buffer.of(id.length), Buffer.from(id)]);
        forBoth(MEMORY_BYTES, (kernels, bytes) => {
          const vector = STREAM - 3 + 8192;
          for (let page = 0; page < EXTENT_PAGES; page++) {
            bytes.set(content(page), SOURCE + page * GUEST_PAGE_SIZE);
          }
          bytes.set(name ?? [], NAME);
          pages.forEach((page, i) => {
            bytes.writeInt32LE(firstPage + page, LIST + 4 * i);
          });
          const entries = kernels.emitVector(
            LIST,
            pages.length,
            SOURCE,
            firstPage,
            NAME,
            name?.length ?? 0,
            STREAM,
            base,
            vector,
          );
          const normal = pages.filter((page) => page % 3 !== 0);
          assert.equal(entries >>> 1, normal.length);
          const pieces = Array.from({ length: entries }, (_, i) => {
            const at = Number(bytes.readBigUInt64LE(vector + 16 * i)) - base;
            return bytes.subarray(at, at + Number(bytes.readBigUInt64LE(vector + 16 * i + 8)));
          });
          const expected = pages.map((page, i) => record(firstPage + page, content(page), i === 0 ? name : undefined));
          assert.ok(Buffer.concat(pieces).equals(Buffer.concat(expected)));
          // Not copies: every second piece is a page of the extent.
          assert.deepEqual(
            pieces.filter((_, i) => i % 2 === 1).map(({ byteOffset }) => byteOffset),
            normal.map((page) => SOURCE + page * GUEST_PAGE_SIZE),
          );
        });
      },
    ),
    { numRuns: 30 },
  );
});

/** The loader's contract, page by page. */
const load = (stream: Buffer, firstPage: number, extent: Buffer, written: Set<number>): number[] => {
  let [at, zero, normal] = [0, 0, 0];
  for (;;) {
    const ended = (stop: number): number[] => [at, zero, normal, stop, 0];
    if (stream.length - at < 8) {
      return ended(LoadStop.needMore);
    }
    const head = stream.readBigUInt64BE(at);
    const flags = Number(head & 0xfffn);
    const page = Number(head >> 12n) - firstPage;
    if (flags !== 0x22 && flags !== 0x28) {
      return ended(LoadStop.other);
    }
    if (page < 0 || page >= EXTENT_PAGES) {
      return ended(LoadStop.outside);
    }
    if (stream.length - at < (flags === 0x22 ? ZERO_RECORD_BYTES : NORMAL_RECORD_BYTES)) {
      return ended(LoadStop.needMore);
    }
    if (flags === 0x28) {
      stream.copy(extent, page * GUEST_PAGE_SIZE, at + 8, at + NORMAL_RECORD_BYTES);
      written.add(page);
      normal++;
      at += NORMAL_RECORD_BYTES;
      continue;
    }
    if (stream[at + 8] !== 0) {
      return ended(LoadStop.other);
    }
    if (written.has(page)) {
      extent.fill(0, page * GUEST_PAGE_SIZE, (page + 1) * GUEST_PAGE_SIZE);
    }
    zero++;
    at += ZERO_RECORD_BYTES;
  }
};

/** Loads `stream` with both implementations and compares everything with `load`. */
const checkLoad = (stream: Buffer, firstPage: number, writtenBefore: readonly number[]): void => {
  forBoth(MEMORY_BYTES, (kernels, bytes, name) => {
    bytes.fill(0xab, TARGET, TARGET + EXTENT_PAGES * GUEST_PAGE_SIZE);
    // The bit of a page that was written is set; bits beyond the extent belong to nobody and must stay.
    bytes.writeUInt32LE(0xff000000, WRITTEN);
    for (const page of writtenBefore) {
      bytes[WRITTEN + (page >> 3)]! |= 1 << (page & 7);
    }
    stream.copy(bytes, STREAM);
    const before = Buffer.from(bytes);
    const extent = before.subarray(TARGET, TARGET + EXTENT_PAGES * GUEST_PAGE_SIZE);
    const written = new Set(writtenBefore);
    const [consumed, ...expected] = load(stream, firstPage, extent, written);
    for (const page of written) {
      before[WRITTEN + (page >> 3)]! |= 1 << (page & 7);
    }
    expected.forEach((value, i) => {
      before.writeInt32LE(value, RESULT + 4 * i);
    });
    assert.equal(
      kernels.loadRecords(STREAM, stream.length, TARGET, firstPage, EXTENT_PAGES, WRITTEN, RESULT),
      consumed,
      name,
    );
    assert.deepEqual(result(bytes), expected, name);
    assert.ok(bytes.equals(before), name);
  });
};

test('loadRecords scatters, stops and reports as the contract says, for any mix of records', () => {
  const anyRecord = (firstPage: number): fc.Arbitrary<Buffer> => {
    const page = fc.nat(EXTENT_PAGES - 1);
    const head = fc.tuple(
      fc.oneof(fc.bigInt(0n, 2n ** 64n - 1n), fc.constantFrom(0x10n, 0x22n, 0x28n, 0x2an, 0x08n, 0x02n, 0x60n)),
    );
    return fc.oneof(
      { weight: 12, arbitrary: page.map((p) => record(firstPage + p, content(p))) },
      // The same page with another content: zero over written, written over zero.
      { weight: 12, arbitrary: page.map((p) => record(firstPage + p, content(p + 1))) },
      { weight: 1, arbitrary: page.map((p) => record(firstPage + p, content(p), Buffer.from('\u0003abc', 'latin1'))) },
      {
        weight: 1,
        arbitrary: fc
          .constantFrom(firstPage - 1, firstPage + EXTENT_PAGES, 2 ** 40)
          .map((p) => record(Math.max(p, 0), content(2))),
      },
      {
        weight: 1,
        arbitrary: head.map(([value]) => {
          const bytes = Buffer.alloc(9);
          bytes.writeBigUInt64BE(value);
          return bytes;
        }),
      },
      {
        weight: 1,
        arbitrary: page.map((p) => {
          const bytes = record(firstPage + p, content(0));
          bytes[8] = 7;
          return bytes;
        }),
      },
    );
  };
  const cases = fc
    .constantFrom(0, 5, 2 ** 31 - EXTENT_PAGES)
    .chain((firstPage) =>
      fc.tuple(
        fc.constant(firstPage),
        fc.array(anyRecord(firstPage), { maxLength: 20 }),
        fc.array(fc.nat(EXTENT_PAGES - 1), { maxLength: 6 }),
        fc.nat(9),
      ),
    );
  fc.assert(
    fc.property(cases, ([firstPage, records, writtenBefore, cut]) => {
      const stream = Buffer.concat(records);
      checkLoad(stream.subarray(0, Math.max(0, stream.length - cut)), firstPage, writtenBefore);
    }),
    { numRuns: 200 },
  );
});

test('loadRecords takes a stream cut anywhere in three records', () => {
  const stream = Buffer.concat([
    record(2, content(2)),
    record(3, content(0)),
    record(4, content(1)),
    Buffer.from('0000000000000010', 'hex'),
  ]);
  const cuts = [...Array(24).keys()].flatMap((i) => [i, 4096 + i, 8208 + i]);
  for (const cut of cuts.filter((length) => length <= stream.length)) {
    checkLoad(stream.subarray(0, cut), 0, [3]);
  }
});

test('what emitRecords writes, loadRecords reads back', () => {
  forBoth(MEMORY_BYTES, (kernels, bytes) => {
    const firstPage = 77;
    for (let page = 0; page < EXTENT_PAGES; page++) {
      bytes.set(content(page), SOURCE + page * GUEST_PAGE_SIZE);
      bytes.writeInt32LE(firstPage + page, LIST + 4 * page);
    }
    const zero = kernels.emitRecords(LIST, EXTENT_PAGES, SOURCE, firstPage, 0, 0, STREAM);
    const length = zero * ZERO_RECORD_BYTES + (EXTENT_PAGES - zero) * NORMAL_RECORD_BYTES;
    assert.equal(kernels.loadRecords(STREAM, length, TARGET, firstPage, EXTENT_PAGES, WRITTEN, RESULT), length);
    assert.deepEqual(result(bytes), [zero, EXTENT_PAGES - zero, LoadStop.needMore, 0]);
    const [source, target] = [SOURCE, TARGET].map((at) => bytes.subarray(at, at + EXTENT_PAGES * GUEST_PAGE_SIZE));
    assert.ok(source!.equals(target!));
  });
});

test('pattern: wasm and twin write the same bytes, inside the page only', () => {
  const keys = fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 });
  const [wasmMemory, twinMemory] = [memoryOf(WASM_PAGE), memoryOf(WASM_PAGE)];
  const [wasm, twin] = [bindPageKernels(wasmMemory), bindPageTwin(twinMemory)];
  const [wasmBytes, twinBytes] = [Buffer.from(wasmMemory.buffer), Buffer.from(twinMemory.buffer)];
  fc.assert(
    fc.property(keys, keys, fc.nat(3), (key, generation, at) => {
      const address = GUEST_PAGE_SIZE * at + 16;
      wasmBytes.fill(0x33);
      twinBytes.fill(0x33);
      wasm.fillPattern(address, key, generation);
      twin.fillPattern(address, key, generation);
      assert.ok(wasmBytes.equals(twinBytes));
      assert.ok(wasmBytes.subarray(0, address).every((byte) => byte === 0x33));
      assert.ok(wasmBytes.subarray(address + GUEST_PAGE_SIZE).every((byte) => byte === 0x33));
      // As two's complement or as unsigned: the same key.
      for (const kernels of [wasm, twin]) {
        assert.equal(kernels.checkPattern(address, key, generation), 1);
        assert.equal(kernels.checkPattern(address, key >>> 0, generation >>> 0), 1);
        assert.equal(kernels.checkPattern(address, key + 1, generation), 0);
        assert.equal(kernels.checkPattern(address, key, generation + 1), 0);
        assert.equal(kernels.checkPattern(address, generation, key), key === generation ? 1 : 0);
      }
    }),
  );
});

test('pattern: a page that is stale, misplaced, shifted, zero, or torn in any word fails the check', () => {
  forBoth(WASM_PAGE, (kernels, bytes) => {
    const [page, other] = [0, GUEST_PAGE_SIZE];
    const good = (): void => kernels.fillPattern(page, 5, 9);
    for (const [key, generation] of [
      [5, 8],
      [6, 9],
      [9, 5],
      [0, 0],
    ] as const) {
      kernels.fillPattern(other, key, generation);
      for (let word = 0; word < 512; word++) {
        good();
        bytes.copy(bytes, page + word * 8, other + word * 8, other + word * 8 + 8);
        assert.equal(kernels.checkPattern(page, 5, 9), 0, `word ${word} of (${key}, ${generation})`);
      }
    }
    for (let byte = 0; byte < GUEST_PAGE_SIZE; byte++) {
      good();
      bytes[byte]! ^= 1 << (byte & 7);
      assert.equal(kernels.checkPattern(page, 5, 9), 0, `byte ${byte}`);
    }
    good();
    bytes.copyWithin(page, page + 8, page + GUEST_PAGE_SIZE);
    assert.equal(kernels.checkPattern(page, 5, 9), 0);
    kernels.zeroFill(page, GUEST_PAGE_SIZE);
    assert.equal(kernels.checkPattern(page, 5, 9), 0);
    // (0, 0) is a pattern like any other, not a page of zeros.
    assert.equal(kernels.checkPattern(page, 0, 0), 0);
  });
});

test('zeroFill and copy touch exactly their range, overlapping copies included', () => {
  forBoth(WASM_PAGE, (kernels, bytes) => {
    fc.assert(
      fc.property(fc.nat(3000), fc.nat(3000), fc.nat(3000), (source, target, byteCount) => {
        for (let i = 0; i < 8192; i++) {
          bytes[i] = (i * 31) >> 3;
        }
        const expected = Buffer.from(bytes.subarray(0, 8192));
        kernels.copy(target, source, byteCount);
        expected.copyWithin(target, source, source + byteCount);
        assert.ok(expected.equals(bytes.subarray(0, 8192)));
        kernels.zeroFill(source, byteCount);
        expected.fill(0, source, source + byteCount);
        assert.ok(expected.equals(bytes.subarray(0, 8192)));
      }),
      { numRuns: 50 },
    );
  });
});

test('digestPages: the twin and wasm agree at any address, write two words a page and nothing more (TS-8)', () => {
  fc.assert(
    fc.property(fc.nat(4200), fc.integer({ min: 1, max: 4 }), fc.integer(), (address, pageCount, seed) => {
      const out = 8 * GUEST_PAGE_SIZE;
      const results: Buffer[] = [];
      forBoth(WASM_PAGE, (kernels, bytes) => {
        for (let at = 0; at < 6 * GUEST_PAGE_SIZE; at += 4) {
          bytes.writeInt32LE(Math.imul(seed ^ at, 0x9e3779b1) ^ (at >>> 3), at);
        }
        bytes.fill(0xee, out, out + 64);
        kernels.digestPages(address, pageCount, out);
        assert.ok(bytes.subarray(out + pageCount * 8, out + 64).every((byte) => byte === 0xee));
        results.push(Buffer.from(bytes.subarray(out, out + 64)));
      });
      assert.deepEqual(results[0], results[1]);
    }),
    { numRuns: 50 },
  );
});

/** Digests of pages that `fill` writes, each from zero, as numbers of 64 bits. */
const digestsOf = (fills: Iterable<(page: Buffer) => void>): bigint[] => {
  const memory = memoryOf(WASM_PAGE);
  const kernels = bindPageKernels(memory);
  const page = Buffer.from(memory.buffer, GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
  const result = Buffer.from(memory.buffer, 0, 8);
  return Array.from(fills, (fill) => {
    page.fill(0);
    fill(page);
    kernels.digestPages(GUEST_PAGE_SIZE, 1, 0);
    return result.readBigUInt64LE();
  });
};

const assertDistinct = (digests: readonly bigint[]): void => {
  assert.equal(new Set(digests).size, digests.length);
  // Neither half alone would do much worse.
  for (const half of [digests.map((digest) => digest & 0xffffffffn), digests.map((digest) => digest >> 32n)]) {
    assert.ok(digests.length - new Set(half).size <= 2 + digests.length ** 2 / 2 ** 31, `${new Set(half).size}`);
  }
};

test('digestPages: zero is zero; any single bit, any constant, any place of a few bytes makes another digest', () => {
  assert.deepEqual(digestsOf([() => {}]), [0n]);
  const bits = Array.from({ length: GUEST_PAGE_SIZE * 8 }, (_, bit) => (page: Buffer) => {
    page[bit >> 3] = 1 << (bit & 7);
  });
  const constants = Array.from({ length: 255 }, (_, value) => (page: Buffer) => page.fill(value + 1));
  const places = Array.from(
    { length: GUEST_PAGE_SIZE - 8 },
    (_, at) => (page: Buffer) => page.write('\x7fELF\x02\x01\x01', at),
  );
  assertDistinct(digestsOf([() => {}, ...bits, ...constants, ...places]));
});

test('digestPages: shifted content, exchanged words, two bits flipped are seen', () => {
  const content = Buffer.alloc(2 * GUEST_PAGE_SIZE);
  for (let at = 0; at < content.length; at += 4) {
    // As pointers in a table: alike, and rising.
    content.writeInt32LE(0x7f001000 + at * 16, at);
  }
  const shifted = Array.from({ length: GUEST_PAGE_SIZE }, (_, by) => (page: Buffer) => content.copy(page, 0, by));
  const exchanged = Array.from({ length: 1023 }, (_, word) => (page: Buffer) => {
    content.copy(page);
    const other = ((word * 577) % 1023) + 1;
    content.copy(page, word * 4, other * 4, other * 4 + 4);
    content.copy(page, other * 4, word * 4, word * 4 + 4);
  }).filter((_, word) => ((word * 577) % 1023) + 1 > word);
  // The same bit, in words of one lane and of several.
  const flipped = [4, 16, 64, 128, 256, 1024].flatMap((distance) =>
    Array.from({ length: 512 }, (_, index) => (page: Buffer) => {
      content.copy(page);
      const [byte, bit] = [(index * 37) % 2048, 1 << (index & 7)];
      page[byte]! ^= bit;
      page[byte + distance]! ^= bit;
    }),
  );
  assertDistinct(digestsOf([...shifted, ...exchanged, ...flipped]));
});
