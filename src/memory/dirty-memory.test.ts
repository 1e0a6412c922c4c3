import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { bindBitmapTwin } from '../../kernels/twin/bitmap-twin.js';
import { BitmapMemory } from './bitmap-memory.js';
import { DIRTY_BLOCK_PAGES, DirtyClient, DirtyClientMask, DirtyMemory } from './dirty-memory.js';
import { RamBlock } from './ram-block.js';
import { guestAddress, ramPage } from './units.js';

const CLIENTS = Object.values(DirtyClient);

/** The tests look at the pages around the border between the first two bitmap blocks. */
const WINDOW = 512;
const START = DIRTY_BLOCK_PAGES - WINDOW / 2;

interface Bench {
  readonly bitmaps: BitmapMemory;
  readonly dirty: DirtyMemory;
  /** Fills the window: no need to plug 8 GiB for it. */
  readonly block: RamBlock;
  /** A tracker's bitmap, as long as the window. */
  readonly input: number;
}

const bench = (bitmaps = BitmapMemory.create(2 ** 23)): Bench => {
  const dirty = DirtyMemory.create(bitmaps);
  // In two steps, so that a client's blocks do not lie next to each other and what crosses a border hits something else.
  dirty.grow(DIRTY_BLOCK_PAGES);
  dirty.grow(START + WINDOW);
  const allocate = (): number => bitmaps.allocate(WINDOW);
  const block = new RamBlock(
    {
      name: 'pc.ram',
      usedLength: WINDOW * 4096,
      maxLength: WINDOW * 4096,
      hostPageSize: 4096,
      migratable: true,
      ignored: false,
      shared: false,
      resizable: false,
      guestAddress: guestAddress(0),
      discardGranularity: 0,
    },
    {
      id: 1,
      ramPage: ramPage(START),
      extents: [],
      bitmaps: { send: allocate(), remote: allocate(), snapshot: allocate(), received: allocate() },
      discardManager: undefined,
    },
  );
  return { bitmaps, dirty, block, input: allocate() };
};

const bitsAt = (bitmaps: BitmapMemory, bitmap: number, count = WINDOW): boolean[] =>
  Array.from({ length: count }, (_, bit) => ((bitmaps.words[bitmap / 4 + (bit >>> 5)]! >>> (bit & 31)) & 1) === 1);

const storeBits = (bitmaps: BitmapMemory, bitmap: number, bits: readonly boolean[]): void => {
  bitmaps.words.fill(0, bitmap / 4, bitmap / 4 + WINDOW / 32);
  for (const [bit, isSet] of bits.entries()) {
    bitmaps.words[bitmap / 4 + (bit >>> 5)]! |= (isSet ? 1 : 0) << (bit & 31);
  }
};

/** A client's bits of the window, read past all the code under test. */
const dirtyBits = ({ bitmaps, dirty }: Bench, client: number): boolean[] => {
  const [low, high] = dirty.blockAddresses(client as DirtyClient);
  return [
    ...bitsAt(bitmaps, low! + (DIRTY_BLOCK_PAGES - WINDOW / 2) / 8, WINDOW / 2),
    ...bitsAt(bitmaps, high!, WINDOW / 2),
  ];
};

/** The same operations on one boolean a page. */
class Oracle {
  readonly dirty = CLIENTS.map(() => new Array<boolean>(WINDOW).fill(false));
  readonly send = new Array<boolean>(WINDOW).fill(false);

  set(first: number, count: number, clients: number): void {
    for (const client of CLIENTS) {
      if ((clients >> client) & 1) {
        this.dirty[client]!.fill(true, first, first + count);
      }
    }
  }

  take(first: number, count: number, client: number): boolean[] {
    const taken = this.dirty[client]!.slice(first, first + count);
    this.dirty[client]!.fill(false, first, first + count);
    return taken;
  }
}

const range = fc
  .tuple(fc.nat(WINDOW), fc.nat(WINDOW))
  .map(([one, other]) => ({ first: Math.min(one, other), count: Math.abs(one - other) }));
