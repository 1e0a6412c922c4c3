import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { allocateStoreBarrier, attachStoreBarrier, StoreBarrierLog } from '../../dirty-log/index.js';
import { type RamBlock, RamBlockList } from '../../memory/index.js';
import { digestBlocks } from '../digest-node.js';
import { addBlocks, plugBlock, writableBlocks } from './machine.js';
import { Mutex } from './mutex.js';
import { PageUse } from './page-allocator.js';
import { runStep } from './programs.js';
import { Region } from './region.js';
import {
  decodeRegisters,
  encodeRegisters,
  REGISTER_COUNT,
  Register,
  WorkloadKind,
  WorkloadOption,
} from './registers.js';
import { usesOf, verifyMemory } from './verify.js';
import { WorkloadWriter } from './writer.js';

const kinds = Object.keys(WorkloadKind) as WorkloadKind[];
const PAGE = 4096;

interface SetupOptions {
  readonly kind: WorkloadKind;
  readonly seed?: number;
  readonly pages?: number;
  readonly workingFraction?: number;
  readonly segmentBytes?: number;
  readonly options?: readonly (keyof typeof WorkloadOption)[];
}

/** A machine with one writer on this thread, and its dirty log. */
const setup = ({
  kind,
  seed = 1,
  pages = 600,
  workingFraction = 1,
  segmentBytes = 2 ** 20,
  options = [],
}: SetupOptions) => {
  const blocks = RamBlockList.create({ segmentBytes });
  addBlocks(blocks, pages * PAGE);
  const registers = new Float64Array(REGISTER_COUNT);
  registers[Register.kind] = WorkloadKind[kind];
  registers[Register.random] = seed;
  registers[Register.workingFraction] = workingFraction;
  registers[Register.options] = options.reduce((sum, option) => sum + WorkloadOption[option], 0);
  const shared = allocateStoreBarrier('unconditional', 1);
  const barrier = attachStoreBarrier(shared, 0, blocks.bitmaps);
  const log = new StoreBarrierLog(shared, blocks, { wait: () => barrier.safepoint() });
  log.start();
  barrier.unpark();
  const writer = new WorkloadWriter({
    writer: 0,
    writerCount: 1,
    registers,
    barrier,
    mutex: new Mutex(new Int32Array(1), 0),
  });
  writer.takeIn(writableBlocks(blocks));
  return { blocks, registers, writer, log };
};

const run = (writer: WorkloadWriter, steps: number): void => {
  for (let i = 0; i < steps; i += 1) {
    runStep(writer);
  }
};

const pagesOf = (blocks: RamBlockList): Map<string, Buffer> =>
  new Map(
    blocks.blocks.flatMap((block) =>
      Array.from({ length: block.usedPages }, (_, page) => [
        `${block.name} ${page}`,
        Buffer.from(block.read(page * PAGE, PAGE)),
      ]),
    ),
  );

