// The page kernels in plain TypeScript: the oracle of the wasm ones (TS-8) and their fallback where wasm SIMD is missing.

import { GUEST_PAGE_SIZE, LoadStop, NORMAL_RECORD_BYTES, type PageKernels, ZERO_RECORD_BYTES } from '../kernels.js';

const HEADER_BYTES = 8;
const FLAGS = { zero: 0x02, page: 0x08, continue: 0x20 } as const;

const GOLDEN_RATIO = 0x9e3779b97f4a7c15n;

/** The finalizer of SplitMix64: a bijection of 64-bit values in which every input bit reaches every output bit. */
const mix = (value: bigint): bigint => {
  let z = BigInt.asUintN(64, value + GOLDEN_RATIO);
  z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
  z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn);
  return z ^ (z >> 31n);
};

const DIGEST_LANES = 32;

/** One step of a lane of `digestPages`. */
const step = (lane: number, word: number): number => {
  const h = lane ^ word;
  return Math.imul(h ^ (h >>> 15), 0x9e3779b1);
};

const avalanche = (value: number): number => {
  let h = value;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return h ^ (h >>> 16);
};

/** The two words of the digest of a page of words. */
const digestPage = (page: Int32Array): readonly [number, number] => {
  const lanes = new Int32Array(DIGEST_LANES);
  for (let i = 0; i < page.length; i++) {
    lanes[i % DIGEST_LANES] = step(lanes[i % DIGEST_LANES]!, page[i]!);
  }
  for (let i = 4; i < DIGEST_LANES; i++) {
    lanes[i % 4] = avalanche(lanes[i % 4]!) ^ lanes[i]!;
  }
  const [a, b, c, d] = lanes as unknown as readonly [number, number, number, number];
  const e = avalanche(a + Math.imul(c, 0x27d4eb2f));
  const f = avalanche(b + Math.imul(d, 0x165667b1));
  const g = avalanche(c + Math.imul(a, 0x2f0b4c46));
  const h = avalanche(d + Math.imul(b, 0x4cf5ad42));
  return [avalanche(e + Math.imul(f, 0x1b873593)), avalanche(g + Math.imul(h, 0x38b34ae5))];
};