const client = fc.constantFrom(...CLIENTS);
const clients = fc.integer({ min: 0, max: 7 });
const sparseBits = fc
  .array(fc.nat(WINDOW - 1), { maxLength: 30 })
  .map((pages) => Array.from({ length: WINDOW }, (_, page) => pages.includes(page)));

const step = fc.oneof(
  fc.record({ kind: fc.constant('setPage' as const), page: fc.nat(WINDOW - 1), clients }),
  fc.record({ kind: fc.constant('setRange' as const), range, clients }),
  fc.record({
    kind: fc.constant('merge' as const),
    range,
    perBit: fc.constantFrom(1, 1, 2, 16),
    tracking: clients,
    bits: sparseBits,
  }),
  fc.record({ kind: fc.constant('testAndClear' as const), range, client }),
  fc.record({ kind: fc.constant('sync' as const), range }),
  fc.record({ kind: fc.constant('snapshot' as const), range, client }),
  fc.record({ kind: fc.constant('query' as const), range, client, clients }),
);

// DM-9 … DM-13, DM-15 … DM-20, DM-24, DM-26, on both kinds of kernels: the bits of the whole window are compared after every step.
for (const [name, bind] of [
  ['wasm', undefined],
  ['twin', (memory: WebAssembly.Memory) => bindBitmapTwin(memory)],
] as const) {
  test(`every operation is that of one bit a page, for any alignment and across a block border (${name})`, () => {
    const subject = bench(BitmapMemory.create(2 ** 23, bind));
    const { bitmaps, dirty, block, input } = subject;
    const at = (page: number) => ramPage(START + page);
    fc.assert(
      fc.property(fc.array(step, { minLength: 1, maxLength: 20 }), (steps) => {
        for (const each of CLIENTS) {
          dirty.testAndClear(at(0), WINDOW, each);
        }
        storeBits(bitmaps, block.bitmaps.send, []);
        const oracle = new Oracle();
        for (const action of steps) {
          if (action.kind === 'setPage') {
            dirty.setPage(at(action.page), action.clients);
            oracle.set(action.page, 1, action.clients);
          } else if (action.kind === 'setRange') {
            dirty.setRange(at(action.range.first), action.range.count, action.clients);
            oracle.set(action.range.first, action.range.count, action.clients);
          } else if (action.kind === 'merge') {
            const { range, perBit, tracking, bits } = action;
            storeBits(bitmaps, input, bits);
            dirty.migrationTracking = (tracking & DirtyClientMask.migration) !== 0;
            dirty.codeTracking = (tracking & DirtyClientMask.code) !== 0;
            const seen = dirty.mergeLittleEndian(input, at(range.first), range.count, perBit * 4096);
            const reported = bits.slice(0, Math.ceil(range.count / perBit));
            assert.equal(seen, reported.filter(Boolean).length);
            for (const bit of reported.keys()) {
              if (reported[bit]) {
                const pages = Math.min(perBit, range.count - bit * perBit);
                oracle.set(range.first + bit * perBit, pages, tracking | DirtyClientMask.vga);
              }
            }
            assert.deepEqual(bitsAt(bitmaps, input), bits);
          } else if (action.kind === 'testAndClear') {
            const { range, client } = action;
            const wasDirty = oracle.take(range.first, range.count, client).includes(true);
            assert.equal(dirty.testAndClear(at(range.first), range.count, client), wasDirty);
          } else if (action.kind === 'sync') {
            const { range } = action;
            let fresh = 0;
            for (const [index, moved] of oracle.take(range.first, range.count, DirtyClient.migration).entries()) {
              fresh += moved && !oracle.send[range.first + index] ? 1 : 0;
              oracle.send[range.first + index] ||= moved;
            }
            assert.equal(dirty.syncInto(block, range.first, range.count), fresh);
            assert.deepEqual(bitsAt(bitmaps, block.bitmaps.send), oracle.send);
          } else if (action.kind === 'snapshot') {
            const { range, client } = action;
            const start = Math.floor(range.first / 64) * 64;
            const count = Math.ceil((range.first + range.count) / 64) * 64 - start;
            const snapshot = dirty.snapshotAndClear(at(range.first), range.count, client);
            assert.deepEqual([snapshot.firstPage, snapshot.pageCount], [at(start), count]);
            assert.deepEqual(
              Array.from({ length: count }, (_, page) => snapshot.isDirty(at(start + page))),
              oracle.take(start, count, client),
            );
            assert.throws(() => snapshot.isDirty(at(start - 1)), RangeError);
            assert.throws(() => snapshot.isDirty(at(start + count)), RangeError);
          } else {
            const { range, client, clients } = action;
            const inRange = oracle.dirty.map((bits) => bits.slice(range.first, range.first + range.count));
            assert.equal(dirty.anyDirty(at(range.first), range.count, client), inRange[client]!.includes(true));
            assert.equal(dirty.allDirty(at(range.first), range.count, client), !inRange[client]!.includes(false));
            const including = inRange.map((bits, each) => (bits.includes(false) ? 1 << each : 0));
            assert.equal(
              dirty.includesClean(at(range.first), range.count, clients),
              including.reduce((mask, bit) => mask | bit, 0) & clients,
            );
            const page = Math.min(range.first, WINDOW - 1);
            assert.equal(
              dirty.isClean(at(page)),
              oracle.dirty.some((bits) => !bits[page]),
            );
          }
          for (const each of CLIENTS) {
            assert.deepEqual(dirtyBits(subject, each), oracle.dirty[each], `client ${each} after ${action.kind}`);
          }
        }
      }),
      { numRuns: 200 },
    );
  });
}

