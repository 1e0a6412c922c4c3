// Translation and whole walks over page tables that tests write, in every paging mode; tables that are wrong or refer to each other.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { PAGING, type TestPaging, TestTables } from '../../../test/page-tables.js';
import { clockDevice, pcStream, type TestPc } from '../../../test/pc-memory.js';
import { openSnapshot } from '../open-snapshot.js';
import { physicalMap } from '../physical-map.js';
import { PhysicalMemory } from '../physical-memory.js';
import { PageTables, type PagingRegisters, type VirtualMapping } from './page-tables.js';

const MIB = 2 ** 20;
const RAM_BYTES = 16 * MIB;

const registersOf = (pagingLevels: PagingRegisters['pagingLevels'], cr3: bigint, cr4 = 0x6b0n): PagingRegisters => ({
  cpu: 0,
  cr3,
  cr4,
  mode: pagingLevels > 3 ? 'long' : 'protected',
  pagingLevels,
});

const memoryWith = (pages: TestPc['pages'] = [], more: Partial<TestPc> = {}): PhysicalMemory => {
  const bytes = pcStream({
    blocks: [{ name: 'pc.ram', usedLength: RAM_BYTES }],
    devices: [clockDevice(RAM_BYTES)],
    pages,
    ...more,
  });
  const snapshot = openSnapshot((at, target) => target.set(bytes.subarray(at, at + target.length)), bytes.length);
  return new PhysicalMemory(snapshot, physicalMap(snapshot));
};

const open = (tables: TestTables, cr4?: bigint): PageTables =>
  new PageTables(memoryWith(tables.pagesOf('pc.ram')), registersOf(tables.paging.levels, BigInt(tables.root), cr4));

const shown = (mappings: Iterable<VirtualMapping>): string[] =>
  [...mappings].map(
    ({ virtual, physical, bytes }) => `${virtual.toString(16)} ${physical.toString(16)} ${bytes.toString(16)}`,
  );

interface TestPage {
  readonly virtual: bigint;
  readonly physical: bigint;
  readonly bytes: bigint;
  readonly above: number;
}

/** Bits of an address in each mode, and sizes of pages by how many levels above the last their entries are. */
const modes: Record<2 | 3 | 4 | 5, { virtualBits: number; physicalBits: number; sizes: readonly bigint[] }> = {
  2: { virtualBits: 32, physicalBits: 32, sizes: [1n << 12n, 1n << 22n] },
  3: { virtualBits: 32, physicalBits: 52, sizes: [1n << 12n, 1n << 21n] },
  4: { virtualBits: 48, physicalBits: 52, sizes: [1n << 12n, 1n << 21n, 1n << 30n] },
  5: { virtualBits: 57, physicalBits: 52, sizes: [1n << 12n, 1n << 21n, 1n << 30n] },
};

const canonical = (levels: 2 | 3 | 4 | 5, address: bigint): bigint => {
  const { virtualBits } = modes[levels];
  return virtualBits === 32 ? address : BigInt.asUintN(64, BigInt.asIntN(virtualBits, address));
};

/** Pages here and there, near each other often enough to be neighbours, none within another. */
const testPages = (levels: 2 | 3 | 4 | 5): fc.Arbitrary<TestPage[]> => {
  const { virtualBits, physicalBits, sizes } = modes[levels];
  const bases = [
    0n,
    (1n << BigInt(virtualBits - 1)) - (1n << 22n),
    (1n << BigInt(virtualBits)) - (1n << 24n),
    (1n << 30n) - (1n << 22n),
  ];
  const one = fc
    .tuple(
      fc.constantFrom(...bases),
      fc.nat(2047),
      fc.nat(sizes.length - 1),
      fc.bigInt(0n, (1n << BigInt(physicalBits)) - 1n),
      fc.boolean(),
    )
    .map(([base, page, above, physical, isNear]) => {
      const bytes = sizes[above]!;
      const align = (value: bigint): bigint => value - (value % bytes);
      const virtual = align(base + BigInt(page) * 4096n);
      // Half of them where neighbours of each other are neighbours in memory, too.
      return { virtual, physical: align(isNear ? virtual % (1n << 31n) : physical), bytes, above };
    });
  return fc.array(one, { maxLength: 60 }).map((pages) => {
    const kept: TestPage[] = [];
    for (const page of pages) {
      const overlaps = (other: TestPage): boolean =>
        page.virtual < other.virtual + other.bytes && other.virtual < page.virtual + page.bytes;
      if (!kept.some(overlaps)) {
        kept.push(page);
      }
    }
    return kept.sort((a, b) => (a.virtual < b.virtual ? -1 : 1));
  });
};

