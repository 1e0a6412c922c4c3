import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { BitmapMemory } from './bitmap-memory.js';
import { DIRTY_BLOCK_PAGES, DirtyClient } from './dirty-memory.js';
import type { RamBlock } from './ram-block.js';
import { RamBlockList } from './ram-block-list.js';
import { ramPage } from './units.js';

const CLIENTS = Object.values(DirtyClient);
const SEGMENT_BYTES = 256 * GUEST_PAGE_SIZE;
const pages = (count: number): number => count * GUEST_PAGE_SIZE;
const small = (): RamBlockList => RamBlockList.create({ segmentBytes: SEGMENT_BYTES });

const isAllDirty = (list: RamBlockList, block: RamBlock): boolean =>
  CLIENTS.every((client) => list.dirty.allDirty(block.ramPage, block.usedPages, client));

const clean = (list: RamBlockList, block: RamBlock): void => {
  for (const client of CLIENTS) {
    list.dirty.testAndClear(block.ramPage, block.maxPages, client);
  }
};

test('any sequence of plugs and unplugs keeps blocks apart, ordered and dirty', () => {
  const size = fc.integer({ min: 1, max: 600 });
  fc.assert(
    fc.property(
      fc.array(fc.record({ plug: fc.boolean(), used: size, spare: fc.nat(300) }), { maxLength: 25 }),
      (steps) => {
        const list = small();
        for (const [index, { plug, used, spare }] of steps.entries()) {
          if (plug || list.blocks.length === 0) {
            const block = list.add({ name: `dimm${index}`, usedLength: pages(used), maxLength: pages(used + spare) });
            // DM-27: also in a reused range, new memory is zero and dirty for everyone.
            assert.ok(isAllDirty(list, block));
            assert.equal(
              CLIENTS.some((client) => list.dirty.anyDirty(ramPage(block.ramPage + used), spare, client)),
              false,
            );
            assert.ok(block.read(0, block.usedLength).every((byte) => byte === 0));
            for (const bitmap of Object.values(block.bitmaps)) {
              assert.equal(list.bitmaps.kernels.countRange(bitmap, 0, block.maxPages), 0);
              list.bitmaps.kernels.setRange(bitmap, 0, block.maxPages);
            }
            block.write(block.usedLength - 1, Uint8Array.of(index));
          } else {
            list.remove(list.blocks[used % list.blocks.length]!);
          }
          // DM-29
          const lengths = list.blocks.map((block) => block.maxLength);
          assert.deepEqual(
            lengths,
            lengths.toSorted((one, other) => other - one),
          );
          // DM-8
          const flat = list.blocks.toSorted((one, other) => one.ramPage - other.ramPage);
          for (const [position, block] of flat.entries()) {
            assert.equal(block.ramPage % 64, 0);
            const next = flat[position + 1];
            assert.ok(next === undefined || next.ramPage >= block.ramPage + Math.ceil(block.maxPages / 64) * 64);
          }
          // No two extents overlap, nor share a word of a written bitmap.
          const extents = list.blocks.flatMap((block) => block.extents);
          const units = extents.flatMap((extent) => {
            assert.equal(extent.address % pages(64), 0);
            assert.ok(extent.address + pages(extent.pageCount) <= extent.segment.ramBytes);
            const first = extent.address / pages(64);
            return Array.from(
              { length: Math.ceil(extent.pageCount / 64) },
              (_, unit) => `${extents.findIndex((other) => other.segment === extent.segment)}:${first + unit}`,
            );
          });
          assert.equal(new Set(units).size, units.length);
        }
      },
    ),
    { numRuns: 25 },
  );
});

// DM-28
test('a block goes into the tightest gap of the flat space', () => {
  const list = small();
  const add = (name: string, count: number): RamBlock => list.add({ name, usedLength: pages(count) });
  const [wide, , tight] = [add('wide', 300), add('a', 1), add('tight', 200), add('b', 1)];
  list.remove(wide!);
  list.remove(tight!);
  assert.equal(add('fits', 190).ramPage, tight!.ramPage);
  assert.equal(add('larger', 250).ramPage, wide!.ramPage);
  assert.equal(add('largest', 400).ramPage, 320 + 64 + 256 + 64);
});

