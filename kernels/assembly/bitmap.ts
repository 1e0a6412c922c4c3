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
//
//   stretch of 16 words ─▶ clear? ─yes─▶ next stretch         8 loads, 1 branch: at the speed of memory
//                            └──no──▶ mask of its nonzero words ─▶ one word at a time
//
// A branch per word instead costs up to twice the time on a sparse bitmap, since nobody can predict it.

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

/** Bits 0 and 1: which of the two words at `p` are not zero. */
// @ts-ignore: decorator
@inline
function nonzeroPair(p: usize): i32 {
  return i64x2.bitmask(i64x2.ne(v128.load(p), i64x2.splat(0)));
}

/** Bit i: word i of the stretch at `p` is not zero. */
// @ts-ignore: decorator
@inline
function nonzeroWords(p: usize): i32 {
  return (
    nonzeroPair(p) |
    (nonzeroPair(p + 16) << 2) |
    (nonzeroPair(p + 32) << 4) |
    (nonzeroPair(p + 48) << 6) |
    (nonzeroPair(p + 64) << 8) |
    (nonzeroPair(p + 80) << 10) |
    (nonzeroPair(p + 96) << 12) |
    (nonzeroPair(p + 112) << 14)
  );
}

/** Byte offset, inside its stretch, of the first word of a mask of nonzero words. */
// @ts-ignore: decorator
@inline
function firstOf(nonzero: i32): usize {
  return <usize>ctz<i32>(nonzero) << 3;
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

// @ts-ignore: decorator
@inline
function syncWord(source: usize, target: usize): u64 {
  const moved = atomic.xchg<u64>(source, 0);
  const before = load<u64>(target);
  store<u64>(target, before | moved);
  return popcnt<u64>(moved & ~before);
}

export function sync(source: usize, target: usize, wordCount: i32): f64 {
  let fresh: u64 = 0;
  for (; wordCount >= STRETCH_WORDS; wordCount -= STRETCH_WORDS, source += STRETCH_BYTES, target += STRETCH_BYTES) {
    if (isClear(source)) continue;
    for (let dirty = nonzeroWords(source); dirty; dirty &= dirty - 1) {
      fresh += syncWord(source + firstOf(dirty), target + firstOf(dirty));
    }
  }
  for (; wordCount > 0; wordCount--, source += 8, target += 8) {
    if (load<u64>(source)) fresh += syncWord(source, target);
  }
  return <f64>fresh;
}

// @ts-ignore: decorator
@inline
function fetchWord(remote: usize, snapshot: usize, global: usize): u64 {
  // Read once: what goes to GLOBAL is what SNAP says, whatever the guest marks meanwhile.
  const seen = atomic.load<u64>(remote);
  store<u64>(snapshot, load<u64>(snapshot) | seen);
  atomic.or<u64>(global, seen);
  return popcnt<u64>(seen);
}

export function fetchLog(remote: usize, snapshot: usize, global: usize, wordCount: i32): f64 {
  let marks: u64 = 0;
  for (; wordCount >= STRETCH_WORDS; wordCount -= STRETCH_WORDS) {
    if (!isClear(remote)) {
      for (let marked = nonzeroWords(remote); marked; marked &= marked - 1) {
        const at = firstOf(marked);
        marks += fetchWord(remote + at, snapshot + at, global + at);
      }
    }
    remote += STRETCH_BYTES;
    snapshot += STRETCH_BYTES;
    global += STRETCH_BYTES;
  }
  for (; wordCount > 0; wordCount--, remote += 8, snapshot += 8, global += 8) {
    if (load<u64>(remote)) marks += fetchWord(remote, snapshot, global);
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
    for (; wordCount >= STRETCH_WORDS; wordCount -= STRETCH_WORDS, r += STRETCH_BYTES, s += STRETCH_BYTES) {
      if (isClear(s)) continue;
      for (let reported = nonzeroWords(s); reported; reported &= reported - 1) {
        cleared += clearLogWord(r + firstOf(reported), s + firstOf(reported), mask);
      }
    }
    for (; wordCount > 0; wordCount--, r += 8, s += 8) cleared += clearLogWord(r, s, mask);
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

/** A whole word: an exchange is one instruction on x86, an AND whose old value is wanted a compare-exchange loop. */
// @ts-ignore: decorator
@inline
function takeWord(p: usize): u64 {
  return popcnt<u64>(atomic.xchg<u64>(p, 0));
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
    for (; wordCount >= STRETCH_WORDS; wordCount -= STRETCH_WORDS, p += STRETCH_BYTES) {
      if (isClear(p)) continue;
      for (let dirty = nonzeroWords(p); dirty; dirty &= dirty - 1) cleared += takeWord(p + firstOf(dirty));
    }
    for (; wordCount > 0; wordCount--, p += 8) {
      if (load<u64>(p)) cleared += takeWord(p);
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

// @ts-ignore: decorator
@inline
function mergeWord(source: usize, target: usize): u64 {
  const bits = atomic.load<u64>(source);
  atomic.or<u64>(target, bits);
  return popcnt<u64>(bits);
}

export function merge(source: usize, target: usize, wordCount: i32): f64 {
  let set: u64 = 0;
  for (; wordCount >= STRETCH_WORDS; wordCount -= STRETCH_WORDS, source += STRETCH_BYTES, target += STRETCH_BYTES) {
    if (isClear(source)) continue;
    for (let nonzero = nonzeroWords(source); nonzero; nonzero &= nonzero - 1) {
      set += mergeWord(source + firstOf(nonzero), target + firstOf(nonzero));
    }
  }
  for (; wordCount > 0; wordCount--, source += 8, target += 8) {
    if (load<u64>(source)) set += mergeWord(source, target);
  }
  return <f64>set;
}

/** Writes the indexes of the set bits of one word, whose bit 0 has index `base`; at most `room`. */
// @ts-ignore: decorator
@inline
function collectWord(bits: u64, base: i32, out: usize, room: i32): i32 {
  let found = 0;
  for (; bits && found < room; bits &= bits - 1) {
    store<i32>(out + (<usize>found << 2), base + <i32>ctz<u64>(bits));
    found++;
  }
  return found;
}

export function collect(bitmap: usize, fromBit: f64, endBit: f64, out: usize, limit: i32): i32 {
  if (fromBit >= endBit) return 0;
  const first = <u64>fromBit;
  const end = <u64>endBit;
  let p = wordOf(bitmap, first);
  const last = wordOf(bitmap, end - 1);
  let base = <i32>(first >> 6) << 6;
  let mask = headMask(first);
  let found = 0;
  if (p != last) {
    found = collectWord(load<u64>(p) & mask, base, out, limit);
    mask = -1;
    p += 8;
    base += 64;
    let wordCount = <i32>((last - p) >> 3);
    for (; wordCount >= STRETCH_WORDS && found < limit; wordCount -= STRETCH_WORDS, p += STRETCH_BYTES, base += STRETCH_WORDS * 64) {
      if (isClear(p)) continue;
      for (let nonzero = nonzeroWords(p); nonzero; nonzero &= nonzero - 1) {
        const word = firstOf(nonzero);
        found += collectWord(load<u64>(p + word), base + (<i32>word << 3), out + (<usize>found << 2), limit - found);
      }
    }
    for (; wordCount > 0 && found < limit; wordCount--, p += 8, base += 64) {
      found += collectWord(load<u64>(p), base, out + (<usize>found << 2), limit - found);
    }
  }
  return found + collectWord(load<u64>(p) & mask & tailMask(end), base, out + (<usize>found << 2), limit - found);
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