/** The runs that pages in order add up to; none goes on where addresses jump. */
const merged = (levels: 2 | 3 | 4 | 5, pages: readonly TestPage[]): string[] => {
  const runs: { virtual: bigint; physical: bigint; bytes: bigint }[] = [];
  const { virtualBits } = modes[levels];
  for (const { virtual, physical, bytes } of pages) {
    const last = runs.at(-1);
    const jumps = virtualBits > 32 && virtual === 1n << BigInt(virtualBits - 1);
    if (
      last !== undefined &&
      last.virtual + last.bytes === virtual &&
      last.physical + last.bytes === physical &&
      !jumps
    ) {
      last.bytes += bytes;
    } else {
      runs.push({ virtual, physical, bytes });
    }
  }
  return runs.map(
    ({ virtual, physical, bytes }) =>
      `${canonical(levels, virtual).toString(16)} ${physical.toString(16)} ${bytes.toString(16)}`,
  );
};

describe('what is mapped is found, one address at a time and all of it', () => {
  for (const levels of [2, 3, 4, 5] as const) {
    test(`${levels} levels`, () => {
      fc.assert(
        fc.property(testPages(levels), (pages) => {
          const tables = new TestTables(PAGING[levels], 0x10_0000);
          for (const { virtual, physical, above } of pages) {
            // Bits that say what may be done with a page are of no concern: user, dirty, a key, no-execute, and the PAT's, which
            // in the entry of a large page is in the midst of the address.
            const more = (levels === 2 ? 0x66n : 0xfff0_0000_0000_0066n) | (above > 0 ? 0x1000n : 0n);
            tables.map(virtual, physical, above, more);
          }
          const paged = open(tables);
          for (const { virtual, physical, bytes } of pages) {
            for (const inside of [0n, 0x123n, bytes - 1n]) {
              assert.deepEqual(paged.translate(canonical(levels, virtual + inside)), {
                physical: Number(physical + inside),
                pageBytes: Number(bytes),
              });
            }
            const behind = virtual + bytes;
            if (behind >> BigInt(modes[levels].virtualBits) === 0n && !pages.some((page) => page.virtual === behind)) {
              assert.equal(paged.tryTranslate(canonical(levels, behind)), undefined);
            }
          }
          assert.deepEqual(shown(paged.mappings()), merged(levels, pages));
        }),
        { numRuns: 60 },
      );
    });
  }
});

test('an address that is not mapped, and one that cannot be, are errors of their own', () => {
  const tables = new TestTables(PAGING[4], 0x10_0000);
  tables.map(0x40_0000n, 0x5000n);
  const paged = open(tables);
  assert.throws(() => paged.translate(0x40_1000n), {
    kind: 'failed',
    code: 'NOT_MAPPED',
    message: 'Virtual address 0x401000 is not mapped.',
  });
  for (const address of [0x8000_0000_0000n, 0xffff_7fff_ffff_ffffn, 1n << 64n, -1n]) {
    assert.throws(() => paged.translate(address), { kind: 'failed', code: 'NOT_CANONICAL' }, `${address}`);
    assert.equal(paged.tryTranslate(address), undefined);
  }
  assert.throws(() => open(new TestTables(PAGING[3], 0x10_0000)).translate(1n << 32n), { code: 'NOT_CANONICAL' });
});

