// Numbers that look random and are the same in every run, for tests that mutate and choose.

/** mulberry32: numbers in [0, 1). */
export const random = (seed: number): (() => number) => {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
};

/** Whole numbers from 0 below the limit of each call. */
export const randomChoices = (seed: number): ((limit: number) => number) => {
  const next = random(seed);
  return (limit) => Math.floor(next() * limit);
};
