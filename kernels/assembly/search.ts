// The search kernel (SearchKernels in kernels/kernels.ts, which says what it does) in AssemblyScript.
//
// Two bytes of the needle are looked for at once, at their distance, 64 places a step; only where both are is the needle
// compared. Which two, the caller knows: bytes that are rare.
//
//   haystack   . . . . . . . . . . .        place p is a candidate if
//                  ^       ^                 haystack[p + first]  fits the needle there, and
//              p + first   p + second        haystack[p + second] as well

// @ts-ignore: decorator
@inline
function fits(address: usize, value: v128, mask: v128): v128 {
  return i8x16.eq(v128.and(v128.load(address), mask), value);
}

/** Whether the needle lies at `place`. */
function isAt(place: usize, needle: usize, length: usize): bool {
  let at: usize = 0;
  for (; at + 16 <= length; at += 16) {
    const difference = v128.xor(v128.and(v128.load(place + at), v128.load(needle + length + at)), v128.load(needle + at));
    if (v128.any_true(difference)) return false;
  }
  for (; at < length; at++) {
    if ((load<u8>(place + at) & load<u8>(needle + length + at)) != load<u8>(needle + at)) return false;
  }
  return true;
}

/** The first of 16 candidates at which the needle lies; `end` if none of them, or none before `end`. */
function among(bits: i32, place: usize, end: usize, needle: usize, length: usize): usize {
  while (bits) {
    const candidate = place + <usize>ctz(bits);
    if (candidate >= end) return end;
    if (isAt(candidate, needle, length)) return candidate;
    bits &= bits - 1;
  }
  return end;
}

export function findMasked(from: usize, end: usize, needle: usize, length: usize, first: usize, second: usize): usize {
  const value1 = v128.splat<u8>(load<u8>(needle + first));
  const value2 = v128.splat<u8>(load<u8>(needle + second));
  const mask1 = v128.splat<u8>(load<u8>(needle + length + first));
  const mask2 = v128.splat<u8>(load<u8>(needle + length + second));
  for (let p = from; p < end; p += 64) {
    const a = p + first;
    const b = p + second;
    const c0 = v128.and(fits(a, value1, mask1), fits(b, value2, mask2));
    const c1 = v128.and(fits(a + 16, value1, mask1), fits(b + 16, value2, mask2));
    const c2 = v128.and(fits(a + 32, value1, mask1), fits(b + 32, value2, mask2));
    const c3 = v128.and(fits(a + 48, value1, mask1), fits(b + 48, value2, mask2));
    if (v128.any_true(v128.or(v128.or(c0, c1), v128.or(c2, c3)))) {
      let found = among(i8x16.bitmask(c0), p, end, needle, length);
      if (found != end) return found;
      found = among(i8x16.bitmask(c1), p + 16, end, needle, length);
      if (found != end) return found;
      found = among(i8x16.bitmask(c2), p + 32, end, needle, length);
      if (found != end) return found;
      found = among(i8x16.bitmask(c3), p + 48, end, needle, length);
      if (found != end) return found;
    }
  }
  return end;
}

export function findRun(from: usize, end: usize, table: usize, least: usize): usize {
  // Of every run that is long enough, one of the places looked at is a part: all others are never read.
  let p = from;
  while (p + least <= end) {
    let at = p + least;
    while (at > p && load<u8>(table + load<u8>(at - 1))) at--;
    if (at == p) return p;
    p = at;
  }
  return end;
}

export function runEnd(from: usize, end: usize, table: usize): usize {
  let p = from;
  while (p < end && load<u8>(table + load<u8>(p))) p++;
  return p;
}