test('big blocks fill segments, small ones share one, and the memory of removed blocks is reused', () => {
  const list = small();
  const big = list.add({ name: 'big', usedLength: 2 * SEGMENT_BYTES + pages(10) });
  const rom = list.add({ name: 'rom', usedLength: pages(20) });
  assert.deepEqual(
    big.extents.map(({ address, firstPage, pageCount }) => [address, firstPage, pageCount]),
    [
      [0, 0, 256],
      [0, 256, 256],
      [0, 512, 10],
    ],
  );
  assert.equal(rom.extents[0]!.segment, big.extents[2]!.segment);
  rom.write(0, Uint8Array.of(1));
  const { segment, address } = big.extents[2]!;
  segment.bytes[address] = 2;
  list.remove(big);
  const next = list.add({ name: 'small', usedLength: pages(10) });
  assert.deepEqual([next.extents[0]!.segment, next.extents[0]!.address], [segment, address]);
  assert.deepEqual([rom.read(0, 1), next.read(0, 1)], [Uint8Array.of(1), Uint8Array.of(0)]);
});

test('segments that nobody uses are dropped, in every thread', () => {
  const list = small();
  list.add({ name: 'stays', usedLength: pages(1) });
  const other = RamBlockList.attach(list.share());
  const big = list.add({ name: 'big', usedLength: 2 * SEGMENT_BYTES + pages(10) });
  other.update(list.share());
  assert.equal(other.share().segments.length, 3);
  list.remove(big);
  other.update(list.share());
  assert.equal(other.share().segments.length, 1);
  list.reclaim();
  list.add({ name: 'big', usedLength: 2 * SEGMENT_BYTES });
  const fresh = list.share().segments.map(({ memory }) => memory);
  assert.ok(big.extents.slice(0, 2).every(({ segment }) => !fresh.includes(segment.memory)));
});

// DM-5, DM-6
test('when a block is announced, its map exists, its bits are set, and list and version are new', () => {
  const list = small();
  const seen: [string, number, boolean, boolean][] = [];
  list.subscribe({
    added: (block) => seen.push([block.name, list.version, list.blocks.includes(block), isAllDirty(list, block)]),
  });
  list.add({ name: 'a', usedLength: pages(3) });
  list.add({ name: 'b', usedLength: pages(64) });
  assert.deepEqual(seen, [
    ['a', 1, true, true],
    ['b', 2, true, true],
  ]);
});

// DM-7, DM-30
test('plugging and unplugging the highest block neither leaks nor reallocates map blocks', () => {
  // Bitmaps of both blocks, 2 MiB, nine map blocks, and 64 KiB, which no leak of a cache line a round would leave.
  const list = RamBlockList.create({ bitmaps: BitmapMemory.create(2 ** 21 + 9 * 2 ** 18 + 2 ** 16) });
  list.add({ name: 'low', usedLength: pages(DIRTY_BLOCK_PAGES) });
  const addresses = (): number[][] => CLIENTS.map((client) => [...list.dirty.blockAddresses(client)]);
  list.remove(list.add({ name: 'high', usedLength: pages(DIRTY_BLOCK_PAGES + 1) }));
  const grown = addresses();
  assert.deepEqual(
    grown.map(({ length }) => length),
    [3, 3, 3],
  );
  assert.equal(new Set(grown.flat()).size, 9);
  for (let round = 0; round < 400; round += 1) {
    list.remove(list.add({ name: 'high', usedLength: pages(DIRTY_BLOCK_PAGES + 1) }));
    assert.deepEqual(addresses(), grown);
  }
});

// DM-22
test('after a resize all of the new length is dirty, and nothing beyond it', () => {
  const list = small();
  const block = list.add({ name: 'acpi', usedLength: pages(100), maxLength: pages(200) });
  for (const length of [130, 7, 200, 1, 64, 65]) {
    clean(list, block);
    list.dirty.setRange(block.ramPage, block.usedPages - 1, 7);
    list.bitmaps.kernels.setRange(block.bitmaps.remote, 0, block.usedPages);
    const marked = block.usedPages;
    list.resize(block, pages(length));
    assert.equal(block.usedPages, length);
    assert.ok(isAllDirty(list, block));
    for (const client of CLIENTS) {
      assert.equal(list.dirty.anyDirty(ramPage(block.ramPage + length), 256 - length, client), false);
    }
    assert.equal(list.bitmaps.kernels.countRange(block.bitmaps.remote, 0, 256), Math.min(marked, length));
  }
});