export const bindPageTwin = (memory: WebAssembly.Memory): PageKernels => {
  const bytes = new Uint8Array(memory.buffer);
  const words = new Int32Array(memory.buffer);
  const view = new DataView(memory.buffer);

  const isZeroPage = (address: number): number => {
    const first = address >>> 2;
    const end = first + GUEST_PAGE_SIZE / 4;
    for (let i = first; i < end; i += 4) {
      if ((words[i]! | words[i + 1]! | words[i + 2]! | words[i + 3]!) !== 0) {
        return 0;
      }
    }
    return 1;
  };

  /** The pattern's 64-bit words as low and high halves, the form in which an Int32Array stores them. */
  const patternWords = (key: number, generation: number): Int32Array => {
    const base = mix((BigInt(key >>> 0) << 32n) | BigInt(generation >>> 0));
    const increment = mix(base) | 1n;
    const pattern = new Int32Array(GUEST_PAGE_SIZE / 4);
    const incrementLow = Number(increment & 0xffffffffn);
    const incrementHigh = Number(increment >> 32n);
    let low = Number(base & 0xffffffffn);
    let high = Number(base >> 32n);
    for (let i = 0; i < pattern.length; i += 2) {
      pattern[i] = low;
      pattern[i + 1] = high;
      low += incrementLow;
      high = (high + incrementHigh + (low > 0xffffffff ? 1 : 0)) >>> 0;
      low >>>= 0;
    }
    return pattern;
  };

  return {
    isZeroPage,

    scanZero(address, pageCount, out) {
      let zero = 0;
      for (let word = 0; word * 32 < pageCount; word++) {
        let bits = 0;
        for (let i = word * 32; i < Math.min(word * 32 + 32, pageCount); i++) {
          const isZero = isZeroPage(address + i * GUEST_PAGE_SIZE);
          bits |= isZero << (i & 31);
          zero += isZero;
        }
        words[(out >>> 2) + word] = bits;
      }
      return zero;
    },

    emitRecords(list, count, address, firstPage, name, nameBytes, out) {
      let zero = 0;
      let at = out >>> 0;
      for (let i = 0; i < count; i++) {
        const page = words[(list >>> 2) + i]!;
        const from = (address >>> 0) + (page - firstPage) * GUEST_PAGE_SIZE;
        const isZero = isZeroPage(from) === 1;
        const named = i === 0 && nameBytes > 0;
        const flags = (isZero ? FLAGS.zero : FLAGS.page) | (named ? 0 : FLAGS.continue);
        view.setBigUint64(at, (BigInt(page) << 12n) | BigInt(flags));
        at += HEADER_BYTES;
        if (named) {
          bytes.copyWithin(at, name >>> 0, (name >>> 0) + nameBytes);
          at += nameBytes;
        }
        if (isZero) {
          bytes[at++] = 0;
          zero++;
        } else {
          bytes.copyWithin(at, from, from + GUEST_PAGE_SIZE);
          at += GUEST_PAGE_SIZE;
        }
      }
      return zero;
    },

    emitVector(list, count, address, firstPage, name, nameBytes, heads, base, vector) {
      let from = heads >>> 0;
      let at = from;
      let entry = vector >>> 0;
      const piece = (start: number, length: number): void => {
        view.setBigUint64(entry, BigInt(base + start), true);
        view.setBigUint64(entry + 8, BigInt(length), true);
        entry += 16;
      };
      for (let i = 0; i < count; i++) {
        const page = words[(list >>> 2) + i]!;
        const content = (address >>> 0) + (page - firstPage) * GUEST_PAGE_SIZE;
        const isZero = isZeroPage(content) === 1;
        const named = i === 0 && nameBytes > 0;
        const flags = (isZero ? FLAGS.zero : FLAGS.page) | (named ? 0 : FLAGS.continue);
        view.setBigUint64(at, (BigInt(page) << 12n) | BigInt(flags));
        at += HEADER_BYTES;
        if (named) {
          bytes.copyWithin(at, name >>> 0, (name >>> 0) + nameBytes);
          at += nameBytes;
        }
        if (isZero) {
          bytes[at++] = 0;
          continue;
        }
        piece(from, at - from);
        piece(content, GUEST_PAGE_SIZE);
        from = at;
      }
      if (at !== from) {
        piece(from, at - from);
      }
      return (entry - (vector >>> 0)) / 16;
    },

    loadRecords(input, length, address, firstPage, pageCount, written, result) {
      let consumed = 0;
      let zero = 0;
      let normal = 0;
      let stop: number = LoadStop.needMore;
      while (length - consumed >= HEADER_BYTES) {
        const at = (input >>> 0) + consumed;
        const head = view.getBigUint64(at);
        const flags = Number(head & 0xfffn);
        const isZero = flags === (FLAGS.zero | FLAGS.continue);
        if (!isZero && flags !== (FLAGS.page | FLAGS.continue)) {
          stop = LoadStop.other;
          break;
        }
        // Up to 2^52, so exact as a number.
        const index = Number(head >> 12n) - firstPage;
        if (index < 0 || index >= pageCount) {
          stop = LoadStop.outside;
          break;
        }
        if (length - consumed < (isZero ? ZERO_RECORD_BYTES : NORMAL_RECORD_BYTES)) {
          break;
        }
        const target = (address >>> 0) + index * GUEST_PAGE_SIZE;
        const word = (written >>> 2) + (index >>> 5);
        const bit = 1 << (index & 31);
        if (isZero) {
          if (bytes[at + HEADER_BYTES] !== 0) {
            stop = LoadStop.other;
            break;
          }
          if ((words[word]! & bit) !== 0) {
            bytes.fill(0, target, target + GUEST_PAGE_SIZE);
          }
          zero++;
          consumed += ZERO_RECORD_BYTES;
        } else {
          bytes.copyWithin(target, at + HEADER_BYTES, at + NORMAL_RECORD_BYTES);
          Atomics.or(words, word, bit);
          normal++;
          consumed += NORMAL_RECORD_BYTES;
        }
      }
      words.set([zero, normal, stop, 0], result >>> 2);
      return consumed;
    },

    fillPattern(address, key, generation) {
      words.set(patternWords(key, generation), address >>> 2);
    },

    checkPattern(address, key, generation) {
      const first = address >>> 2;
      return patternWords(key, generation).every((word, i) => words[first + i] === word) ? 1 : 0;
    },

    digestPages(address, pageCount, out) {
      for (let i = 0; i < pageCount; i++) {
        const from = (address >>> 0) + i * GUEST_PAGE_SIZE;
        // A copy, since pages may lie at any address.
        words.set(digestPage(new Int32Array(bytes.slice(from, from + GUEST_PAGE_SIZE).buffer)), (out >>> 2) + 2 * i);
      }
    },

    zeroFill(address, byteCount) {
      bytes.fill(0, address >>> 0, (address >>> 0) + byteCount);
    },

    copy(target, source, byteCount) {
      bytes.copyWithin(target >>> 0, source >>> 0, (source >>> 0) + byteCount);
    },
  };
};
