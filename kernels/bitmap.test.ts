// Every bitmap kernel, wasm and twin, against a naive reference that sees a bitmap as one bit after the other (TS-8).
// Each call runs on three copies of the same memory, which must be equal afterwards to the last byte: that covers the
// result, the buffers, and everything before and behind them.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { type BitmapKernels, bindBitmapKernels } from './index.js';
import { bindBitmapTwin } from './twin/bitmap-twin.js';

const WASM_PAGE = 65536;

const naiveKernels = (bytes: Uint8Array): BitmapKernels => {
  const get = (bitmap: number, bit: number): number => (bytes[bitmap + Math.floor(bit / 8)]! >> (bit % 8)) & 1;
  const put = (bitmap: number, bit: number, value: number): void => {
    const at = bitmap + Math.floor(bit / 8);
    bytes[at] = (bytes[at]! & ~(1 << (bit % 8))) | (value << (bit % 8));
  };
  /** Sums what `visit` returns for every bit of [from, end). */
  const sum = (from: number, end: number, visit: (bit: number) => number): number => {
    let total = 0;
    for (let bit = from; bit < end; bit++) {
      total += visit(bit);
    }
    return total;
  };
  const find = (bitmap: number, from: number, end: number, value: number): number => {
    let bit = from;
    while (bit < end && get(bitmap, bit) !== value) {
      bit++;
    }
    return Math.min(bit, end);
  };
  const testAndClear = (bitmap: number, bit: number): number => {
    const was = get(bitmap, bit);
    put(bitmap, bit, 0);
    return was;
  };
  const int32 = (at: number): DataView => new DataView(bytes.buffer, at, 4);
  return {
    sync: (source, target, wordCount) =>
      sum(0, wordCount * 64, (bit) => {
        const moved = testAndClear(source, bit) & (1 - get(target, bit));
        put(target, bit, get(target, bit) | moved);
        return moved;
      }),
    fetchLog: (remote, snapshot, global, wordCount) =>
      sum(0, wordCount * 64, (bit) => {
        const mark = get(remote, bit);
        put(snapshot, bit, get(snapshot, bit) | mark);
        put(global, bit, get(global, bit) | mark);
        return mark;
      }),
    clearLog: (remote, snapshot, first, count) =>
      sum(first, first + count, (bit) => (testAndClear(snapshot, bit) === 1 ? testAndClear(remote, bit) : 0)),
    countRange: (bitmap, first, count) => sum(first, first + count, (bit) => get(bitmap, bit)),
    findNextSet: (bitmap, from, end) => find(bitmap, from, end, 1),
    findNextClear: (bitmap, from, end) => find(bitmap, from, end, 0),
    setRange: (bitmap, first, count) => {
      for (let bit = first; bit < first + count; bit++) {
        put(bitmap, bit, 1);
      }
    },
    testAndClearRange: (bitmap, first, count) => sum(first, first + count, (bit) => testAndClear(bitmap, bit)),
    complement: (source, target, count) => {
      for (let bit = 0; bit < Math.ceil(count / 64) * 64; bit++) {
        put(target, bit, bit < count ? 1 - get(source, bit) : 0);
      }
    },
    merge: (source, target, wordCount) =>
      sum(0, wordCount * 64, (bit) => {
        put(target, bit, get(target, bit) | get(source, bit));
        return get(source, bit);
      }),
    collect: (bitmap, from, end, out, limit) => {
      let found = 0;
      for (let bit = from; bit < end && found < limit; bit++) {
        if (get(bitmap, bit) === 1) {
          int32(out + 4 * found++).setInt32(0, bit, true);
        }
      }
      return found;
    },
    clearListed: (bitmap, list, count) =>
      sum(0, count, (i) => testAndClear(bitmap, int32(list + 4 * i).getInt32(0, true))),
  };
};

const memoryOf = (wasmPages: number): WebAssembly.Memory =>
  new WebAssembly.Memory({ initial: wasmPages, maximum: wasmPages, shared: true });

/** The same memory three times, with the kernels of each. */
const trio = (size: number) => {
  const wasm = memoryOf(Math.ceil(size / WASM_PAGE));
  const twin = memoryOf(Math.ceil(size / WASM_PAGE));
  const naive = new Uint8Array(size);
  const wasmBytes = Buffer.from(wasm.buffer, 0, size);
  const twinBytes = Buffer.from(twin.buffer, 0, size);
  const kernels = { naive: naiveKernels(naive), wasm: bindBitmapKernels(wasm), twin: bindBitmapTwin(twin) };
  return {
    load(content: Uint8Array): void {
      naive.set(content);
      wasmBytes.set(content);
      twinBytes.set(content);
    },
    /** Runs one call on all three and compares results and memories. */
    check(call: (kernels: BitmapKernels) => unknown, where: () => string): void {
      const expected = call(kernels.naive);
      for (const [name, bytes] of [
        ['wasm', wasmBytes],
        ['twin', twinBytes],
      ] as const) {
        assert.equal(call(kernels[name]), expected, `${name} result, ${where()}`);
        // Not deepEqual: it would print kilobytes.
        assert.ok(bytes.equals(naive), `${name} memory, ${where()}`);
      }
    },
  };
};

