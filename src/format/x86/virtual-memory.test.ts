// One address space out of several: whose programs, whose kernel, and vCPUs that have none to give.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PAGING, TestTables } from '../../../test/page-tables.js';
import { clockDevice, pcStream } from '../../../test/pc-memory.js';
import { openSnapshot } from '../open-snapshot.js';
import { physicalMap } from '../physical-map.js';
import { PhysicalMemory } from '../physical-memory.js';
import { PageTables } from './page-tables.js';
import type { X86Registers } from './registers.js';
import { type VirtualMemory, virtualMemory } from './virtual-memory.js';

const RAM_BYTES = 16 * 2 ** 20;
const KERNEL = 0xffff_8880_0000_0000n;

const tablesAt = (root: number, ...pages: [virtual: bigint, physical: bigint][]): TestTables => {
  const tables = new TestTables(PAGING[4], root);
  for (const [virtual, physical] of pages) {
    tables.map(virtual, physical);
  }
  return tables;
};

const cpuWith = (cpu: number, cr3: number, more: Partial<X86Registers> = {}): X86Registers =>
  ({
    cpu,
    cr3: BigInt(cr3),
    cr4: 0x20n,
    mode: 'long',
    pagingLevels: 4,
    smm: false,
    nested: false,
    ...more,
  }) as X86Registers;

const memoryOf = (...all: TestTables[]): PhysicalMemory => {
  const bytes = pcStream({
    blocks: [{ name: 'pc.ram', usedLength: RAM_BYTES }],
    devices: [clockDevice(RAM_BYTES)],
    pages: all.flatMap((tables) => tables.pagesOf('pc.ram')),
  });
  const snapshot = openSnapshot((at, target) => target.set(bytes.subarray(at, at + target.length)), bytes.length);
  return new PhysicalMemory(snapshot, physicalMap(snapshot));
};

const shown = ({ mappings }: VirtualMemory): string[] =>
  mappings.map(({ virtual, physical, bytes }) => [virtual, physical, bytes].map((each) => each.toString(16)).join(' '));

test('the program is that of the first vCPU, the kernel that of all, the first one first', () => {
  const first = tablesAt(
    0x10_0000,
    [0x40_0000n, 0x1000n],
    [KERNEL + 0x2000n, 0xa_2000n],
    [KERNEL + 0x5000n, 0xa_5000n],
    [KERNEL + 0x9000n, 0xa_9000n],
  );
  const second = tablesAt(
    0x20_0000,
    [0x40_0000n, 0x7000n],
    [0x41_0000n, 0x8000n],
    ...Array.from({ length: 8 }, (_, page): [bigint, bigint] => [
      KERNEL + BigInt(page) * 4096n,
      0xb_0000n + BigInt(page) * 4096n,
    ]),
  );
  const third = tablesAt(0x30_0000, [KERNEL + 0x1_0000n, 0xc_0000n]);
  const memory = memoryOf(first, second, third);
  const cpus = [first, second, first].map(({ root }, index) => cpuWith(index, root));
  const expected = [
    '400000 1000 1000',
    'ffff888000000000 b0000 2000',
    'ffff888000002000 a2000 1000',
    'ffff888000003000 b3000 2000',
    'ffff888000005000 a5000 1000',
    'ffff888000006000 b6000 2000',
    'ffff888000009000 a9000 1000',
  ];
  const found = virtualMemory(memory, cpus);
  assert.deepEqual(shown(found), expected);
  assert.deepEqual([found.cpus, found.skippedCpus], [[0, 1, 2], []]);
  // The kernel's own tables, which no vCPU has in use.
  const kernel = new PageTables(memory, cpuWith(0, third.root));
  assert.deepEqual(shown(virtualMemory(memory, cpus, kernel)), [...expected, 'ffff888000010000 c0000 1000']);
});

test('vCPUs in firmware, in a guest of their own or without paging have no page tables of the guest', () => {
  const tables = tablesAt(0x10_0000, [0x40_0000n, 0x1000n]);
  const memory = memoryOf(tables);
  const others = [
    cpuWith(0, 0x5000, { pagingLevels: 0, mode: 'real' }),
    cpuWith(1, 0x5000, { smm: true }),
    cpuWith(2, 0x5000, { nested: true }),
  ];
  const found = virtualMemory(memory, [...others, cpuWith(3, tables.root)]);
  assert.deepEqual(shown(found), ['400000 1000 1000']);
  assert.deepEqual([found.cpus, found.skippedCpus], [[3], [0, 1, 2]]);
  assert.throws(() => virtualMemory(memory, others), {
    kind: 'failed',
    code: 'NOT_PAGED',
    message:
      'No vCPU has page tables of the guest: vCPU 0 ran without paging, in real mode, vCPU 1 ran in system management mode, vCPU 2 ran a guest of its own.',
  });
  assert.throws(() => virtualMemory(memory, []), { code: 'NOT_PAGED' });
});