test('CR3 is taken without the bits that are no address', () => {
  for (const [levels, bits] of [
    [4, 0x8000_0000_0000_0fffn],
    [3, 0x1fn],
    [2, 0xfffn],
  ] as const) {
    const tables = new TestTables(PAGING[levels], 0x10_0000);
    tables.map(0x40_0000n, 0x5000n);
    const paged = new PageTables(memoryWith(tables.pagesOf('pc.ram')), registersOf(levels, BigInt(tables.root) | bits));
    assert.equal(paged.root, tables.root);
    assert.equal(paged.translate(0x40_0008n).physical, 0x5008);
  }
});

test('the first table of PAE is part of a page', () => {
  const tables = new TestTables(PAGING[3], 0x10_0000);
  tables.map(0x40_0000n, 0x5000n);
  tables.put(tables.root, 0x7e0 / 8, tables.entry(tables.root, 0));
  tables.put(tables.root, 0, 0n);
  const paged = new PageTables(memoryWith(tables.pagesOf('pc.ram')), registersOf(3, 0x10_07e0n));
  assert.equal(paged.root, 0x10_07e0);
  assert.equal(paged.translate(0x40_0008n).physical, 0x5008);
  assert.deepEqual(shown(paged.mappings()), ['400000 5000 1000']);
});

test('what adjoins across the end of the lower half is not one: addresses jump there', () => {
  const tables = new TestTables(PAGING[4], 0x10_0000);
  tables.map(0x7fff_ffff_f000n, 0x5000n);
  tables.map(0x8000_0000_0000n, 0x6000n);
  tables.map(0x8000_0000_1000n, 0x7000n);
  assert.deepEqual(shown(open(tables).mappings()), ['7ffffffff000 5000 1000', 'ffff800000000000 6000 2000']);
});

test('4 MiB pages can lie above 4 GiB, and are there only with CR4.PSE', () => {
  const tables = new TestTables(PAGING[2], 0x10_0000);
  tables.put(tables.root, 1, 0x00c0_0000n | (0x12n << 13n) | 0x81n);
  assert.equal(open(tables).translate(0x41_2345n).physical, 0x12_00c1_2345);
  // Without it the entry is a table, at an address where there is no memory.
  assert.equal(open(tables, 0n).tryTranslate(0x41_2345n), undefined);
});

test('a vCPU without paging is not taken for one with', () => {
  assert.throws(() => new PageTables(memoryWith(), { ...registersOf(0, 0n), cpu: 3, mode: 'real' }), {
    kind: 'failed',
    code: 'NOT_PAGED',
    message:
      'vCPU 3 ran without paging, in real mode: it has no page tables, and its addresses are guest-physical ones.',
  });
});

test('a table where the guest has no memory holds nothing; one that the file leaves out is an error', () => {
  const tables = new TestTables(PAGING[4], 0x10_0000);
  tables.map(0x40_0000n, 0x5000n);
  tables.put(tables.root, 1, 0xfee0_0001n);
  const paged = open(tables);
  assert.deepEqual(shown(paged.mappings()), ['400000 5000 1000']);
  assert.equal(paged.tryTranslate(1n << 39n), undefined);

  const leftOut = new PageTables(
    memoryWith([], {
      blocks: [{ name: 'mem', usedLength: RAM_BYTES, address: 0 }],
      capabilities: ['x-ignore-shared'],
    }),
    registersOf(4, 0x1000n),
  );
  assert.throws(() => [...leftOut.mappings()], { code: 'MEMORY_ELSEWHERE' });
  assert.throws(() => leftOut.translate(0n), { code: 'MEMORY_ELSEWHERE' });
});