// DM-8, DM-16
test('syncing a short block neither takes nor counts bits next to it', () => {
  const { dirty, block } = bench();
  dirty.setRange(ramPage(START), WINDOW, DirtyClientMask.migration);
  block.setUsedLength(3 * 4096);
  assert.equal(dirty.syncInto(block), 3);
  assert.equal(dirty.allDirty(ramPage(START + 3), WINDOW - 3, DirtyClient.migration), true);
  assert.equal(dirty.syncInto(block), 0);
});

// DM-18: an atomic OR of zero is still a write, which would commit bitmap pages of memory that is never touched.
test('merging an all-zero bitmap writes nothing', () => {
  let writes = 0;
  const bitmaps = BitmapMemory.create(2 ** 23, (memory) => bindBitmapTwin(memory));
  const { dirty, input } = bench(bitmaps);
  dirty.migrationTracking = true;
  const { or } = Atomics;
  Atomics.or = ((...args: Parameters<typeof or>) => {
    writes += 1;
    return or(...args);
  }) as typeof or;
  try {
    for (const [first, count, hostPageSize] of [
      [0, WINDOW, 4096],
      [3, 100, 4096],
      [0, WINDOW, 8192],
    ] as const) {
      assert.equal(dirty.mergeLittleEndian(input, ramPage(START + first), count, hostPageSize), 0);
    }
    assert.equal(writes, 0);
    bitmaps.words[input / 4] = 1;
    dirty.mergeLittleEndian(input, ramPage(START), WINDOW);
    assert.equal(writes, 2, 'one word of two clients');
  } finally {
    Atomics.or = or;
  }
});

// DM-14, DM-12: a guest thread marks a page before every single access that the kernels make.
test('a mark made at any moment of a sync or a clear survives', () => {
  for (const seed of [1, 2, 3, 4, 5]) {
    let state = seed;
    const random = (below: number): number => {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0;
      return Math.floor((state / 2 ** 32) * below);
    };
    const marked = new Set<number>();
    let mark = (): void => {};
    const bitmaps = BitmapMemory.create(2 ** 23, (memory) => bindBitmapTwin(memory, () => mark()));
    const subject = bench(bitmaps);
    const { dirty, block } = subject;
    mark = () => {
      const page = random(WINDOW);
      marked.add(page);
      dirty.setPage(ramPage(START + page), DirtyClientMask.all);
    };
    for (let round = 0; round < 40; round += 1) {
      const first = random(WINDOW);
      dirty.syncInto(block, first, random(WINDOW - first) + 1);
    }
    const cleared = new Set<number>();
    for (let page = 0; page < WINDOW; page += 7) {
      cleared.add(page);
      dirty.testAndClear(ramPage(START + page), 1, DirtyClient.vga);
    }
    mark = () => {};
    const send = bitsAt(bitmaps, block.bitmaps.send);
    const migration = dirtyBits(subject, DirtyClient.migration);
    const vga = dirtyBits(subject, DirtyClient.vga);
    for (let page = 0; page < WINDOW; page += 1) {
      assert.equal(send[page]! || migration[page]!, marked.has(page));
      assert.ok(cleared.has(page) || vga[page] === marked.has(page));
    }
  }
});