describe('workload programs', () => {
  for (const kind of kinds) {
    test(`${kind}: all memory verifies after any number of steps`, () => {
      const { blocks, registers, writer } = setup({ kind });
      for (let i = 0; i < 40; i += 1) {
        run(writer, 77);
        writer.checkNext(50);
        const { bad, staleTables } = verifyMemory(blocks, [registers]);
        assert.deepEqual([bad, staleTables, registers[Register.bad]], [0, [], 0]);
      }
      assert.ok(registers[Register.written]! > 500);
      assert.ok(kind === 'fillfree' || registers[Register.checked]! > 0);
    });

    // TS-1: whatever a step changes is marked when it returns
    test(`${kind}: every page that changed is marked`, () => {
      const { blocks, writer, log } = setup({ kind });
      for (const steps of [1, 100, 700, 500]) {
        const before = pagesOf(blocks);
        log.start();
        run(writer, steps);
        const { kernels } = blocks.bitmaps;
        let changed = 0;
        for (const block of blocks.blocks) {
          for (let page = 0; page < block.usedPages; page += 1) {
            if (!before.get(`${block.name} ${page}`)!.equals(block.read(page * PAGE, PAGE))) {
              changed += 1;
              assert.equal(kernels.countRange(block.bitmaps.remote, page, 1), 1, `${block.name} ${page}`);
            }
          }
        }
        assert.ok(changed > 0 || steps === 500 || kind === 'build');
      }
    });

    test(`${kind}: the same seed gives the same memory, another seed another`, () => {
      const digests = [1, 1, 2].map((seed) => {
        const { blocks, writer } = setup({ kind, seed, workingFraction: 0.5 });
        run(writer, 1500);
        return JSON.stringify(digestBlocks(blocks));
      });
      assert.equal(digests[0], digests[1]);
      assert.equal(digests[1] !== digests[2], kind === 'churn', 'only churn writes at random places');
    });

    test(`${kind}: continues elsewhere between any two steps`, () => {
      fc.assert(
        fc.property(fc.nat(1500), (steps) => {
          const source = setup({ kind });
          run(source.writer, steps);
          // Other segments, so that every address differs.
          const destination = setup({ kind, segmentBytes: 2 ** 18 });
          for (const block of source.blocks.blocks) {
            destination.blocks.find(block.name)!.write(0, block.read(0, block.usedLength));
          }
          decodeRegisters(encodeRegisters(source.registers), destination.registers);
          run(source.writer, 500);
          run(destination.writer, 500);
          assert.deepEqual(destination.registers, source.registers);
          assert.deepEqual(digestBlocks(destination.blocks), digestBlocks(source.blocks));
          assert.equal(verifyMemory(destination.blocks, [destination.registers]).bad, 0);
        }),
        { numRuns: 8 },
      );
    });
  }

  test('idle fills its memory and then leaves it alone', () => {
    const { blocks, registers, writer } = setup({ kind: 'idle', workingFraction: 0.5 });
    while (runStep(writer)) {}
    assert.equal(verifyMemory(blocks, [registers]).checked, writer.pageCount + 32, 'and the pages of the ROM');
    assert.equal(registers[Register.ready], 1);
    assert.equal(registers[Register.written], writer.pageCount);
    run(writer, 100);
    assert.equal(registers[Register.written], writer.pageCount);
  });

  test('fillfree leaves garbage in free pages, of plugged memory too', () => {
    const { blocks, registers, writer } = setup({ kind: 'fillfree' });
    while (runStep(writer)) {}
    plugBlock(blocks, 64 * PAGE);
    writer.takeIn(writableBlocks(blocks));
    while (runStep(writer)) {}
    const block = blocks.find('dimm0')!;
    assert.equal(block.extents[0]!.segment.kernels.isZeroPage(block.extents[0]!.address + 5 * PAGE), 0);
    assert.equal(registers[Register.written], writer.pageCount);
    assert.equal(registers[Register.generationSum], 0);
    assert.equal(verifyMemory(blocks, [registers]).checked, 32, 'only the pages of the ROM are live');
  });

  test('a build frees what its compilers used and keeps a file cache, which shrinks', () => {
    const { blocks, registers, writer } = setup({ kind: 'build', pages: 18000 });
    const cacheMax = writer.pageCount / 4;
    let [smallest, largest] = [Number.POSITIVE_INFINITY, 0];
    while (registers[Register.jobNumber]! < 60) {
      const before = registers[Register.jobNumber]!;
      runStep(writer);
      if (registers[Register.jobNumber]! > before && before >= 30) {
        const cached = writer.lists!.cacheLength * 8;
        assert.equal(registers[Register.pagesInUse]! - cached, 2, 'and the pages of its lists');
        [smallest, largest] = [Math.min(smallest, cached), Math.max(largest, cached)];
      }
    }
    assert.ok(largest <= cacheMax && largest > 0.9 * cacheMax, `${largest} of ${cacheMax}`);
    assert.ok(smallest < 0.7 * cacheMax, `${smallest} of ${cacheMax}`);
    const { bad, staleTables } = verifyMemory(blocks, [registers]);
    assert.deepEqual([bad, staleTables], [0, []]);
  });

  test('a build makes do with what there is: its file cache goes first, then its compilers get less', () => {
    const { blocks, registers, writer } = setup({ kind: 'build', pages: 2000 });
    while (registers[Register.jobNumber]! < 20) {
      runStep(writer);
    }
    assert.ok(registers[Register.written]! > 20 * 1000);
    const { bad, staleTables } = verifyMemory(blocks, [registers]);
    assert.deepEqual([bad, staleTables, registers[Register.bad]], [0, [], 0]);
  });

  for (const kind of ['idle', 'build'] as const) {
    test(`${kind}: free memory is full of garbage if it is to be`, () => {
      const { blocks, registers, writer } = setup({ kind, pages: 3000, workingFraction: 0.5, options: ['garbage'] });
      while (registers[Register.ready] === 0) {
        runStep(writer);
      }
      const block = blocks.find('pc.ram')!;
      const region = new Region(block, 0, 1);
      const uses = usesOf(region)!;
      assert.ok(uses.filter((use) => use === PageUse.free).length >= region.dataPages / 2);
      for (const [index, use] of uses.entries()) {
        if (use === PageUse.free) {
          assert.ok(
            block.read(region.dataPage(index) * PAGE, 8).some((byte) => byte !== 0),
            `page ${index}`,
          );
        }
      }
    });
  }

  test('pages are zero when they are taken, if they are to be', () => {
    const { blocks, registers, writer } = setup({ kind: 'build', pages: 3000, options: ['garbage', 'initOnAlloc'] });
    while (registers[Register.ready] === 0) {
      runStep(writer);
    }
    const frame = writer.allocate(5)!;
    assert.deepEqual([verifyMemory(blocks, [registers]).bad, writer.check(frame) > 0], [0, true]);
    writer.scribble(frame + 3);
    assert.equal(verifyMemory(blocks, [registers]).bad, 1, 'and the verifier looks');
  });

  // FH-30
  test('free pages are poisoned, and a free page that is not is noticed', () => {
    const { blocks, registers, writer } = setup({ kind: 'build', pages: 3000, options: ['garbage', 'pagePoison'] });
    run(writer, 5000);
    assert.deepEqual([verifyMemory(blocks, [registers]).bad, registers[Register.bad]], [0, 0]);
    const block = blocks.find('pc.ram')!;
    const region = new Region(block, 0, 1);
    // Of a block that a compiler can take.
    const index = usesOf(region)!.findIndex(
      (_, start, uses) =>
        region.dataPage(start) % 16 === 0 && uses.subarray(start, start + 16).every((use) => use === PageUse.free),
    );
    const free = region.dataPage(index);
    block.write(free * PAGE + 4095, Uint8Array.of(0));
    assert.deepEqual(
      verifyMemory(blocks, [registers]).badPages.map(({ page, expectedGeneration }) => [page, expectedGeneration]),
      [[free, 0]],
    );
    run(writer, 20_000);
    assert.equal(registers[Register.bad], 1, 'when it is taken');
  });
});