/** Deterministic bytes (xorshift), for loops where a shrinking generator would cost more than the kernels. */
const randomBytes = (length: number, seed: number): Uint8Array => {
  let state = seed | 1;
  return Uint8Array.from({ length }, () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state;
  });
};

// Layout of the small memories: three bitmaps apart from each other, then a list.
const A = 64;
const B = 1024;
const C = 2048;
const OUT = 3072;
const SMALL = 8192;

test('range kernels: every start 0..63 and length 0..200 (TS-8, DM-11, DM-12, CB-12)', () => {
  const three = trio(SMALL);
  const mixed = randomBytes(SMALL, 1);
  const contents = [mixed, new Uint8Array(SMALL), new Uint8Array(SMALL).fill(0xff)];
  for (let start = 0; start < 64; start++) {
    for (let length = 0; length <= 200; length++) {
      // Full and empty memory find what random bits hide: a kernel that forgets a mask, or stops at the first bit.
      const content = contents[(start + length) % 8] ?? mixed;
      const where = (): string => `start ${start} length ${length}`;
      three.load(content);
      three.check((k) => k.countRange(A, start, length), where);
      three.check((k) => k.findNextSet(A, start, start + length), where);
      three.check((k) => k.findNextClear(A, start, start + length), where);
      three.check((k) => k.collect(A, start, start + length, OUT, 256), where);
      three.check((k) => k.complement(A, B, start + length), where);
      three.check((k) => k.clearLog(A, C, start, length), where);
      three.check((k) => k.testAndClearRange(B, start, length), where);
      three.check((k) => k.setRange(C, start, length), where);
    }
  }
});

test('word kernels: every length 0..200 words (TS-8, DM-13)', () => {
  const size = 4 * WASM_PAGE;
  const three = trio(size);
  const random = randomBytes(size, 2);
  for (let words = 0; words <= 200; words++) {
    const where = (): string => `${words} words`;
    // A quarter of the bytes, in runs, so that some 128-byte stretches are clean and some are not.
    three.load(random.map((byte, i) => ((i >> 6) % 4 === words % 4 ? byte & random[size - 1 - i]! : 0)));
    three.check((k) => k.fetchLog(8, 4096, 8192, words), where);
    three.check((k) => k.merge(8, 12288, words), where);
    three.check((k) => k.sync(8, 16384, words), where);
    // Everything moved: a second sync finds nothing.
    three.check((k) => k.sync(8, 16384, words), where);
  }
});

/** A bitmap whose words are clear, full, nearly so, or random, in runs, so that whole stretches are skipped. */
const bitmapContent = (words: number): fc.Arbitrary<Uint8Array> =>
  fc
    .array(
      fc.tuple(
        fc.integer({ min: 1, max: 40 }),
        fc.oneof(
          fc.constant(0n),
          fc.constant(2n ** 64n - 1n),
          fc.bigInt(0n, 2n ** 64n - 1n),
          fc.nat(63).map((bit) => 1n << BigInt(bit)),
        ),
      ),
      { minLength: 1, maxLength: 24 },
    )
    .map((runs) => {
      const content = new BigUint64Array(words);
      let at = 0;
      while (at < words) {
        for (const [length, value] of runs) {
          content.fill(value, at, at + length);
          at += length;
        }
      }
      return new Uint8Array(content.buffer);
    });

test('long ranges with clean, full and mixed stretches (TS-8, DM-14, DM-15, DM-16)', () => {
  const words = 320;
  const bytes = words * 8;
  const size = 16 * bytes + bytes * 32;
  const three = trio(size);
  const bits = words * 64;
  const [a, b, c, out] = [bytes, 3 * bytes, 5 * bytes, 8 * bytes];
  const content = fc.tuple(bitmapContent(words), bitmapContent(words), bitmapContent(words));
  fc.assert(
    fc.property(content, fc.nat(bits), fc.nat(bits), fc.nat(words), fc.nat(5000), ([x, y, z], p, q, count, limit) => {
      const [first, end] = p < q ? [p, q] : [q, p];
      const where = (): string => `bits ${first}..${end}, ${count} words, limit ${limit}`;
      const memory = new Uint8Array(size).fill(0xa5);
      memory.set(x, a);
      memory.set(y, b);
      memory.set(z, c);
      three.load(memory);
      three.check((k) => k.countRange(a, first, end - first), where);
      three.check((k) => k.findNextSet(a, first, end), where);
      three.check((k) => k.findNextClear(a, first, end), where);
      three.check((k) => k.collect(a, first, end, out, limit), where);
      three.check((k) => k.complement(a, out, end), where);
      three.check((k) => k.fetchLog(a, b, c, count), where);
      three.check((k) => k.clearLog(a, b, first, end - first), where);
      three.check((k) => k.merge(b, c, count), where);
      three.check((k) => k.sync(c, a, count), where);
      three.check((k) => k.testAndClearRange(a, first, end - first), where);
      three.check((k) => k.setRange(b, first, end - first), where);
    }),
    { numRuns: 150 },
  );
});

