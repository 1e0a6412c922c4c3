// The kernels that share words with guest threads, against a real thread that marks the same words. The worker is this
// same file. RAMFERRY_SLOW=1 runs each race for a minute instead of a moment.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { type BitmapKernels, bindBitmapKernels } from './index.js';
import { bindBitmapTwin } from './twin/bitmap-twin.js';

const RACE_MS = process.env['RAMFERRY_SLOW'] === '1' ? 60_000 : 150;

// Byte offsets in the shared memory, whose first bytes are the control words. 40 words: clean stretches, dirty ones and a remainder.
const WORDS = 40;
const BITS = WORDS * 64;
const SOURCE = 4096;
const SNAPSHOT = 8192;
const GLOBAL = 12288;
const TARGET = 16384;
const LIST = 20480;
const PATTERN = 40960;
/** How often each bit was found clear by the marking thread and set; written by it alone. */
const MARKED = 65536;

/** Control words, each on a cache line of its own. */
const Control = { state: 0, guestAtLine: 32, engineAtLine: 64, guestDone: 96, engineDone: 128 } as const;
const State = { waiting: 0, running: 1, stop: 2, stopped: 3 } as const;

/** Bits of the edge words of a range that belong to the worker: below the range's first bit and from its end on. */
const RANGE = { first: 5, count: 3 * 64 - 10 };
const FOREIGN = [
  { word: 0, bits: 0b11111 },
  { word: 5, bits: 0b11111 << 27 },
] as const;

type Race = 'mark' | 'foreign' | 'litmus';

/** What the worker does until it is told to stop. */
const guest: Record<Race, (words: Int32Array) => void> = {
  /** Marks pseudo-random bits, of those that PATTERN leaves clear, and remembers which marks were new. */
  mark(words) {
    let random = 12345;
    while (Atomics.load(words, Control.state) === State.running) {
      for (let i = 0; i < 64; i++) {
        random = (Math.imul(random, 1664525) + 1013904223) | 0;
        const bit = ((random >>> 8) % BITS) & ~16;
        const mask = 1 << (bit & 31);
        if ((Atomics.or(words, SOURCE / 4 + (bit >>> 5), mask) & mask) === 0) {
          words[MARKED / 4 + bit]!++;
        }
      }
    }
  },

  /** Sets and clears its own bits in the edge words of RANGE, and counts how often somebody else had changed them. */
  foreign(words) {
    while (Atomics.load(words, Control.state) === State.running) {
      for (const { word, bits } of FOREIGN) {
        const wasSet = Atomics.or(words, SOURCE / 4 + word, bits) & bits;
        const stayedSet = Atomics.and(words, SOURCE / 4 + word, ~bits) & bits;
        words[MARKED / 4]! += wasSet === 0 && stayedSet === bits ? 0 : 1;
      }
    }
  },

  /** Stores to a page, then marks it, round by round (TS-1). */
  litmus(words) {
    for (let round = 1; Atomics.load(words, Control.state) === State.running; round++) {
      const { page, word } = litmusSlot(round);
      Atomics.store(words, Control.guestAtLine, round);
      while (Atomics.load(words, Control.engineAtLine) !== round) {
        if (Atomics.load(words, Control.state) !== State.running) {
          return;
        }
      }
      dawdle(words, LIST / 4, round * 13, 31);
      words[page] = round;
      Atomics.or(words, word, 1);
      Atomics.store(words, Control.guestDone, round);
      while (
        Atomics.load(words, Control.engineDone) !== round &&
        Atomics.load(words, Control.state) === State.running
      ) {}
    }
  },
};

/** Page word and bitmap word of a litmus round (Int32Array indexes): rotating, so that they are rarely in the cache. */
const litmusSlot = (round: number) => ({ page: MARKED / 4 + (round & 255) * 32, word: SOURCE / 4 + (round & 31) * 2 });

/** Passes a varying moment, so that now one side comes first and now the other. */
const dawdle = (words: Int32Array, scratch: number, seed: number, most: number): void => {
  for (let i = (Math.imul(seed, 1664525) >>> 8) & most; i > 0; i--) {
    words[scratch] = i;
  }
};

