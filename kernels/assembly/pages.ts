// The page kernels (PageKernels in kernels/kernels.ts, which says what each does) in AssemblyScript.
//
// The memory is guest RAM: no static data, no stack in memory; constants are immediates. Pages are read while the guest
// may write them; a torn page is sent again because its mark comes after the store (TS-1), so plain loads do.

const PAGE: usize = 4096;

/** Record flags (spec/qemu-wire-format.md 2.2). */
const ZERO: u64 = 0x02;
const NORMAL: u64 = 0x08;
const CONTINUE: u64 = 0x20;

/** LoadStop of kernels/kernels.ts. */
const NEED_MORE: i32 = 0;
const OTHER: i32 = 1;
const OUTSIDE: i32 = 2;

/**
 * One test per four cache lines, so a page that is not zero usually costs only those. A chain, its offsets immediates: a tree
 * of ors has V8 spill registers, and `p + 64` as an address costs an instruction (Zen 5, from DRAM: 37.5 against 35.5
 * GB/s; two streams at once, prefetching line by line, more lines per test all lose).
 *
 * No special test of the first line: loads from one place in the code that walk steadily over page borders keep the
 * processor's prefetcher going; with another load at every page start the scan falls from 39 to 21 GB/s.
 */
export function isZeroPage(p: usize): i32 {
  const end = p + PAGE;
  do {
    let bits = v128.load(p);
    bits = v128.or(bits, v128.load(p, 16));
    bits = v128.or(bits, v128.load(p, 32));
    bits = v128.or(bits, v128.load(p, 48));
    bits = v128.or(bits, v128.load(p, 64));
    bits = v128.or(bits, v128.load(p, 80));
    bits = v128.or(bits, v128.load(p, 96));
    bits = v128.or(bits, v128.load(p, 112));
    bits = v128.or(bits, v128.load(p, 128));
    bits = v128.or(bits, v128.load(p, 144));
    bits = v128.or(bits, v128.load(p, 160));
    bits = v128.or(bits, v128.load(p, 176));
    bits = v128.or(bits, v128.load(p, 192));
    bits = v128.or(bits, v128.load(p, 208));
    bits = v128.or(bits, v128.load(p, 224));
    bits = v128.or(bits, v128.load(p, 240));
    if (v128.any_true(bits)) return 0;
    p += 256;
    // Not `<`: the last page of a 4 GiB memory ends at address 0.
  } while (p != end);
  return 1;
}

export function scanZero(address: usize, pageCount: i32, out: usize): i32 {
  let bits: u32 = 0;
  let zero = 0;
  for (let i = 0; i < pageCount; ) {
    // A page ahead, for its address translation: 16-byte loads alone look ahead less far than a page (3 to 5 %).
    if (i + 1 < pageCount) load<u8>(address, PAGE + 64);
    const isZero = isZeroPage(address);
    zero += isZero;
    bits |= <u32>isZero << (i & 31);
    address += PAGE;
    i++;
    if (!(i & 31) || i == pageCount) {
      store<u32>(out, bits);
      out += 4;
      bits = 0;
    }
  }
  return zero;
}

export function emitRecords(
  list: usize,
  count: i32,
  address: usize,
  firstPage: i32,
  name: usize,
  nameBytes: i32,
  out: usize,
): i32 {
  let zero = 0;
  let namePending = nameBytes;
  for (; count > 0; count--, list += 4) {
    const page = load<u32>(list);
    const from = address + (<usize>(page - firstPage) << 12);
    const isZero = isZeroPage(from);
    const kind = isZero ? ZERO : NORMAL;
    store<u64>(out, bswap<u64>((<u64>page << 12) | kind | (namePending ? 0 : CONTINUE)));
    out += 8;
    if (namePending) {
      memory.copy(out, name, nameBytes);
      out += nameBytes;
      namePending = 0;
    }
    if (isZero) {
      store<u8>(out++, 0);
      zero++;
    } else {
      memory.copy(out, from, PAGE);
      out += PAGE;
    }
  }
  return zero;
}