describe('negative controls: the verifier sees', () => {
  const base = () => {
    const guest = setup({ kind: 'churn' });
    run(guest.writer, 2000);
    const block = guest.blocks.find('pc.ram')!;
    return { ...guest, block };
  };
  const only = ({ blocks, registers }: ReturnType<typeof base>) => {
    const { bad, badPages } = verifyMemory(blocks, [registers]);
    return [bad, badPages.map(({ block, page, found }) => `${block} ${page}: ${found}`)];
  };
  const copy = (block: RamBlock, from: number, to: number): void => {
    block.write(to * PAGE, block.read(from * PAGE, PAGE));
  };

  test('nothing in a good memory', () => {
    assert.deepEqual(only(base()), [0, []]);
  });

  test('a flipped byte anywhere in a page', () => {
    for (const offset of [8, 100, 4095]) {
      const guest = base();
      const at = 300 * PAGE + offset;
      guest.block.write(
        at,
        guest.block.read(at, 1).map((byte) => byte ^ 1),
      );
      const [bad, found] = only(guest) as [number, string[]];
      assert.equal(bad, 1);
      assert.match(found[0]!, /^pc\.ram 300: .* up to byte \d+, then something else$/);
    }
  });

  test('a lost page', () => {
    const guest = base();
    guest.block.write(300 * PAGE, new Uint8Array(PAGE));
    assert.deepEqual(only(guest), [1, ['pc.ram 300: zeros']]);
  });

  test('a stale page, and a torn one', () => {
    const guest = base();
    const region = new Region(guest.block, 0, 1);
    const index = 200;
    const page = region.dataPage(index);
    const old = guest.block.read(page * PAGE, PAGE);
    const generation = region.generation(index);
    guest.writer.write(index);
    const fresh = guest.block.read(page * PAGE, PAGE);
    guest.block.write(page * PAGE, old);
    assert.deepEqual(only(guest), [1, [`pc.ram ${page}: its own generation ${generation}`]]);
    guest.block.write(page * PAGE, fresh.subarray(0, 1024));
    assert.deepEqual(only(guest), [
      1,
      [`pc.ram ${page}: its own generation ${region.generation(index)} up to byte 1024, then something else`],
    ]);
  });

  test('two pages that changed places', () => {
    const guest = base();
    const page = guest.block.read(300 * PAGE, PAGE);
    copy(guest.block, 301, 300);
    guest.block.write(301 * PAGE, page);
    const [bad, found] = only(guest) as [number, string[]];
    assert.equal(bad, 2);
    assert.match(found[0]!, /^pc\.ram 300: page 301 of pc\.ram, generation \d+$/);
    assert.match(found[1]!, /^pc\.ram 301: page 300 of pc\.ram, generation \d+$/);
  });

  test('a page of another block, and noise', () => {
    const guest = base();
    const video = guest.blocks.find('vga.vram')!;
    video.write(100 * PAGE, guest.block.read(300 * PAGE, PAGE));
    video.write(
      101 * PAGE,
      new Uint8Array(PAGE).map((_, i) => (i * i * 7) >>> 3),
    );
    const [bad, found] = only(guest) as [number, string[]];
    assert.equal(bad, 2);
    assert.match(found[0]!, /^vga\.vram 100: page 300 of pc\.ram/);
    assert.match(found[1]!, /^vga\.vram 101: no pattern$/);
  });

  test('a changed ROM', () => {
    const guest = base();
    guest.blocks.find('pc.rom')!.write(31 * PAGE + 9, Uint8Array.of(1));
    assert.match((only(guest)[1] as string[])[0]!, /^pc\.rom 31: /);
  });

  test('pages that went back in time together with their table', () => {
    const guest = base();
    const [table, page] = [guest.block.read(0, PAGE), guest.block.read(300 * PAGE, PAGE)];
    guest.writer.write(299);
    assert.deepEqual(verifyMemory(guest.blocks, [guest.registers]).staleTables, []);
    guest.block.write(0, table);
    guest.block.write(300 * PAGE, page);
    const { bad, staleTables } = verifyMemory(guest.blocks, [guest.registers]);
    assert.deepEqual([bad, staleTables], [0, [0]]);
  });

  test('an allocator that went back in time', () => {
    const guest = setup({ kind: 'build', pages: 3000 });
    run(guest.writer, 2000);
    const block = guest.blocks.find('pc.ram')!;
    const region = new Region(block, 0, 1);
    const old = block.read(region.allocatorPage * PAGE, PAGE);
    guest.writer.allocate(0);
    assert.deepEqual(verifyMemory(guest.blocks, [guest.registers]).staleTables, []);
    block.write(region.allocatorPage * PAGE, old);
    assert.deepEqual(verifyMemory(guest.blocks, [guest.registers]).staleTables, [0]);
  });

  test('and the writer itself, before it rewrites a page and in its rounds', () => {
    const guest = base();
    guest.block.write(300 * PAGE, new Uint8Array(PAGE));
    guest.writer.write(299);
    assert.equal(guest.registers[Register.bad], 1);
    guest.block.write(301 * PAGE, new Uint8Array(PAGE));
    guest.writer.checkNext(guest.writer.pageCount);
    assert.equal(guest.registers[Register.bad], 2);
  });
});

