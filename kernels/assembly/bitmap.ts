// The bitmap kernels (BitmapKernels in kernels/kernels.ts, which says what each does) in AssemblyScript.
//
// The memory is somebody's guest RAM or bitmaps: no static data, no globals in memory, no stack in memory; constants are
// immediates. Bit numbers and bit counts come and go as f64, the type of a JavaScript number, so that they may pass 2^31
// without BigInt. Addresses are unsigned 32-bit; loops count words instead of comparing with an end address, which
// would wrap at the top of a 4 GiB memory.
//
// Concurrency: a plain load tests a word, an atomic read-modify-write changes it. The test may miss a bit that is being
// set at that moment, which the next sync sees (spec/algorithms.md 14.4: after the guest stopped nothing is set any more).
// Atomic tests would make the clean case five times slower.

/** Words of a stretch: eight v128 loads, one branch. */
const STRETCH_WORDS: i32 = 16;
const STRETCH_BYTES: usize = 128;

// @ts-ignore: decorator
@inline
function isClear(p: usize): bool {
  return !v128.any_true(
    v128.or(
      v128.or(v128.or(v128.load(p), v128.load(p, 16)), v128.or(v128.load(p, 32), v128.load(p, 48))),
      v128.or(v128.or(v128.load(p, 64), v128.load(p, 80)), v128.or(v128.load(p, 96), v128.load(p, 112))),
    ),
  );
}

// @ts-ignore: decorator
@inline
function isFull(p: usize): bool {
  return !v128.any_true(
    v128.not(
      v128.and(
        v128.and(v128.and(v128.load(p), v128.load(p, 16)), v128.and(v128.load(p, 32), v128.load(p, 48))),
        v128.and(v128.and(v128.load(p, 64), v128.load(p, 80)), v128.and(v128.load(p, 96), v128.load(p, 112))),
      ),
    ),
  );
}

// @ts-ignore: decorator
@inline
function wordOf(bitmap: usize, bit: u64): usize {
  return bitmap + ((<usize>(bit >> 6)) << 3);
}

/** Bits of the word of `bit` from `bit` upwards. */
// @ts-ignore: decorator
@inline
function headMask(bit: u64): u64 {
  return <u64>-1 << (bit & 63);
}

/** Bits of the word of `end - 1` below `end`. */
// @ts-ignore: decorator
@inline
function tailMask(end: u64): u64 {
  return <u64>-1 >> ((0 - end) & 63);
}

export function sync(source: usize, target: usize, wordCount: i32): f64 {
  let fresh: u64 = 0;
  while (wordCount > 0) {
    if (wordCount >= STRETCH_WORDS && isClear(source)) {
      source += STRETCH_BYTES;
      target += STRETCH_BYTES;
      wordCount -= STRETCH_WORDS;
      continue;
    }
    let words = min(wordCount, STRETCH_WORDS);
    wordCount -= words;
    do {
      if (load<u64>(source)) {
        const moved = atomic.xchg<u64>(source, 0);
        const before = load<u64>(target);
        store<u64>(target, before | moved);
        fresh += popcnt<u64>(moved & ~before);
      }
      source += 8;
      target += 8;
    } while (--words);
  }
  return <f64>fresh;
}

export function fetchLog(remote: usize, snapshot: usize, global: usize, wordCount: i32): f64 {
  let marks: u64 = 0;
  while (wordCount > 0) {
    if (wordCount >= STRETCH_WORDS && isClear(remote)) {
      remote += STRETCH_BYTES;
      snapshot += STRETCH_BYTES;
      global += STRETCH_BYTES;
      wordCount -= STRETCH_WORDS;
      continue;
    }
    let words = min(wordCount, STRETCH_WORDS);
    wordCount -= words;
    do {
      const seen = atomic.load<u64>(remote);
      if (seen) {
        store<u64>(snapshot, load<u64>(snapshot) | seen);
        atomic.or<u64>(global, seen);
        marks += popcnt<u64>(seen);
      }
      remote += 8;
      snapshot += 8;
      global += 8;
    } while (--words);
  }
  return <f64>marks;
}

// @ts-ignore: decorator
@inline
function clearLogWord(remote: usize, snapshot: usize, mask: u64): u64 {
  const reported = load<u64>(snapshot);
  const bits = reported & mask;
  if (!bits) return 0;
  const before = atomic.and<u64>(remote, ~bits);
  store<u64>(snapshot, reported & ~mask);
  return popcnt<u64>(before & bits);
}

