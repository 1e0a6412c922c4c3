import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { RamBlockList } from '../../memory/index.js';
import { Mutex } from './mutex.js';
import {
  allocatorWords,
  MAX_ORDER,
  MAX_ORDER_PAGES,
  PageAllocator,
  type PageOptions,
  PageUse,
} from './page-allocator.js';

const PAGE = 4096;

/** An allocator of `dataPages` pages that begin at page `first` of a block; what it knows follows them. */
const setup = ({
  first = 0,
  dataPages = 5000,
  options = {},
}: {
  first?: number;
  dataPages?: number;
  options?: Partial<PageOptions>;
} = {}) => {
  const blocks = RamBlockList.create({ segmentBytes: 2 ** 20 });
  const pages = first + dataPages + Math.ceil(allocatorWords(dataPages) / 1024);
  const block = blocks.add({ name: 'ram', usedLength: pages * PAGE });
  const place = { block, firstDataPage: first, dataPages, allocatorPage: first + dataPages };
  const allocator = new PageAllocator(
    place,
    { initOnAlloc: false, pagePoison: false, ...options },
    new Mutex(new Int32Array(1), 0),
    undefined,
  );
  return { allocator, block, first, dataPages };
};

describe('page allocator', () => {
  test('hands out aligned blocks, each page once, and everything is one again when it is free', () => {
    fc.assert(
      fc.property(
        fc.record({ first: fc.nat(3000), dataPages: fc.integer({ min: 1, max: 5000 }), reserved: fc.nat(2000) }),
        fc.array(fc.record({ order: fc.nat(MAX_ORDER), free: fc.nat(100), hold: fc.boolean() }), { maxLength: 120 }),
        ({ first, dataPages, reserved }, steps) => {
          const { allocator } = setup({ first, dataPages });
          const kept = Math.min(reserved, dataPages);
          allocator.initialize(kept);
          const model = new Uint8Array(dataPages).fill(PageUse.free).fill(PageUse.inUse, 0, kept);
          const pristine = model.slice();
          const ordersAtFirst = Array.from({ length: MAX_ORDER + 1 }, (_, order) => allocator.freeBlocks(order));
          const live: { page: number; order: number }[] = [];
          let held = 0;
          for (const { order, free, hold } of steps) {
            const page = allocator.allocate(order);
            if (page === undefined) {
              // Then there really are none.
              for (let start = -first & (2 ** order - 1); start + 2 ** order <= dataPages; start += 2 ** order) {
                assert.ok(model.subarray(start, start + 2 ** order).some((use) => use !== PageUse.free));
              }
            } else {
              assert.equal((first + page) % 2 ** order, 0);
              const block = model.subarray(page, page + 2 ** order);
              assert.ok(block.every((use) => use === PageUse.free));
              if (hold && order === MAX_ORDER) {
                allocator.hold(page, false);
                block.fill(PageUse.held);
                held += 1;
              } else {
                block.fill(PageUse.inUse);
                live.push({ page, order });
              }
            }
            if (free % 3 === 0 && live.length > 0) {
              const [gone] = live.splice(free % live.length, 1);
              allocator.free(gone!.page, 2 ** gone!.order);
              model.fill(PageUse.free, gone!.page, gone!.page + 2 ** gone!.order);
            }
            assert.deepEqual(allocator.classify(), model);
          }
          for (const { page, order } of live) {
            allocator.free(page, 2 ** order);
          }
          assert.equal(allocator.heldBlocks, held);
          while (allocator.takeBack()) {}
          assert.deepEqual(allocator.classify(), pristine);
          assert.deepEqual(
            Array.from({ length: MAX_ORDER + 1 }, (_, order) => allocator.freeBlocks(order)),
            ordersAtFirst,
          );
        },
      ),
      { numRuns: 60 },
    );
  });

  test('takes the lowest block that fits, so that large ones stay whole', () => {
    const { allocator } = setup({ dataPages: 8 * MAX_ORDER_PAGES });
    allocator.initialize(0);
    const small = Array.from({ length: MAX_ORDER_PAGES }, () => allocator.allocate(0));
    assert.equal(small.at(-1), MAX_ORDER_PAGES - 1);
    assert.equal(allocator.freeBlocks(MAX_ORDER), 7);
    allocator.free(100, 1);
    assert.equal(allocator.allocate(0), 100);
  });

  // FH-29: what the device has not returned yet stays with the balloon
  test('a block in flight is not taken back, one that landed is, the one that was reported last first', () => {
    const { allocator } = setup({ dataPages: 4 * MAX_ORDER_PAGES });
    allocator.initialize(0);
    const pages = [0, 1, 2].map(() => allocator.allocate(MAX_ORDER)!);
    for (const page of pages) {
      allocator.hold(page, true);
    }
    assert.equal(allocator.takeBack(), false);
    allocator.landed(pages[0]!);
    allocator.landed(pages[1]!);
    assert.ok(allocator.takeBack());
    const uses = allocator.classify()!;
    assert.deepEqual(
      pages.map((page) => uses[page]),
      [PageUse.held, PageUse.free, PageUse.held],
    );
    allocator.landAll();
    while (allocator.takeBack()) {}
    assert.equal(allocator.freePages, 4 * MAX_ORDER_PAGES);
  });

  // FH-30
  test('poisons what becomes free, what the balloon gives back too, and looks when it is taken', () => {
    const { allocator, block, first } = setup({ first: 7, options: { pagePoison: true, initOnAlloc: true } });
    allocator.initialize(0);
    const bytes = (page: number) => new Set(block.read((first + page) * PAGE, PAGE));
    assert.deepEqual(bytes(4999), new Set([0xaa]));
    const page = allocator.allocate(MAX_ORDER)!;
    assert.deepEqual(bytes(page + 1023), new Set([0]));
    allocator.hold(page, false);
    assert.ok(allocator.takeBack());
    assert.deepEqual(bytes(page + 512), new Set([0xaa]));
    assert.equal(allocator.spoiled, 0);
    block.write((first + page + 5) * PAGE, Uint8Array.of(1));
    allocator.allocate(MAX_ORDER);
    assert.equal(allocator.spoiled, 1);
  });
});