// DM-23
test('an observer sees a resize before anything is touched, and can refuse it', () => {
  const list = small();
  const block = list.add({ name: 'acpi', usedLength: pages(100), maxLength: pages(200) });
  clean(list, block);
  const version = list.version;
  const unsubscribe = list.subscribe({
    resizing: (resized, newLength) => {
      assert.deepEqual([resized, newLength, block.usedLength], [block, pages(50), pages(100)]);
      throw new Error('migration runs');
    },
  });
  assert.throws(() => list.resize(block, pages(50)), /migration runs/);
  assert.deepEqual([block.usedPages, list.version], [100, version]);
  assert.equal(list.dirty.anyDirty(block.ramPage, block.maxPages, DirtyClient.migration), false);
  unsubscribe();
  list.resize(block, pages(50));
  assert.equal(block.usedPages, 50);
});

test('a resize to the same length does nothing', () => {
  const list = small();
  const block = list.add({ name: 'fixed', usedLength: pages(2) });
  clean(list, block);
  list.resize(block, pages(2));
  assert.equal(list.version, 1);
  assert.equal(list.dirty.anyDirty(block.ramPage, 2, DirtyClient.vga), false);
});

test('what cannot be is refused with a typed error that names the values, and changes nothing', () => {
  const list = small();
  const fixed = list.add({ name: 'fixed', usedLength: pages(2) });
  const flexible = list.add({ name: 'flexible', usedLength: pages(2), maxLength: pages(4) });
  const foreign = small().add({ name: 'foreign', usedLength: pages(1) });
  const refusals: [() => unknown, string, RegExp][] = [
    [() => list.resize(fixed, pages(1)), 'RAM_BLOCK_NOT_RESIZABLE', /fixed of 8192 bytes.*4096 bytes/],
    [() => list.resize(flexible, pages(5)), 'RAM_BLOCK_LENGTH_ABOVE_MAXIMUM', /flexible.*16384 bytes.*20480 bytes/],
    [() => list.resize(flexible, 1), 'RAM_BLOCK_LENGTH_INVALID', /Length 1 /],
    [() => list.resize(foreign, pages(1)), 'RAM_BLOCK_UNKNOWN', /foreign/],
    [() => list.remove(foreign), 'RAM_BLOCK_UNKNOWN', /foreign/],
    [() => list.add({ name: 'fixed', usedLength: pages(1) }), 'RAM_BLOCK_NAME_TAKEN', /fixed/],
    [() => list.add({ name: '', usedLength: pages(1) }), 'RAM_BLOCK_NAME_INVALID', /has 0/],
    [() => list.add({ name: 'ä'.repeat(128), usedLength: pages(1) }), 'RAM_BLOCK_NAME_INVALID', /has 256/],
    [() => list.add({ name: 'x', usedLength: 0 }), 'RAM_BLOCK_LENGTH_INVALID', /Length 0/],
    [() => list.add({ name: 'x', usedLength: 4097 }), 'RAM_BLOCK_LENGTH_INVALID', /Length 4097/],
    [() => list.add({ name: 'x', usedLength: pages(1), hostPageSize: 8192 }), 'RAM_BLOCK_LENGTH_INVALID', /8192/],
    [() => list.add({ name: 'x', usedLength: pages(3), hostPageSize: 6144 }), 'RAM_BLOCK_PAGE_SIZE_INVALID', /6144/],
    [() => list.add({ name: 'x', usedLength: pages(2), maxLength: pages(1) }), 'RAM_BLOCK_LENGTH_ABOVE_MAXIMUM', /x/],
    [() => list.add({ name: 'x', usedLength: 2 ** 43 }), 'FLAT_SPACE_EXHAUSTED', /x of 2147483648 pages/],
    [() => list.add({ name: 'x', usedLength: Number.NaN }), 'RAM_BLOCK_LENGTH_INVALID', /NaN/],
    [() => RamBlockList.attach(list.share()).remove(fixed), 'NOT_OWNER', /Only/],
  ];
  for (const [refused, code, message] of refusals) {
    assert.throws(refused, { name: 'RamferryError', code, message }, code);
  }
  assert.deepEqual(list.blocks, [flexible, fixed]);
  assert.equal(list.version, 2);
  assert.equal(list.add({ name: 'x', usedLength: pages(1) }).ramPage, 128);
});

