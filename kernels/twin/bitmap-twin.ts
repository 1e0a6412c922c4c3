// The bitmap kernels in plain TypeScript: the oracle of the wasm ones (TS-8), their fallback where wasm SIMD is missing,
// and the form in which schedules are explored. Every access to a word of a bitmap goes through one of the four
// accessors below, each of which calls `step` first, so a scheduler that runs guest stores inside `step` sees every
// interleaving that two agents could produce:
//
//   sync       test ─step─ exchange ─step─ read target ─step─ write target ─step─ next word
//   fetchLog   read REMOTE ─step─ read, write SNAP ─step─ or GLOBAL ─step─ next word
//   clearLog   read SNAP ─step─ and REMOTE ─step─ write SNAP ─step─ next word
//
// A word is 32 bits here and 64 in wasm. The twin therefore has more interleavings than production, never fewer.

import type { BitmapKernels } from '../kernels.js';

const WORD_BITS = 32;

const popcount = (word: number): number => {
  const pairs = word - ((word >>> 1) & 0x55555555);
  const nibbles = (pairs & 0x33333333) + ((pairs >>> 2) & 0x33333333);
  return Math.imul((nibbles + (nibbles >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
};

/** Index of the lowest set bit of a word that is not zero. */
const lowestBit = (word: number): number => 31 - Math.clz32(word & -word);

/**
 * Binds the twin to a memory. `step` is called before every access to a bitmap word; it may change any word through
 * `Atomics`, as a guest thread would.
 */
export const bindBitmapTwin = (memory: WebAssembly.Memory, step: () => void = () => {}): BitmapKernels => {
  const words = new Int32Array(memory.buffer);

  const read = (index: number): number => {
    step();
    return words[index]!;
  };
  const write = (index: number, value: number): void => {
    step();
    words[index] = value;
  };
  const exchange = (index: number, value: number): number => {
    step();
    return Atomics.exchange(words, index, value);
  };
  const or = (index: number, bits: number): void => {
    step();
    Atomics.or(words, index, bits);
  };
  const and = (index: number, bits: number): number => {
    step();
    return Atomics.and(words, index, bits);
  };

  /**
   * The words that hold [fromBit, endBit), each with the mask of the range's bits in it, until `visit` returns false.
   * `word` counts from the start of the bitmap. Bit numbers may pass 2^31: only `&` with 31 touches them.
   */
  const eachWord = (
    fromBit: number,
    endBit: number,
    visit: (word: number, mask: number) => boolean | undefined,
  ): void => {
    const last = Math.floor((endBit - 1) / WORD_BITS);
    for (let word = Math.floor(fromBit / WORD_BITS); fromBit < endBit && word <= last; word++) {
      const head = word * WORD_BITS < fromBit ? -1 << (fromBit & 31) : -1;
      const tail = word === last ? -1 >>> (-endBit & 31) : -1;
      if (visit(word, head & tail) === false) {
        return;
      }
    }
  };

  /** First bit of [fromBit, endBit) that is set in the word XOR `flip`, or endBit. */
  const findNext = (bitmap: number, fromBit: number, endBit: number, flip: number): number => {
    let found = endBit;
    eachWord(fromBit, endBit, (word, mask) => {
      const bits = (read((bitmap >>> 2) + word) ^ flip) & mask;
      if (bits !== 0) {
        found = word * WORD_BITS + lowestBit(bits);
      }
      return bits === 0;
    });
    return found;
  };

  return {
    sync(source, target, wordCount) {
      let fresh = 0;
      for (let i = 0; i < wordCount * 2; i++) {
        if (read((source >>> 2) + i) === 0) {
          continue;
        }
        const moved = exchange((source >>> 2) + i, 0);
        const before = read((target >>> 2) + i);
        write((target >>> 2) + i, before | moved);
        fresh += popcount(moved & ~before);
      }
      return fresh;
    },

    fetchLog(remote, snapshot, global, wordCount) {
      let marks = 0;
      for (let i = 0; i < wordCount * 2; i++) {
        const seen = read((remote >>> 2) + i);
        if (seen === 0) {
          continue;
        }
        write((snapshot >>> 2) + i, read((snapshot >>> 2) + i) | seen);
        or((global >>> 2) + i, seen);
        marks += popcount(seen);
      }
      return marks;
    },

    clearLog(remote, snapshot, firstBit, bitCount) {
      let cleared = 0;
      eachWord(firstBit, firstBit + bitCount, (word, mask) => {
        const reported = read((snapshot >>> 2) + word);
        const bits = reported & mask;
        if (bits !== 0) {
          cleared += popcount(and((remote >>> 2) + word, ~bits) & bits);
          write((snapshot >>> 2) + word, reported & ~mask);
        }
        return true;
      });
      return cleared;
    },

    countRange(bitmap, firstBit, bitCount) {
      let count = 0;
      eachWord(firstBit, firstBit + bitCount, (word, mask) => {
        count += popcount(read((bitmap >>> 2) + word) & mask);
        return true;
      });
      return count;
    },

    findNextSet: (bitmap, fromBit, endBit) => findNext(bitmap, fromBit, endBit, 0),

    findNextClear: (bitmap, fromBit, endBit) => findNext(bitmap, fromBit, endBit, -1),

    setRange(bitmap, firstBit, bitCount) {
      eachWord(firstBit, firstBit + bitCount, (word, mask) => {
        or((bitmap >>> 2) + word, mask);
        return true;
      });
    },

    testAndClearRange(bitmap, firstBit, bitCount) {
      let cleared = 0;
      eachWord(firstBit, firstBit + bitCount, (word, mask) => {
        if ((read((bitmap >>> 2) + word) & mask) !== 0) {
          cleared += popcount(and((bitmap >>> 2) + word, ~mask) & mask);
        }
        return true;
      });
      return cleared;
    },

    complement(source, target, bitCount) {
      // Whole 64-bit words, so that a bitmap of 1..32 bits has a zero upper half.
      const wordCount = Math.ceil(bitCount / 64) * 2;
      for (let i = 0; i < wordCount; i++) {
        const bits = Math.min(Math.max(bitCount - i * WORD_BITS, 0), WORD_BITS);
        const mask = bits === 0 ? 0 : -1 >>> (WORD_BITS - bits);
        write((target >>> 2) + i, ~read((source >>> 2) + i) & mask);
      }
    },

    merge(source, target, wordCount) {
      let set = 0;
      for (let i = 0; i < wordCount * 2; i++) {
        const bits = read((source >>> 2) + i);
        if (bits !== 0) {
          or((target >>> 2) + i, bits);
          set += popcount(bits);
        }
      }
      return set;
    },

    collect(bitmap, fromBit, endBit, out, limit) {
      let count = 0;
      eachWord(fromBit, endBit, (word, mask) => {
        if (count >= limit) {
          return false;
        }
        for (let bits = read((bitmap >>> 2) + word) & mask; bits !== 0 && count < limit; bits &= bits - 1) {
          words[(out >>> 2) + count++] = word * WORD_BITS + lowestBit(bits);
        }
        return true;
      });
      return count;
    },

    clearListed(bitmap, list, count) {
      let cleared = 0;
      for (let i = 0; i < count; i++) {
        const bit = words[(list >>> 2) + i]!;
        const index = (bitmap >>> 2) + (bit >>> 5);
        const before = read(index);
        const after = before & ~(1 << (bit & 31));
        if (after !== before) {
          write(index, after);
          cleared++;
        }
      }
      return cleared;
    },
  };
};