export function clearLog(remote: usize, snapshot: usize, firstBit: f64, bitCount: f64): f64 {
  const first = <u64>firstBit;
  const end = first + <u64>bitCount;
  if (first == end) return 0;
  let r = wordOf(remote, first);
  let s = wordOf(snapshot, first);
  const last = wordOf(remote, end - 1);
  let mask = headMask(first);
  let cleared: u64 = 0;
  if (r != last) {
    cleared = clearLogWord(r, s, mask);
    mask = -1;
    r += 8;
    s += 8;
    let wordCount = <i32>((last - r) >> 3);
    while (wordCount > 0) {
      if (wordCount >= STRETCH_WORDS && isClear(s)) {
        r += STRETCH_BYTES;
        s += STRETCH_BYTES;
        wordCount -= STRETCH_WORDS;
        continue;
      }
      let words = min(wordCount, STRETCH_WORDS);
      wordCount -= words;
      do {
        cleared += clearLogWord(r, s, -1);
        r += 8;
        s += 8;
      } while (--words);
    }
  }
  return <f64>(cleared + clearLogWord(r, s, mask & tailMask(end)));
}

export function countRange(bitmap: usize, firstBit: f64, bitCount: f64): f64 {
  const first = <u64>firstBit;
  const end = first + <u64>bitCount;
  if (first == end) return 0;
  let p = wordOf(bitmap, first);
  const last = wordOf(bitmap, end - 1);
  let mask = headMask(first);
  let count: u64 = 0;
  if (p != last) {
    count = popcnt<u64>(load<u64>(p) & mask);
    mask = -1;
    p += 8;
    let wordCount = <i32>((last - p) >> 3);
    for (; wordCount >= 4; wordCount -= 4, p += 32) {
      count +=
        popcnt<u64>(load<u64>(p)) + popcnt<u64>(load<u64>(p, 8)) + popcnt<u64>(load<u64>(p, 16)) + popcnt<u64>(load<u64>(p, 24));
    }
    for (; wordCount > 0; wordCount--, p += 8) count += popcnt<u64>(load<u64>(p));
  }
  return <f64>(count + popcnt<u64>(load<u64>(p) & mask & tailMask(end)));
}

/** First bit of [fromBit, endBit) that differs from the bits of `flip`, or endBit. `flip` is 0 or all ones, and constant. */
// @ts-ignore: decorator
@inline
function findNext(bitmap: usize, fromBit: f64, endBit: f64, flip: u64): f64 {
  if (fromBit >= endBit) return endBit;
  const first = <u64>fromBit;
  let p = wordOf(bitmap, first);
  let bits = (load<u64>(p) ^ flip) & headMask(first);
  let wordsAfter = <i32>((wordOf(bitmap, <u64>endBit - 1) - p) >> 3);
  while (!bits && wordsAfter > 0) {
    p += 8;
    // `>`, so that the word loaded below is never one behind the range.
    while (wordsAfter > STRETCH_WORDS && (flip ? isFull(p) : isClear(p))) {
      p += STRETCH_BYTES;
      wordsAfter -= STRETCH_WORDS;
    }
    bits = load<u64>(p) ^ flip;
    wordsAfter--;
  }
  // The last word may hold a bit beyond the end; with no bit at all, ctz is 64 and the result beyond the end as well.
  return min<f64>(endBit, <f64>((<u64>((p - bitmap) >> 3) << 6) + ctz<u64>(bits)));
}

export function findNextSet(bitmap: usize, fromBit: f64, endBit: f64): f64 {
  return findNext(bitmap, fromBit, endBit, 0);
}

export function findNextClear(bitmap: usize, fromBit: f64, endBit: f64): f64 {
  return findNext(bitmap, fromBit, endBit, -1);
}

export function setRange(bitmap: usize, firstBit: f64, bitCount: f64): void {
  const first = <u64>firstBit;
  const end = first + <u64>bitCount;
  if (first == end) return;
  const p = wordOf(bitmap, first);
  const last = wordOf(bitmap, end - 1);
  let mask = headMask(first);
  if (p != last) {
    atomic.or<u64>(p, mask);
    mask = -1;
    // Plain stores of ones absorb every concurrent OR; only the edge words have bits of others.
    memory.fill(p + 8, 0xff, last - p - 8);
  }
  atomic.or<u64>(last, mask & tailMask(end));
}