if (!isMainThread) {
  const { memory, race } = workerData as { memory: WebAssembly.Memory; race: Race };
  const words = new Int32Array(memory.buffer);
  Atomics.store(words, Control.state, State.running);
  Atomics.notify(words, Control.state);
  guest[race](words);
  Atomics.store(words, Control.state, State.stopped);
  Atomics.notify(words, Control.state);
} else {
  /** Repeats `step` against the worker for RACE_MS; returns when the worker has made its last mark (TS-3). */
  const raceAgainst = async (memory: WebAssembly.Memory, race: Race, step: () => void): Promise<void> => {
    const words = new Int32Array(memory.buffer);
    const worker = new Worker(new URL(import.meta.url), { workerData: { memory, race } });
    const exit = new Promise<number>((resolve) => worker.once('exit', resolve));
    while (Atomics.load(words, Control.state) === State.waiting) {
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    try {
      for (const end = performance.now() + RACE_MS; performance.now() < end; ) {
        step();
      }
    } finally {
      Atomics.compareExchange(words, Control.state, State.running, State.stop);
      assert.equal(await exit, 0);
    }
  };

  const implementations: readonly (readonly [string, (memory: WebAssembly.Memory) => BitmapKernels])[] = [
    ['wasm', bindBitmapKernels],
    ['twin', (memory) => bindBitmapTwin(memory)],
  ];

  for (const [name, bind] of implementations) {
    const setUp = () => {
      const memory = new WebAssembly.Memory({ initial: 4, maximum: 4, shared: true });
      const words = new Int32Array(memory.buffer);
      return { memory, words, kernels: bind(memory), marked: words.subarray(MARKED / 4, MARKED / 4 + BITS) };
    };

    /** Empties the bitmap into per-bit counts. */
    const drain = (kernels: BitmapKernels, words: Int32Array, bitmap: number, counts: Int32Array): number => {
      const found = kernels.collect(bitmap, 0, BITS, LIST, BITS);
      for (const bit of words.subarray(LIST / 4, LIST / 4 + found)) {
        counts[bit]!++;
      }
      assert.equal(kernels.clearListed(bitmap, LIST, found), found);
      return found;
    };

    test(`${name}: sync racing with marks moves every mark once, loses and invents none (DM-13, DM-14)`, async () => {
      const { memory, words, kernels, marked } = setUp();
      const moved = new Int32Array(BITS);
      const round = (): void => {
        assert.equal(kernels.sync(SOURCE, TARGET, WORDS), drain(kernels, words, TARGET, moved));
      };
      await raceAgainst(memory, 'mark', round);
      round();
      assert.ok(marked.some((count) => count > 1));
      assert.deepEqual(moved, marked);
      assert.equal(kernels.countRange(SOURCE, 0, BITS), 0);
    });

    test(`${name}: merging into a bitmap that is being marked loses no mark (DM-1, DM-14)`, async () => {
      const { memory, words, kernels, marked } = setUp();
      const moved = new Int32Array(BITS);
      const pattern = words.subarray(PATTERN / 4, PATTERN / 4 + BITS / 32).fill(0xffff0000);
      let rounds = 0;
      const round = (): void => {
        assert.equal(kernels.merge(PATTERN, SOURCE, WORDS), BITS / 2);
        kernels.sync(SOURCE, TARGET, WORDS);
        assert.equal(kernels.fetchLog(PATTERN, SNAPSHOT, SOURCE, WORDS), BITS / 2);
        kernels.sync(SOURCE, SNAPSHOT, WORDS);
        drain(kernels, words, TARGET, moved);
        drain(kernels, words, SNAPSHOT, moved);
        rounds++;
      };
      await raceAgainst(memory, 'mark', round);
      round();
      const expected = marked.map((count, bit) =>
        ((pattern[bit >>> 5]! >>> (bit & 31)) & 1) === 1 ? 2 * rounds : count,
      );
      assert.deepEqual(moved, expected);
    });

    test(`${name}: fetch and masked clear racing with marks: what leaves REMOTE was passed on (TS-9, TS-11, G-5)`, async () => {
      const { memory, words, kernels, marked } = setUp();
      const passedOn = new Int32Array(BITS);
      const round = (): void => {
        const fetched = kernels.fetchLog(SOURCE, SNAPSHOT, GLOBAL, WORDS);
        assert.equal(drain(kernels, words, GLOBAL, passedOn), fetched);
        // Two clears whose border is inside a word.
        const cleared =
          kernels.clearLog(SOURCE, SNAPSHOT, 0, 1000) + kernels.clearLog(SOURCE, SNAPSHOT, 1000, BITS - 1000);
        assert.equal(cleared, fetched);
      };
      await raceAgainst(memory, 'mark', round);
      round();
      assert.ok(marked.some((count) => count > 1));
      assert.deepEqual(passedOn, marked);
      assert.equal(kernels.countRange(SOURCE, 0, BITS), 0);
    });

    test(`${name}: range kernels leave another thread's bits of the edge words alone (DM-11, DM-12, CB-12)`, async () => {
      const { memory, kernels, marked } = setUp();
      kernels.setRange(TARGET, RANGE.first, RANGE.count);
      await raceAgainst(memory, 'foreign', () => {
        kernels.setRange(SOURCE, RANGE.first, RANGE.count);
        assert.equal(kernels.testAndClearRange(SOURCE, RANGE.first, RANGE.count), RANGE.count);
        kernels.fetchLog(TARGET, SNAPSHOT, SOURCE, 3);
        assert.equal(kernels.clearLog(SOURCE, SNAPSHOT, RANGE.first, RANGE.count), RANGE.count);
      });
      assert.equal(marked[0], 0, 'times that a bit of the worker changed under it');
    });

    test(`${name}: store, then mark, against clear, then read: no store is lost (TS-10, TS-13, CB-1)`, async (t) => {
      const { memory, words, kernels } = setUp();
      let [rounds, early, lost] = [0, 0, 0];
      await raceAgainst(memory, 'litmus', () => {
        const round = rounds + 1;
        const { page, word } = litmusSlot(round);
        // As after a fetch that reported the page: the mark is in REMOTE and in SNAP.
        words[page] = 0;
        words[word] = 1;
        words[word + (SNAPSHOT - SOURCE) / 4] = 1;
        while (Atomics.load(words, Control.guestAtLine) !== round) {}
        Atomics.store(words, Control.engineAtLine, round);
        dawdle(words, TARGET / 4, round * 7, 1023);
        kernels.clearLog(SOURCE, SNAPSHOT, (word - SOURCE / 4) * 32, 64);
        const sent = words[page];
        while (Atomics.load(words, Control.guestDone) !== round) {}
        const markedAgain = (Atomics.load(words, word) & 1) === 1;
        early += sent === round ? 0 : 1;
        lost += sent !== round && !markedAgain ? 1 : 0;
        rounds = round;
        Atomics.store(words, Control.engineDone, round);
      });
      t.diagnostic(`${rounds} rounds, the page read before the store in ${early}`);
      assert.ok(rounds > 0);
      assert.equal(lost, 0);
    });
  }
}