test('a plug that fails half-way gives everything back', () => {
  // Room for the four bitmaps of a block of 8 GiB, 1 MiB, but not for another block of dirty memory for all clients.
  const bitmaps = BitmapMemory.create(2 ** 20 + 5 * 2 ** 18);
  const list = RamBlockList.create({ bitmaps, segmentBytes: SEGMENT_BYTES });
  list.add({ name: 'first', usedLength: pages(1) });
  assert.throws(() => list.add({ name: 'second', usedLength: pages(DIRTY_BLOCK_PAGES) }), {
    code: 'BITMAP_MEMORY_EXHAUSTED',
  });
  assert.equal(list.add({ name: 'third', usedLength: pages(100) }).ramPage, 64);
  list.remove(list.find('third')!);
  bitmaps.allocate(2 ** 23);
});

test('another thread takes over what changed and keeps the objects of what did not', () => {
  const list = small();
  const kept = list.add({ name: 'kept', usedLength: pages(300), maxLength: pages(400) });
  const gone = list.add({ name: 'reborn', usedLength: pages(10) });
  const first = list.share();
  const other = RamBlockList.attach(first);
  const [keptThere, goneThere] = [other.find('kept')!, other.find('reborn')!];
  keptThere.write(pages(299), Uint8Array.of(5));
  assert.deepEqual(kept.read(pages(299), 1), Uint8Array.of(5));

  const events: string[] = [];
  other.subscribe({
    added: (block) => events.push(`added ${block.name} ${other.version}`),
    removing: (block) => events.push(`removing ${block.name} ${other.version}`),
    resizing: (block, length) => events.push(`resizing ${block.name} from ${block.usedLength} to ${length}`),
  });
  list.resize(kept, pages(400));
  list.remove(gone);
  list.add({ name: 'reborn', usedLength: pages(10) });
  list.add({ name: 'dimm', usedLength: pages(1000) });
  other.update(list.share());
  assert.deepEqual(events, [
    'removing reborn 2',
    `resizing kept from ${pages(300)} to ${pages(400)}`,
    'added dimm 6',
    'added reborn 6',
  ]);
  assert.deepEqual(
    other.blocks.map(({ name, usedPages }) => [name, usedPages]),
    list.blocks.map(({ name, usedPages }) => [name, usedPages]),
  );
  assert.equal(other.find('kept'), keptThere);
  assert.notEqual(other.find('reborn'), goneThere);
  assert.equal(other.find('dimm')!.ramPage, list.find('dimm')!.ramPage);

  other.update(first);
  assert.equal(other.version, 6, 'an older description changes nothing');
});

// DM-25
test('nothing of a removed block is reused while another thread may still use it', () => {
  const list = small();
  const block = list.add({ name: 'dimm', usedLength: pages(10) });
  const straggler = RamBlockList.attach(list.share()).find('dimm')!;
  list.remove(block);
  const next = list.add({ name: 'next', usedLength: pages(10) });
  straggler.write(0, Uint8Array.of(1));
  assert.deepEqual(next.read(0, 1), Uint8Array.of(0));
  assert.notEqual(next.ramPage, straggler.ramPage);
  assert.notEqual(next.bitmaps.remote, straggler.bitmaps.remote);
  list.reclaim();
  const last = list.add({ name: 'last', usedLength: pages(10) });
  assert.deepEqual([last.ramPage, last.extents[0]!.address], [block.ramPage, block.extents[0]!.address]);
  assert.deepEqual(last.read(0, 1), Uint8Array.of(0));
});