test('writers share a block without overlap, each with room for its table', () => {
  const blocks = RamBlockList.create({ segmentBytes: 2 ** 20 });
  let number = 0;
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 5000 }), fc.integer({ min: 1, max: 9 }), (pages, writers) => {
      const block = blocks.add({ name: `b${(number += 1)}`, usedLength: pages * PAGE });
      const owners = new Int32Array(pages);
      for (let writer = 0; writer < writers; writer += 1) {
        const region = new Region(block, writer, writers);
        const own = new Set<number>();
        for (let index = 0; index < region.dataPages; index += 1) {
          own.add(region.dataPage(index)).add(region.tablePage(index));
        }
        for (let page = 0; page < region.allocatorPages; page += 1) {
          own.add(region.allocatorPage + page);
        }
        assert.ok(own.size >= region.dataPages);
        for (const page of own) {
          owners[page]! += 1;
        }
      }
      assert.ok(owners.every((count) => count <= 1));
      assert.ok(owners.filter((count) => count === 0).length <= writers);
      blocks.remove(block);
    }),
    { numRuns: 50 },
  );
});

test('state that no writer saved is refused', () => {
  const registers = new Float64Array(REGISTER_COUNT);
  registers[Register.workingFraction] = 0.5;
  registers[Register.stepsLeft] = Number.POSITIVE_INFINITY;
  const good = encodeRegisters(registers);
  decodeRegisters(good, new Float64Array(REGISTER_COUNT));
  const refuse = (body: Uint8Array): void => {
    assert.throws(() => decodeRegisters(body, new Float64Array(REGISTER_COUNT)), { code: 'WORKLOAD_STATE_INVALID' });
  };
  refuse(good.subarray(1));
  refuse(new Uint8Array(good.length + 8));
  for (const [register, value] of [
    [Register.position, -1],
    [Register.position, 0.5],
    [Register.position, Number.NaN],
    [Register.position, Number.POSITIVE_INFINITY],
    [Register.workingFraction, 0],
    [Register.workingFraction, 1.5],
  ] as const) {
    const body = good.slice();
    new DataView(body.buffer).setFloat64(register * 8, value);
    refuse(body);
  }
});