describe('tables that refer to each other', () => {
  test('a table that maps all tables, as Windows has it, is walked like any other', () => {
    const tables = new TestTables(PAGING[4], 0x10_0000);
    tables.map(0x40_0000n, 0x5000n);
    tables.put(tables.root, 0x1ed, BigInt(tables.root) | 1n);
    assert.deepEqual(shown(open(tables).mappings()), [
      '400000 5000 1000',
      'fffff68000002000 103000 1000', // the only last table
      'fffff6fb40000000 102000 1000',
      'fffff6fb7da00000 101000 1000',
      'fffff6fb7dbed000 100000 1000',
    ]);
  });

  const everyEntry = (paging: TestPaging, entry: (index: number) => bigint): TestTables => {
    const tables = new TestTables(paging, 0x10_0000);
    for (let index = 0; index < 2 ** paging.indexBits.at(-1)!; index += 1) {
      tables.put(tables.root, index, entry(index));
    }
    return tables;
  };

  test('without end, they are an error, whichever there is more of', () => {
    const endless = open(everyEntry(PAGING[5], () => 0x10_0001n));
    let runs = 0;
    assert.throws(
      () => {
        for (const _ of endless.mappings({ mappings: 100_000 })) {
          runs += 1;
        }
      },
      {
        kind: 'failed',
        code: 'PAGE_TABLES_ENDLESS',
        message:
          'The page table at 0x100000 leads to more than 100000 pieces of memory, as tables do that refer to each other.',
      },
    );
    assert.equal(runs, 100_000);
    // There are 2 ** 36 ways to a table of the last level, which maps nothing.
    const tables = new TestTables(PAGING[5], 0x10_0000);
    tables.map(0n, 0n);
    for (let level = 0; level < 4; level += 1) {
      for (let index = 0; index < 512; index += 1) {
        tables.put(0x10_0000 + level * 4096, index, BigInt(0x10_1001 + level * 4096));
      }
    }
    tables.put(0x10_4000, 0, 0n);
    assert.throws(() => [...open(tables).mappings({ tables: 20_000 })], {
      code: 'PAGE_TABLES_ENDLESS',
      message:
        'The page table at 0x100000 leads to more than 20000 page tables, as tables do that refer to each other.',
    });
  });

  test('as many as are allowed are no error', () => {
    const tables = new TestTables(PAGING[4], 0x10_0000);
    tables.map(0x40_0000n, 0x5000n);
    tables.map(0x40_2000n, 0x5000n);
    assert.equal([...open(tables).mappings({ tables: 4, mappings: 2 })].length, 2);
    assert.throws(() => [...open(tables).mappings({ tables: 3 })], { code: 'PAGE_TABLES_ENDLESS' });
    assert.throws(() => [...open(tables).mappings({ mappings: 1 })], { code: 'PAGE_TABLES_ENDLESS' });
  });

  test('whatever is in the tables, a walk ends, in the order of addresses', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...Object.values(PAGING)),
        fc.array(fc.tuple(fc.nat(7), fc.nat(1023), fc.bigInt(0n, (1n << 64n) - 1n), fc.nat(9)), { maxLength: 100 }),
        (paging, entries) => {
          const tables = new TestTables(paging, 0x10_0000);
          const content = new Uint8Array(8 * 4096);
          const view = new DataView(content.buffer);
          for (const [table, index, entry, target] of entries) {
            // Mostly to one of the eight tables.
            const value = target < 8 ? (entry & 0xfffn) | 1n | BigInt(0x10_0000 + target * 4096) : entry;
            if (paging.entryBytes === 8) {
              view.setBigUint64(table * 4096 + (index % 512) * 8, value, true);
            } else {
              view.setUint32(table * 4096 + index * 4, Number(value & 0xffff_ffffn), true);
            }
          }
          const paged = new PageTables(
            memoryWith([{ block: 'pc.ram', offset: 0x10_0000, content }]),
            registersOf(tables.paging.levels, 0x10_0000n),
          );
          let last = -1n;
          try {
            for (const { virtual, bytes, physical } of paged.mappings({ tables: 1000, mappings: 20_000 })) {
              assert.ok(virtual > last && bytes > 0 && physical >= 0 && physical + bytes <= 2 ** 53);
              assert.equal(paged.translate(virtual).physical, physical);
              last = virtual + BigInt(bytes) - 1n;
              assert.equal(paged.translate(last).physical, physical + bytes - 1);
            }
          } catch (error) {
            assert.equal((error as { code?: string }).code, 'PAGE_TABLES_ENDLESS', String(error));
          }
        },
      ),
      { numRuns: 100 },
    );
  });
});
