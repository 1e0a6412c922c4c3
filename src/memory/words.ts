// Bit arithmetic on the 32-bit words of a bitmap, for the few words at the edges of a range; whole words are kernel work.

/** The bits [from, to) of the word they lie in: `to - from` is 1 to 32 and both bits are in the same word. */
export const maskOfBits = (from: number, to: number): number => (-1 >>> (32 - (to - from))) << (from & 31);

export const populationCount = (word: number): number => {
  let bits = word - ((word >>> 1) & 0x55555555);
  bits = (bits & 0x33333333) + ((bits >>> 2) & 0x33333333);
  bits = (bits + (bits >>> 4)) & 0x0f0f0f0f;
  return Math.imul(bits, 0x01010101) >>> 24;
};