test('what the vCPUs have in common is walked once, and the limits are those of all of them together', () => {
  const first = tablesAt(0x10_0000, [KERNEL, 0x1000n], [0x40_0000n, 0x2000n]);
  const kernelEntry = first.entry(first.root, 0x111);
  assert.notEqual(kernelEntry, 0n);
  const others = Array.from({ length: 20 }, (_, index) => {
    // A program of its own, which is not looked at, and the kernel that all have.
    const tables = tablesAt(0x20_0000 + index * 0x1_0000, [0x40_0000n, 0x3000n]);
    tables.put(tables.root, 0x111, kernelEntry);
    return tables;
  });
  const memory = memoryOf(first, ...others);
  const cpus = [first, ...others].map(({ root }, index) => cpuWith(index, root));
  const limits = { tables: 7 + others.length, mappings: 2 };
  const expected = ['400000 2000 1000', 'ffff888000000000 1000 1000'];
  assert.deepEqual(shown(virtualMemory(memory, cpus, undefined, limits)), expected);
  assert.throws(() => virtualMemory(memory, cpus, undefined, { ...limits, tables: limits.tables - 1 }), {
    code: 'PAGE_TABLES_ENDLESS',
    message: `The page table at 0x330000 and those of other vCPUs lead to more than ${limits.tables - 1} page tables, as tables do that refer to each other.`,
  });
  // One with a page that no other has.
  const own = tablesAt(0x60_0000, [KERNEL, 0x1000n], [KERNEL + 0x2000n, 0x5000n]);
  const more = memoryOf(first, ...others, own);
  const withOwn = [...cpus, cpuWith(99, own.root)];
  assert.deepEqual(shown(virtualMemory(more, withOwn)), [...expected, 'ffff888000002000 5000 1000']);
  assert.throws(() => virtualMemory(more, withOwn, undefined, { mappings: 3 }), { code: 'PAGE_TABLES_ENDLESS' });
});

test('the same tables in another paging mode, or at another address, are others', () => {
  const tables = tablesAt(0x10_0000, [KERNEL, 0x1000n], [KERNEL + 2n ** 39n, 0x2000n]);
  const twice = tablesAt(0x20_0000);
  twice.put(twice.root, 0x112, tables.entry(tables.root, 0x111));
  const memory = memoryOf(tables, twice);
  assert.deepEqual(shown(virtualMemory(memory, [cpuWith(0, twice.root), cpuWith(1, tables.root)])), [
    'ffff888000000000 1000 1000',
    'ffff890000000000 1000 1000',
  ]);
  // A directory of PAE, and a last table of 32 bits that covers the same addresses.
  const extended = new TestTables(PAGING[3], 0x30_0000);
  extended.map(0x8000_0000n, 0x3000n);
  extended.map(0x8020_0000n, 0x5000n);
  const short = new TestTables(PAGING[2], 0x40_0000);
  short.put(short.root, 512, extended.entry(extended.root, 2));
  const found = virtualMemory(memoryOf(extended, short), [
    cpuWith(0, extended.root, { pagingLevels: 3, mode: 'protected' }),
    cpuWith(1, short.root, { pagingLevels: 2, mode: 'protected' }),
  ]);
  // Its second entry, of eight bytes, is the third one of four.
  assert.deepEqual(shown(found), ['80000000 3000 1000', '80002000 303000 1000', '80200000 5000 1000']);
});

test('a mapping of 32 bits that goes on across the middle belongs to both halves', () => {
  const tablesOf = (root: number, ...pages: bigint[]): TestTables => {
    const tables = new TestTables(PAGING[2], root);
    for (const page of pages) {
      tables.map(page, page % 0x100_0000n);
    }
    return tables;
  };
  const first = tablesOf(0x10_0000, 0x1000n);
  const second = tablesOf(0x20_0000, 0x7fff_f000n);
  second.map(0x8000_0000n, 0x100_0000n);
  const cpus = [first, second].map(({ root }, cpu) => cpuWith(cpu, root, { pagingLevels: 2, mode: 'protected' }));
  assert.deepEqual(shown(virtualMemory(memoryOf(first, second), cpus)), ['1000 1000 1000', '80000000 1000000 1000']);
});

test('a vCPU that has mapped nothing is no error', () => {
  const empty = tablesAt(0x10_0000);
  assert.deepEqual(shown(virtualMemory(memoryOf(empty), [cpuWith(0, empty.root)])), []);
});
