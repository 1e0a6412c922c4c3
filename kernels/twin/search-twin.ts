// The search kernels in plain TypeScript: the oracle of the wasm ones (TS-8) and their fallback where wasm SIMD is missing.

import type { SearchKernels } from '../kernels.js';

/** Search kernels over a memory, without wasm. */
export const bindSearchTwin = (memory: WebAssembly.Memory): SearchKernels => {
  const bytes = new Uint8Array(memory.buffer);
  const isAt = (place: number, needle: number, length: number): boolean => {
    for (let index = 0; index < length; index++) {
      if ((bytes[place + index]! & bytes[needle + length + index]!) !== bytes[needle + index]!) {
        return false;
      }
    }
    return true;
  };
  return {
    findMasked(from, end, needle, length) {
      let place = from;
      while (place < end && !isAt(place, needle, length)) {
        place++;
      }
      return Math.min(place, end);
    },

    findRun(from, end, table, least) {
      for (let place = from; place + least <= end; place++) {
        if (this.runEnd(place, place + least, table) === place + least) {
          return place;
        }
      }
      return end;
    },

    runEnd(from, end, table) {
      let place = from;
      while (place < end && bytes[table + bytes[place]!] !== 0) {
        place++;
      }
      return place;
    },
  };
};
