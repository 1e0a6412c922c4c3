// XXH64 with seed 0, which ends the frames of zstd. A number of 64 bits is two of 32 here, low half first: BigInt takes
// twenty times as long.

/** The five primes of the algorithm, as [low, high]. */
const PRIMES = [
  [0x85ebca87, 0x9e3779b1],
  [0x27d4eb4f, 0xc2b2ae3d],
  [0x9e3779f9, 0x165667b1],
  [0xc2b2ae63, 0x85ebca77],
  [0x165667c5, 0x27d4eb2f],
] as const;

const STRIPE_BYTES = 32;

/** The result of the last operation on 64 bits: a pair that is returned would be an object for every eight bytes. */
let low = 0;
let high = 0;

const multiply = (aLow: number, aHigh: number, bLow: number, bHigh: number): void => {
  const a0 = aLow & 0xffff;
  const a1 = aLow >>> 16;
  const b0 = bLow & 0xffff;
  const b1 = bLow >>> 16;
  // Below 2^34, so exact.
  const middle = ((a0 * b0) >>> 16) + a0 * b1 + a1 * b0;
  const carry = a1 * b1 + Math.floor(middle / 0x1_0000);
  low = Math.imul(aLow, bLow) >>> 0;
  high = (carry + Math.imul(aLow, bHigh) + Math.imul(aHigh, bLow)) >>> 0;
};

const add = (aLow: number, aHigh: number, bLow: number, bHigh: number): void => {
  const sum = aLow + bLow;
  low = sum >>> 0;
  high = (aHigh + bHigh + (sum > 0xffff_ffff ? 1 : 0)) >>> 0;
};

/** Turns the result to the left, by 1 to 31 bits. */
const rotate = (bits: number): void => {
  const turned = ((low << bits) | (high >>> (32 - bits))) >>> 0;
  high = ((high << bits) | (low >>> (32 - bits))) >>> 0;
  low = turned;
};

/** The result becomes accumulator [aLow, aHigh] with input [bLow, bHigh] in it. */
const round = (aLow: number, aHigh: number, bLow: number, bHigh: number): void => {
  multiply(bLow, bHigh, PRIMES[1][0], PRIMES[1][1]);
  add(aLow, aHigh, low, high);
  rotate(31);
  multiply(low, high, PRIMES[0][0], PRIMES[0][1]);
};

const le32 = (bytes: Uint8Array, at: number): number =>
  (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0;

export class Xxh64 {
  /** Four accumulators, low halves at even places. */
  readonly #lanes = new Uint32Array(8);
  readonly #stripe = new Uint8Array(STRIPE_BYTES);
  #pending = 0;
  #length = 0;

  constructor() {
    const [p1, p2] = PRIMES;
    add(p1[0], p1[1], p2[0], p2[1]);
    this.#lanes.set([low, high, p2[0], p2[1], 0, 0]);
    // 0 - p1
    add(~p1[0] >>> 0, ~p1[1] >>> 0, 1, 0);
    this.#lanes.set([low, high], 6);
  }

  update(bytes: Uint8Array): void {
    this.#length += bytes.length;
    let at = 0;
    if (this.#pending > 0) {
      at = Math.min(STRIPE_BYTES - this.#pending, bytes.length);
      this.#stripe.set(bytes.subarray(0, at), this.#pending);
      this.#pending += at;
      if (this.#pending < STRIPE_BYTES) {
        return;
      }
      this.#take(this.#stripe, 0);
      this.#pending = 0;
    }
    for (; at + STRIPE_BYTES <= bytes.length; at += STRIPE_BYTES) {
      this.#take(bytes, at);
    }
    this.#stripe.set(bytes.subarray(at));
    this.#pending = bytes.length - at;
  }

  #take(bytes: Uint8Array, at: number): void {
    const lanes = this.#lanes;
    for (let lane = 0; lane < 8; lane += 2) {
      round(lanes[lane]!, lanes[lane + 1]!, le32(bytes, at + 4 * lane), le32(bytes, at + 4 * lane + 4));
      lanes[lane] = low;
      lanes[lane + 1] = high;
    }
  }

  /** The lower 32 bits of the hash, which is what zstd keeps of it. */
  low32(): number {
    const [p1, p2, p3, p4, p5] = PRIMES;
    if (this.#length >= STRIPE_BYTES) {
      this.#mergeLanes();
    } else {
      [low, high] = p5;
    }
    add(low, high, this.#length >>> 0, Math.floor(this.#length / 0x1_0000_0000));
    const rest = this.#stripe;
    let at = 0;
    for (; at + 8 <= this.#pending; at += 8) {
      const [hashLow, hashHigh] = [low, high];
      round(0, 0, le32(rest, at), le32(rest, at + 4));
      low = (low ^ hashLow) >>> 0;
      high = (high ^ hashHigh) >>> 0;
      rotate(27);
      multiply(low, high, p1[0], p1[1]);
      add(low, high, p4[0], p4[1]);
    }
    if (at + 4 <= this.#pending) {
      const [hashLow, hashHigh] = [low, high];
      multiply(le32(rest, at), 0, p1[0], p1[1]);
      low = (low ^ hashLow) >>> 0;
      high = (high ^ hashHigh) >>> 0;
      rotate(23);
      multiply(low, high, p2[0], p2[1]);
      add(low, high, p3[0], p3[1]);
      at += 4;
    }
    for (; at < this.#pending; at += 1) {
      const [hashLow, hashHigh] = [low, high];
      multiply(rest[at]!, 0, p5[0], p5[1]);
      low = (low ^ hashLow) >>> 0;
      high = (high ^ hashHigh) >>> 0;
      rotate(11);
      multiply(low, high, p1[0], p1[1]);
    }
    // The avalanche: shifts to the right by 33, 29, 32.
    low = (low ^ (high >>> 1)) >>> 0;
    multiply(low, high, p2[0], p2[1]);
    low = (low ^ ((low >>> 29) | (high << 3))) >>> 0;
    high = (high ^ (high >>> 29)) >>> 0;
    multiply(low, high, p3[0], p3[1]);
    return (low ^ high) >>> 0;
  }

  #mergeLanes(): void {
    const lanes = this.#lanes;
    const [p1, , , p4] = PRIMES;
    let [sumLow, sumHigh] = [0, 0];
    for (const [lane, bits] of [1, 7, 12, 18].entries()) {
      low = lanes[2 * lane]!;
      high = lanes[2 * lane + 1]!;
      rotate(bits);
      add(sumLow, sumHigh, low, high);
      [sumLow, sumHigh] = [low, high];
    }
    for (let lane = 0; lane < 8; lane += 2) {
      round(0, 0, lanes[lane]!, lanes[lane + 1]!);
      low = (low ^ sumLow) >>> 0;
      high = (high ^ sumHigh) >>> 0;
      multiply(low, high, p1[0], p1[1]);
      add(low, high, p4[0], p4[1]);
      [sumLow, sumHigh] = [low, high];
    }
    [low, high] = [sumLow, sumHigh];
  }
}
