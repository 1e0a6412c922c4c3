// Group `kernels`: the wasm loops against the same loops in C (bench/c/kernels.c), on memory in the same state: freshly
// written by the side that will read it, private to it, 4 KiB pages. The bitmaps are those of a 1 TiB guest.

import {
  bindBitmapKernels,
  bindPageKernels,
  GUEST_PAGE_SIZE,
  NORMAL_RECORD_BYTES,
  ZERO_RECORD_BYTES,
} from '../kernels/index.js';
import { type CTwin, startCTwin } from './c-twin.js';
import type { Benchmark, BenchmarkGroup, Measure } from './harness.js';

const MIB = 2 ** 20;
const BITMAP_BYTES = 32 * MIB;
const BITMAP_BITS = BITMAP_BYTES * 8;
/** Far beyond every cache. */
const RAM_BYTES = 512 * MIB;
const RAM_PAGES = RAM_BYTES / GUEST_PAGE_SIZE;
/** Pages of a batch: whole bitmap words, and their records fit a staging block of 1 MiB. The C twin has the same. */
const BATCH = 224;

const sharedMemory = (byteCount: number): WebAssembly.Memory =>
  new WebAssembly.Memory({ initial: byteCount / 65536, maximum: byteCount / 65536, shared: true });

/** Words of which `percent` of 100 have one bit set; 100 means full words. The same bits as in the C twin. */
const fillBitmap = (words: Int32Array, percent: number): void => {
  let random = 1;
  for (let i = 0; i < words.length; i += 2) {
    words[i] = words[i + 1] = percent === 100 ? -1 : 0;
    if (percent > 0 && percent < 100) {
      random ^= random << 13;
      random ^= random >>> 17;
      random ^= random << 5;
      if ((random >>> 0) % 100 < percent) {
        words[i + (random >>> 31)] = 1 << ((random >>> 26) & 31);
      }
    }
  }
};

/** One run: its time, and a checksum by which both sides can be seen to have done the same. */
type Work = () => { readonly ms: number; readonly check: number };

const timed = (work: () => number): { ms: number; check: number } => {
  const started = performance.now();
  const check = work();
  return { ms: performance.now() - started, check };
};

const bitmapWorks = (): Record<string, Work> => {
  const memory = sharedMemory(2 * BITMAP_BYTES);
  const kernels = bindBitmapKernels(memory);
  const words = new Int32Array(memory.buffer, 0, BITMAP_BYTES / 4);
  const [source, target] = [0, BITMAP_BYTES];
  const sync =
    (percent: number): Work =>
    () => {
      fillBitmap(words, percent);
      new Uint8Array(memory.buffer, target).fill(0);
      return timed(() => kernels.sync(source, target, BITMAP_BYTES / 8));
    };
  return {
    'sync-clean': sync(0),
    'sync-sparse': sync(3),
    'sync-full': sync(100),
    count: () => {
      fillBitmap(words, 3);
      return timed(() => kernels.countRange(source, 0, BITMAP_BITS));
    },
  };
};

const pageWorks = (): Record<string, Work> => {
  const memory = sharedMemory(RAM_BYTES + 4 * MIB);
  const kernels = bindPageKernels(memory);
  const bytes = new Uint8Array(memory.buffer);
  const list = RAM_BYTES;
  const staging = RAM_BYTES + MIB;
  const result = RAM_BYTES + 2 * MIB;
  const written = RAM_BYTES + 3 * MIB;
  new Int32Array(memory.buffer, list, RAM_PAGES).forEach((_, page, pages) => {
    pages[page] = page;
  });
  /** Two of five pages are zero. */
  const fillPages = (pageCount: number): void => {
    for (let page = 0; page < pageCount; page++) {
      const address = page * GUEST_PAGE_SIZE;
      if (page % 5 < 2) {
        kernels.zeroFill(address, GUEST_PAGE_SIZE);
      } else {
        bytes.fill(0x55, address, address + GUEST_PAGE_SIZE);
      }
    }
  };
  const emit = (pageCount: number): number => {
    let byteCount = 0;
    for (let first = 0; first < pageCount; first += BATCH) {
      const count = Math.min(BATCH, pageCount - first);
      const zero = kernels.emitRecords(list + first * 4, count, 0, 0, 0, 0, staging);
      byteCount += zero * ZERO_RECORD_BYTES + (count - zero) * NORMAL_RECORD_BYTES;
    }
    return byteCount;
  };
  return {
    zero: () => {
      kernels.zeroFill(0, RAM_BYTES);
      return timed(() => {
        let zero = 0;
        for (let page = 0; page < RAM_PAGES; page += 1024) {
          zero += kernels.scanZero(page * GUEST_PAGE_SIZE, 1024, result);
        }
        return zero;
      });
    },
    emit: () => {
      fillPages(RAM_PAGES);
      return timed(() => emit(RAM_PAGES));
    },
    load: () => {
      fillPages(BATCH);
      const length = emit(BATCH);
      kernels.zeroFill(0, RAM_BYTES);
      kernels.zeroFill(written, RAM_PAGES / 8);
      const counts = new Int32Array(memory.buffer, result, 4);
      return timed(() => {
        let normal = 0;
        for (let first = 0; first + BATCH <= RAM_PAGES; first += BATCH) {
          // The staging block's records are those of pages 0..BATCH-1 each time.
          kernels.loadRecords(staging, length, first * GUEST_PAGE_SIZE, 0, BATCH, written + first / 8, result);
          normal += counts[1]!;
        }
        return normal;
      });
    },
  };
};

const benchmarks: readonly { name: string; command: string; bytes?: number }[] = [
  { name: 'dirty sync, 1 TiB, clean', command: 'sync-clean' },
  { name: 'dirty sync, 1 TiB, 3 % of words', command: 'sync-sparse' },
  { name: 'dirty sync, 1 TiB, full', command: 'sync-full' },
  { name: 'popcount, 1 TiB', command: 'count' },
  { name: 'zero test, 512 MiB of zeros', command: 'zero', bytes: RAM_BYTES },
  { name: 'record writer, 40 % zero pages', command: 'emit', bytes: RAM_BYTES },
  { name: 'record scatter, 40 % zero pages', command: 'load', bytes: RAM_BYTES },
];

async function* run(): AsyncGenerator<Benchmark> {
  const works = { ...bitmapWorks(), ...pageWorks() };
  const twin = startCTwin('kernels', [String(RAM_BYTES / MIB)]);
  try {
    for (const { name, command, bytes } of benchmarks) {
      const figure = (ms: number): number => (bytes === undefined ? ms : bytes / ms / 1e6);
      let check: number | undefined;
      const ours: Measure = () => {
        const once = works[command]!();
        check = once.check;
        return figure(once.ms);
      };
      const theirs =
        (process: CTwin): Measure =>
        async () => {
          const [nanoseconds, theirCheck] = await process.ask(command);
          if (theirCheck !== check) {
            throw new Error(`${name}: ours counted ${check}, the C twin ${theirCheck}`);
          }
          return figure(nanoseconds! / 1e6);
        };
      const peer = 'missing' in twin ? twin : { name: 'C twin', measure: theirs(twin) };
      yield {
        name,
        unit: bytes === undefined ? 'ms' : 'GB/s',
        better: bytes === undefined ? 'lower' : 'higher',
        ours,
        peer,
      };
    }
  } finally {
    if (!('missing' in twin)) {
      twin.close();
    }
  }
}

export const group: BenchmarkGroup = { name: 'kernels', run };