export function emitVector(
  list: usize,
  count: i32,
  address: usize,
  firstPage: i32,
  name: usize,
  nameBytes: i32,
  heads: usize,
  base: f64,
  vector: usize,
): i32 {
  const origin = <u64>base;
  let from = heads;
  let at = heads;
  let entry = vector;
  let namePending = nameBytes;
  for (; count > 0; count--, list += 4) {
    const page = load<u32>(list);
    const content = address + (<usize>(page - firstPage) << 12);
    const isZero = isZeroPage(content);
    const kind = isZero ? ZERO : NORMAL;
    store<u64>(at, bswap<u64>((<u64>page << 12) | kind | (namePending ? 0 : CONTINUE)));
    at += 8;
    if (namePending) {
      memory.copy(at, name, nameBytes);
      at += nameBytes;
      namePending = 0;
    }
    if (isZero) {
      store<u8>(at++, 0);
      continue;
    }
    store<u64>(entry, origin + from);
    store<u64>(entry, at - from, 8);
    store<u64>(entry, origin + content, 16);
    store<u64>(entry, PAGE, 24);
    entry += 32;
    from = at;
  }
  if (at != from) {
    store<u64>(entry, origin + from);
    store<u64>(entry, at - from, 8);
    entry += 16;
  }
  return <i32>((entry - vector) >> 4);
}

export function loadRecords(
  input: usize,
  length: i32,
  address: usize,
  firstPage: i32,
  pageCount: i32,
  written: usize,
  result: usize,
): i32 {
  let left = length;
  let zero = 0;
  let normal = 0;
  let stop = NEED_MORE;
  while (left >= 8) {
    const head = bswap<u64>(load<u64>(input));
    const flags = head & 0xfff;
    if (flags != (NORMAL | CONTINUE) && flags != (ZERO | CONTINUE)) {
      stop = OTHER;
      break;
    }
    // A page before the extent wraps to a huge index.
    const index = (head >> 12) - <u64>firstPage;
    if (index >= <u64>pageCount) {
      stop = OUTSIDE;
      break;
    }
    const target = address + (<usize>index << 12);
    const word = written + ((<usize>index >> 5) << 2);
    const bit = <u32>1 << (<u32>index & 31);
    if (flags & NORMAL) {
      if (left < 8 + <i32>PAGE) break;
      memory.copy(target, input + 8, PAGE);
      // Several channels may load into one extent, hence atomic. The bit is never cleared, so the test may skip it.
      if (!(load<u32>(word) & bit)) atomic.or<u32>(word, bit);
      normal++;
      input += 8 + PAGE;
      left -= 8 + <i32>PAGE;
    } else {
      if (left < 9) break;
      if (load<u8>(input, 8)) {
        stop = OTHER;
        break;
      }
      if (load<u32>(word) & bit) memory.fill(target, 0, PAGE);
      zero++;
      input += 9;
      left -= 9;
    }
  }
  store<i32>(result, zero);
  store<i32>(result, normal, 4);
  store<i32>(result, stop, 8);
  store<i32>(result, 0, 12);
  return length - left;
}