// TS-9, G-6
test('fetching a log reaches every tracking client and leaves the log as it is', () => {
  const subject = bench();
  const { bitmaps, dirty, block } = subject;
  const { remote, snapshot } = block.bitmaps;
  const marks = Array.from({ length: WINDOW }, (_, page) => page % 3 === 0 || (page > 250 && page < 260));
  const count = marks.filter(Boolean).length;
  storeBits(bitmaps, remote, marks);
  assert.equal(dirty.fetchLog(block), count);
  assert.deepEqual(dirtyBits(subject, DirtyClient.vga), marks);
  assert.equal(dirty.anyDirty(block.ramPage, WINDOW, DirtyClient.migration), false, 'DM-19');
  dirty.migrationTracking = true;
  dirty.codeTracking = true;
  storeBits(bitmaps, snapshot, []);
  assert.equal(dirty.fetchLog(block), count);
  for (const each of CLIENTS) {
    assert.deepEqual(dirtyBits(subject, each), marks);
  }
  assert.deepEqual(bitsAt(bitmaps, remote), marks);
  assert.deepEqual(bitsAt(bitmaps, snapshot), marks);
});

// DM-2, DM-3, DM-7: the map grows in the middle of an operation, which goes on with the generation that it loaded.
test('an operation that began before the map grew works on the same blocks', () => {
  let grow = (): void => {};
  const bitmaps = BitmapMemory.create(2 ** 24, (memory) => bindBitmapTwin(memory, () => grow()));
  const { dirty } = bench(bitmaps);
  const before = CLIENTS.map((each) => dirty.blockAddresses(each));
  grow = () => {
    grow = () => {};
    dirty.grow(5 * DIRTY_BLOCK_PAGES);
  };
  dirty.setRange(ramPage(START), WINDOW, DirtyClientMask.all);
  assert.equal(dirty.blockCount, 5);
  for (const each of CLIENTS) {
    assert.deepEqual(dirty.blockAddresses(each).slice(0, 2), before[each]);
    assert.equal(dirty.allDirty(ramPage(START), WINDOW, each), true);
    // DM-4
    assert.equal(dirty.anyDirty(ramPage(2 * DIRTY_BLOCK_PAGES), 3 * DIRTY_BLOCK_PAGES, each), false);
  }
  dirty.grow(1);
  assert.equal(dirty.blockCount, 5);
});

// TS-7
test('pages that the map does not cover are refused', () => {
  const { dirty } = bench();
  const end = 2 * DIRTY_BLOCK_PAGES;
  assert.throws(() => dirty.setPage(ramPage(end), DirtyClientMask.all), RangeError);
  assert.throws(() => dirty.setRange(ramPage(end - 1), 2, DirtyClientMask.all), RangeError);
  assert.throws(() => dirty.anyDirty(ramPage(-1), 1, DirtyClient.vga), RangeError);
  assert.equal(dirty.anyDirty(ramPage(0), end, DirtyClient.vga), false);
});

test('another thread sees the same map and the same switches', () => {
  const { bitmaps, dirty } = bench();
  const other = DirtyMemory.attach(BitmapMemory.attach(bitmaps.memory), dirty.header);
  dirty.migrationTracking = true;
  dirty.grow(3 * DIRTY_BLOCK_PAGES);
  other.setPage(ramPage(2 * DIRTY_BLOCK_PAGES), DirtyClientMask.code);
  assert.equal(dirty.anyDirty(ramPage(2 * DIRTY_BLOCK_PAGES), 1, DirtyClient.code), true);
  assert.deepEqual([other.migrationTracking, other.codeTracking, other.blockCount], [true, false, 3]);
});