test('clearListed counts only bits that were set, a repeated index once (G-2)', () => {
  const three = trio(SMALL);
  fc.assert(
    fc.property(bitmapContent(64), fc.array(fc.nat(64 * 64 - 1), { maxLength: 300 }), (content, list) => {
      const memory = new Uint8Array(SMALL).fill(0x5a);
      memory.set(content, B);
      memory.set(new Uint8Array(Int32Array.from(list).buffer), OUT);
      three.load(memory);
      three.check(
        (k) => k.clearListed(B, OUT, list.length),
        () => list.join(),
      );
    }),
    { numRuns: 100 },
  );
});

test('bit numbers beyond 2^32 reach the right word, up to the end of a 4 GiB memory', () => {
  // Reserved, not committed; only the pages that are touched cost memory.
  const memory = memoryOf(65536);
  const bytes = new Uint8Array(memory.buffer);
  const last = 2 ** 35 - 1;
  for (const kernels of [bindBitmapKernels(memory), bindBitmapTwin(memory)]) {
    kernels.setRange(0, last - 70, 71);
    // 71 bits: eight whole bytes and the upper seven bits of the byte before.
    assert.deepEqual([...bytes.subarray(-10)], [0, 0xfe, 255, 255, 255, 255, 255, 255, 255, 255]);
    assert.equal(kernels.countRange(0, last - 1000, 1001), 71);
    assert.equal(kernels.findNextSet(0, last - 5000, last + 1), last - 70);
    assert.equal(kernels.findNextClear(0, last - 70, last + 1), last + 1);
    assert.equal(kernels.testAndClearRange(0, last - 5000, 5001), 71);
    for (let words = 1; words <= 40; words++) {
      assert.equal(
        kernels.findNextSet(0, last + 1 - words * 64, last + 1),
        last + 1,
        'reads nothing behind the memory',
      );
    }
    // Addresses above 2^31 arrive as what JavaScript's ToInt32 makes of them.
    const bitmap = 2 ** 32 - 64;
    kernels.setRange(bitmap, 500, 12);
    assert.equal(kernels.countRange(bitmap, 0, 512), 12);
    assert.equal(kernels.sync(bitmap, bitmap - 64, 8), 12);
    assert.equal(kernels.testAndClearRange(bitmap - 64, 0, 512), 12);
    assert.equal(kernels.countRange(bitmap, 0, 512), 0);
  }
});

/**
 * Runs `act` once for every step of it, with another agent setting `bit` of the bitmap at A just before that step.
 * `check` gets kernels that no longer step.
 */
const markAtEveryStep = (
  bit: number,
  prepare: (words: Int32Array) => void,
  act: (kernels: BitmapKernels) => number,
  check: (kernels: BitmapKernels, result: number, where: string) => void,
): void => {
  for (let at = 0; ; at++) {
    const memory = memoryOf(1);
    const words = new Int32Array(memory.buffer);
    let taken = 0;
    const twin = bindBitmapTwin(memory, () => {
      if (taken++ === at) {
        Atomics.or(words, A / 4 + (bit >>> 5), 1 << (bit & 31));
      }
    });
    prepare(words);
    const result = act(twin);
    if (taken <= at) {
      assert.ok(at > 8, 'the kernel has steps');
      return;
    }
    check(bindBitmapTwin(memory), result, `bit ${bit}, step ${at}`);
  }
};

const isSet = (kernels: BitmapKernels, bitmap: number, bit: number): boolean =>
  kernels.countRange(bitmap, bit, 1) === 1;

test('a mark made at any step of a sync ends in source or target, and is counted once (DM-13, DM-14)', () => {
  for (const bit of [0, 1, 16, 31, 32, 96, 130]) {
    markAtEveryStep(
      bit,
      (words) => {
        words[A / 4] = 0x10001;
        words[A / 4 + 3] = 1;
        words[B / 4] = 1;
      },
      (kernels) => kernels.sync(A, B, 3),
      (kernels, fresh, where) => {
        assert.ok(isSet(kernels, A, bit) || isSet(kernels, B, bit), where);
        assert.equal(fresh, kernels.countRange(B, 0, 192) - 1, where);
      },
    );
  }
});

test('a mark made at any step of fetch and clear stays in REMOTE unless the fetch passed it on (TS-9, TS-11, CB-4, G-5)', () => {
  for (const bit of [0, 1, 16, 39, 40, 100]) {
    markAtEveryStep(
      bit,
      (words) => {
        words[A / 4] = 0x10001;
        words[A / 4 + 1] = 0x80;
      },
      (kernels) => {
        kernels.fetchLog(A, B, C, 2);
        return kernels.clearLog(A, B, 0, 128);
      },
      (kernels, cleared, where) => {
        assert.ok(isSet(kernels, A, bit) || isSet(kernels, C, bit), where);
        assert.equal(kernels.countRange(B, 0, 128), 0, where);
        assert.equal(cleared, kernels.countRange(C, 0, 128), where);
      },
    );
  }
});