/** The finalizer of SplitMix64: a bijection of 64-bit values in which every input bit reaches every output bit. */
// @ts-ignore: decorator
@inline
function mix(value: u64): u64 {
  let z = value + 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// The pattern of a page: 512 words, word i = base + i * increment, where base = mix(key and generation) and increment =
// mix(base) made odd.
//
//   lost or stale page    base is a bijection of (key, generation): word 0 always differs
//   misplaced page        same, through the key
//   torn page             a word of one pattern equals that of another with probability 2^-64
//   shifted page          the increment is odd, so no two words of a page are equal
//   zero page             at most one word is zero
//
// A recurrence by addition and not by multiplication, so that two words fit one vector step: filling is as fast as
// memory, and a workload guest is limited by the migration and not by its own checks.

// @ts-ignore: decorator
@inline
function firstWords(base: u64, increment: u64): v128 {
  return i64x2.replace_lane(i64x2.splat(<i64>base), 1, <i64>(base + increment));
}

export function fillPattern(p: usize, key: u32, generation: u32): void {
  const base = mix((<u64>key << 32) | <u64>generation);
  const increment = mix(base) | 1;
  let words = firstWords(base, increment);
  const advance = i64x2.splat(<i64>(increment << 1));
  for (let i = 0; i < 256; i++) {
    v128.store(p, words);
    words = i64x2.add(words, advance);
    p += 16;
  }
}

export function checkPattern(p: usize, key: u32, generation: u32): i32 {
  const base = mix((<u64>key << 32) | <u64>generation);
  const increment = mix(base) | 1;
  let words = firstWords(base, increment);
  const advance = i64x2.splat(<i64>(increment << 1));
  let difference = i64x2.splat(0);
  for (let i = 0; i < 256; i++) {
    difference = v128.or(difference, v128.xor(v128.load(p), words));
    words = i64x2.add(words, advance);
    p += 16;
  }
  return <i32>!v128.any_true(difference);
}

// The digest of a page: 32 lanes, each of which takes the words that lie 128 bytes apart; then they are folded.
//
//   word 0 ─▶ lane 0    word 1 ─▶ lane 1   …   word 31 ─▶ lane 31      step: xor the word, xor a shift, multiply by P
//   word 32 ─▶ lane 0   …                                              a bijection of the lane, and of the word
//
//   32 lanes ─ one by one, another step ─▶ 4 lanes ─ crosswise, twice ─▶ 64 bits
//
// Every step takes 0 to 0 and nothing is added, so that a zero page has the digest 0. What tells a place in the page from
// another is how many steps follow it, and of which kind: with one kind, words 112 bytes apart would be alike. Four operations for 16 bytes: eight vectors hide their latency and fit the registers.

// Odd, so that multiplication loses nothing; otherwise arbitrary: primes of xxHash32 and MurmurHash3.
const P: i32 = 0x9e3779b1;
const M1: i32 = 0x85ebca6b;
const M2: i32 = 0xc2b2ae35;

// @ts-ignore: decorator
@inline
function step(lanes: v128, words: v128): v128 {
  const h = v128.xor(lanes, words);
  return i32x4.mul(v128.xor(h, i32x4.shr_u(h, 15)), i32x4.splat(P));
}

/** MurmurHash3's finalizer: a bijection in which every bit reaches every other. */
// @ts-ignore: decorator
@inline
function avalanche(value: v128): v128 {
  let h = value;
  h = i32x4.mul(v128.xor(h, i32x4.shr_u(h, 16)), i32x4.splat(M1));
  h = i32x4.mul(v128.xor(h, i32x4.shr_u(h, 13)), i32x4.splat(M2));
  return v128.xor(h, i32x4.shr_u(h, 16));
}

export function digestPages(address: usize, pageCount: i32, out: usize): void {
  for (; pageCount > 0; pageCount--, out += 8) {
    let a = i32x4.splat(0);
    let b = a;
    let c = a;
    let d = a;
    let e = a;
    let f = a;
    let g = a;
    let h = a;
    const end = address + PAGE;
    do {
      a = step(a, v128.load(address));
      b = step(b, v128.load(address, 16));
      c = step(c, v128.load(address, 32));
      d = step(d, v128.load(address, 48));
      e = step(e, v128.load(address, 64));
      f = step(f, v128.load(address, 80));
      g = step(g, v128.load(address, 96));
      h = step(h, v128.load(address, 112));
      address += 128;
    } while (address != end);
    let v = v128.xor(avalanche(a), b);
    v = v128.xor(avalanche(v), c);
    v = v128.xor(avalanche(v), d);
    v = v128.xor(avalanche(v), e);
    v = v128.xor(avalanche(v), f);
    v = v128.xor(avalanche(v), g);
    v = v128.xor(avalanche(v), h);
    // Different factors, or equal lanes would stay equal. In the first round one of each two is even, which makes it a
    // bijection of all four lanes; in the second both that count are odd, so that no lane is lost.
    v = avalanche(
      i32x4.add(v, i32x4.mul(i8x16.shuffle(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7), i32x4(0x27d4eb2f, 0x165667b1, 0x2f0b4c46, 0x4cf5ad42))),
    );
    v = avalanche(
      i32x4.add(v, i32x4.mul(i8x16.shuffle(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11), i32x4(0x1b873593, 0, 0x38b34ae5, 0))),
    );
    store<i32>(out, i32x4.extract_lane(v, 0));
    store<i32>(out, i32x4.extract_lane(v, 2), 4);
  }
}

export function zeroFill(address: usize, byteCount: usize): void {
  memory.fill(address, 0, byteCount);
}

export function copy(target: usize, source: usize, byteCount: usize): void {
  memory.copy(target, source, byteCount);
}