// @ts-ignore: decorator
@inline
function clearWord(p: usize, mask: u64): u64 {
  return load<u64>(p) & mask ? popcnt<u64>(atomic.and<u64>(p, ~mask) & mask) : 0;
}

export function testAndClearRange(bitmap: usize, firstBit: f64, bitCount: f64): f64 {
  const first = <u64>firstBit;
  const end = first + <u64>bitCount;
  if (first == end) return 0;
  let p = wordOf(bitmap, first);
  const last = wordOf(bitmap, end - 1);
  let mask = headMask(first);
  let cleared: u64 = 0;
  if (p != last) {
    cleared = clearWord(p, mask);
    mask = -1;
    p += 8;
    let wordCount = <i32>((last - p) >> 3);
    while (wordCount > 0) {
      if (wordCount >= STRETCH_WORDS && isClear(p)) {
        p += STRETCH_BYTES;
        wordCount -= STRETCH_WORDS;
        continue;
      }
      let words = min(wordCount, STRETCH_WORDS);
      wordCount -= words;
      do {
        // An exchange is one instruction on x86; an AND whose old value is wanted is a compare-exchange loop.
        if (load<u64>(p)) cleared += popcnt<u64>(atomic.xchg<u64>(p, 0));
        p += 8;
      } while (--words);
    }
  }
  return <f64>(cleared + clearWord(p, mask & tailMask(end)));
}

export function complement(source: usize, target: usize, bitCount: f64): void {
  const end = <u64>bitCount;
  let wordCount = <i32>(end >> 6);
  for (; wordCount >= 2; wordCount -= 2, source += 16, target += 16) v128.store(target, v128.not(v128.load(source)));
  if (wordCount) {
    store<u64>(target, ~load<u64>(source));
    source += 8;
    target += 8;
  }
  if (end & 63) store<u64>(target, ~load<u64>(source) & tailMask(end));
}

export function merge(source: usize, target: usize, wordCount: i32): f64 {
  let set: u64 = 0;
  while (wordCount > 0) {
    if (wordCount >= STRETCH_WORDS && isClear(source)) {
      source += STRETCH_BYTES;
      target += STRETCH_BYTES;
      wordCount -= STRETCH_WORDS;
      continue;
    }
    let words = min(wordCount, STRETCH_WORDS);
    wordCount -= words;
    do {
      const bits = atomic.load<u64>(source);
      if (bits) {
        atomic.or<u64>(target, bits);
        set += popcnt<u64>(bits);
      }
      source += 8;
      target += 8;
    } while (--words);
  }
  return <f64>set;
}

export function collect(bitmap: usize, fromBit: f64, endBit: f64, out: usize, limit: i32): i32 {
  if (fromBit >= endBit || limit <= 0) return 0;
  const first = <u64>fromBit;
  const end = <u64>endBit;
  let p = wordOf(bitmap, first);
  let wordCount = <i32>((wordOf(bitmap, end - 1) - p) >> 3) + 1;
  let mask = headMask(first);
  let base = <i32>(first >> 6) << 6;
  let room = limit;
  while (wordCount > 0) {
    if (wordCount >= STRETCH_WORDS && isClear(p)) {
      mask = -1;
      p += STRETCH_BYTES;
      base += STRETCH_WORDS * 64;
      wordCount -= STRETCH_WORDS;
      continue;
    }
    let words = min(wordCount, STRETCH_WORDS);
    wordCount -= words;
    do {
      let bits = load<u64>(p) & mask;
      mask = -1;
      if (words == 1 && wordCount == 0) bits &= tailMask(end);
      while (bits) {
        store<i32>(out, base + <i32>ctz<u64>(bits));
        out += 4;
        if (!--room) return limit;
        bits &= bits - 1;
      }
      p += 8;
      base += 64;
    } while (--words);
  }
  return limit - room;
}

export function clearListed(bitmap: usize, list: usize, count: i32): i32 {
  let cleared = 0;
  for (; count > 0; count--, list += 4) {
    const bit = <u64>load<u32>(list);
    const p = wordOf(bitmap, bit);
    const before = load<u64>(p);
    const mask = <u64>1 << (bit & 63);
    store<u64>(p, before & ~mask);
    cleared += <i32>((before >> (bit & 63)) & 1);
  }
  return cleared;
}
