// Where the blocks of invented PCs lie; those of real ones are in test/interop/addresses.test.ts.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { acpiTables, clockDevice, pcStream, type TestAffinity, type TestPc } from '../../test/pc-memory.js';
import { virtioMemEarlyBody } from '../../test/streams.js';
import { openSnapshot } from './open-snapshot.js';
import { type BlockPlaces, type PhysicalMap, physicalMap } from './physical-map.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;

const mapOf = (pc: TestPc, places: BlockPlaces = new Map()): PhysicalMap => mapOfStream(pcStream(pc), places);

const mapOfStream = (bytes: Uint8Array, places: BlockPlaces = new Map()): PhysicalMap => {
  const readAt = (position: number, target: Uint8Array): void =>
    target.set(bytes.subarray(position, position + target.length));
  return physicalMap(openSnapshot(readAt, bytes.length), places);
};

const ram = (name: string, usedLength: number): TestPc['blocks'][number] => ({ name, usedLength });

/** Ranges as [address, block, offset, bytes]. */
const rangesOf = ({ ranges }: PhysicalMap): number[][] =>
  ranges.map(({ address, block, offset, bytes }) => [address, block, offset, bytes]);

const one = (machine: string, bytes: number, low: number, high: number, name = 'pc.ram'): number[][] =>
  rangesOf(mapOf({ machine, blocks: [ram(name, bytes)], devices: [clockDevice(low, high)] }));

test('RAM is split where the saved clock says, whatever the machine would do by default', () => {
  for (const machine of ['pc', 'pc-i440fx-10.0', 'q35', 'pc-q35-7.2', 'isapc', 'microvm']) {
    assert.deepEqual(one(machine, 8 * MIB, 8 * MIB, 0), [[0, 0, 0, 8 * MIB]]);
    assert.deepEqual(one(machine, 3500 * MIB, 3500 * MIB, 0), [[0, 0, 0, 3500 * MIB]]);
    for (const low of [512 * MIB, 1 * GIB, 2 * GIB, 3 * GIB, 3.5 * GIB]) {
      assert.deepEqual(one(machine, 64 * GIB, low, 64 * GIB - low), [
        [0, 0, 0, low],
        [4 * GIB, 0, low, 64 * GIB - low],
      ]);
    }
  }
  assert.deepEqual(one('microvm', MIB * 64, MIB * 64, 0, 'microvm.ram'), [[0, 0, 0, 64 * MIB]]);
  assert.deepEqual(one('q35', MIB * 64, MIB * 64, 0, 'mem'), [[0, 0, 0, 64 * MIB]]);
  assert.deepEqual(one('q35', MIB * 64, MIB * 64, 0, '/objects/mem'), [[0, 0, 0, 64 * MIB]]);
});

test('a clock that nothing describes has the same bytes; a microvm may have none', () => {
  const blocks = [ram('pc.ram', 4 * GIB)];
  const expected = [
    [0, 0, 0, 3 * GIB],
    [4 * GIB, 0, 3 * GIB, GIB],
  ];
  assert.deepEqual(rangesOf(mapOf({ blocks, devices: [clockDevice(3 * GIB, GIB)], description: '' })), expected);
  assert.deepEqual(
    rangesOf(mapOf({ machine: 'microvm', blocks: [ram('microvm.ram', 4 * GIB)], devices: [] })),
    expected,
  );
});

const tables = (ranges: readonly TestAffinity[]): Uint8Array =>
  acpiTables([
    { address: 0, bytes: 640 * 1024 },
    ...ranges.map((range, index) => (index === 0 ? { ...range, address: MIB, bytes: range.bytes - MIB } : range)),
  ]);

/** Two nodes; the hole is in the first if that has more than 2 GiB. */
const nodes = (
  first: number,
  second: number,
  more: readonly TestAffinity[] = [],
): Pick<TestPc, 'devices' | 'tables'> => {
  const low = Math.min(first + second, 2 * GIB);
  const list: TestAffinity[] = [{ address: 0, bytes: Math.min(first, low) }];
  if (first > low) {
    list.push({ address: 4 * GIB, bytes: first - low });
    list.push({ node: 1, address: 4 * GIB + first - low, bytes: second });
  } else {
    const below = Math.min(second, low - first);
    list.push(...(below > 0 ? [{ node: 1, address: first, bytes: below }] : []));
    list.push(...(second > below ? [{ node: 1, address: 4 * GIB, bytes: second - below }] : []));
  }
  return { devices: [clockDevice(low, first + second - low)], tables: tables([...list, ...more]) };
};

test('NUMA nodes follow each other, however large, on both sides of the hole', () => {
  assert.deepEqual(rangesOf(mapOf({ blocks: [ram('b', 3 * GIB), ram('a', GIB)], ...nodes(GIB, 3 * GIB) })), [
    [0, 1, 0, GIB],
    [GIB, 0, 0, GIB],
    [4 * GIB, 0, GIB, 2 * GIB],
  ]);
  assert.deepEqual(
    rangesOf(mapOf({ blocks: [ram('mem0', 3 * GIB), ram('mem1', 3 * GIB)], ...nodes(3 * GIB, 3 * GIB) })),
    [
      [0, 0, 0, 2 * GIB],
      [4 * GIB, 0, 2 * GIB, GIB],
      [5 * GIB, 1, 0, 3 * GIB],
    ],
  );
  // libvirt's names count, whatever the order in which they were made; and one block can have all nodes.
  assert.deepEqual(rangesOf(mapOf({ blocks: [ram('ram-node1', GIB), ram('ram-node0', GIB)], ...nodes(GIB, GIB) })), [
    [0, 1, 0, GIB],
    [GIB, 0, 0, GIB],
  ]);
  assert.deepEqual(rangesOf(mapOf({ blocks: [ram('pc.ram', 2 * GIB)], ...nodes(GIB, GIB) })), [[0, 0, 0, 2 * GIB]]);
});

test('nodes of one size with names that say nothing are refused, until somebody says which is which', () => {
  for (const names of [
    ['a', 'b'],
    ['mem1', 'mem0'],
    ['a0', 'b1'],
    ['mem1', 'mem01'],
  ] as const) {
    const pc = { blocks: names.map((name) => ram(name, GIB)), ...nodes(GIB, GIB) };
    const map = mapOf(pc);
    assert.deepEqual(map.ranges, []);
    assert.throws(() => map.requireMemory(), {
      code: 'BLOCK_ADDRESS',
      hint: `--at ${names[0]}=0x0 --at ${names[1]}=0x40000000`,
    });
    assert.throws(() => map.rangesOf(1), { code: 'BLOCK_ADDRESS', value: names[1] });
    const told = mapOf(
      pc,
      new Map([
        [names[0], GIB],
        [names[1], 0],
      ]),
    );
    told.requireMemory();
    assert.deepEqual(rangesOf(told), [
      [0, 1, 0, GIB],
      [GIB, 0, 0, GIB],
    ]);
    assert.deepEqual(rangesOf(mapOf(pc, new Map([[names[1], 0]]))), rangesOf(told));
  }
});

test('QEMU puts high memory to 1 TiB for some processors: the tables say so, and where there are none it is refused', () => {
  const high = 1000 * GIB;
  const at = 2 ** 40;
  const blocks = [ram('pc.ram', 2 * GIB + high)];
  const devices = [clockDevice(2 * GIB, high)];
  const list = [
    { address: 0, bytes: 2 * GIB },
    { address: at, bytes: high },
  ];
  assert.deepEqual(rangesOf(mapOf({ blocks, devices, tables: tables(list) })), [
    [0, 0, 0, 2 * GIB],
    [at, 0, 2 * GIB, high],
  ]);
  assert.throws(() => mapOf({ blocks, devices }), { kind: 'usage', code: 'RAM_ADDRESSES' });
});

test('a DIMM has no address in the file: it is refused by name, or said by --at', () => {
  const pluggable = { address: 8 * GIB, bytes: 4 * GIB, flags: 3 };
  const pc = {
    blocks: [ram('dm0', 512 * MIB), ram('dm1', 256 * MIB), ram('pc.ram', 64 * MIB)],
    devices: [clockDevice(64 * MIB)],
    tables: tables([{ address: 0, bytes: 64 * MIB }, pluggable]),
  };
  const map = mapOf(pc);
  assert.deepEqual(rangesOf(map), [[0, 2, 0, 64 * MIB]]);
  assert.deepEqual(
    map.unplaced.map(({ block, kind }) => [block, kind]),
    [
      [3, 'blob'],
      [0, 'memory'],
      [1, 'memory'],
    ],
  );
  assert.throws(() => map.requireMemory(), {
    code: 'BLOCK_ADDRESS',
    value: 'dm0',
    hint: '--at dm0=0x200000000 --at dm1=0x220000000',
  });
  const told = mapOf(
    pc,
    new Map([
      ['dm0', 9 * GIB],
      ['dm1', 8 * GIB],
    ]),
  );
  told.requireMemory();
  assert.deepEqual(told.at(8 * GIB + 5), told.rangesOf(1)[0]);
  assert.deepEqual(told.at(9 * GIB + 512 * MIB - 1), told.rangesOf(0)[0]);
  assert.equal(told.at(9 * GIB + 512 * MIB), undefined);
  assert.equal(told.at(64 * MIB), undefined);
  assert.throws(() => mapOf(pc, new Map([['dm0', 32 * MIB]])), { code: 'BLOCK_PLACE', value: 'dm0' });
  assert.throws(() => mapOf(pc, new Map([['pc.ram', GIB]])), { code: 'RAM_ADDRESSES' });
  assert.throws(() => mapOf(pc, new Map([['nothing', GIB]])), { code: 'BLOCK_PLACE', value: 'nothing' });
  assert.throws(() => mapOf(pc, new Map([['/rom@etc/acpi/tables', GIB]])), { code: 'BLOCK_PLACE' });
  // With x-ignore-shared the file counts from where DIMMs begin.
  const shared = mapOf({
    ...pc,
    capabilities: ['x-ignore-shared'],
    blocks: [
      { ...ram('dm0', 512 * MIB), address: GIB },
      { ...ram('dm1', 256 * MIB), address: 0 },
      { ...ram('pc.ram', 64 * MIB), address: 0 },
    ],
  });
  assert.deepEqual(
    rangesOf(shared).map(([address]) => address),
    [0, 8 * GIB, 9 * GIB],
  );
});

test('a DIMM as large as the guest is not taken for it', () => {
  const pluggable = { address: 4 * GIB, bytes: 4 * GIB, flags: 3 };
  const rest = { devices: [clockDevice(GIB)], tables: tables([{ address: 0, bytes: GIB }, pluggable]) };
  assert.deepEqual(rangesOf(mapOf({ blocks: [ram('dm0', GIB), ram('pc.ram', GIB)], ...rest })), [[0, 1, 0, GIB]]);
  assert.deepEqual(rangesOf(mapOf({ blocks: [ram('memdimm0', GIB), ram('ram-node0', GIB)], ...rest })), [
    [0, 1, 0, GIB],
  ]);
  const open = { blocks: [ram('a', GIB), ram('b', GIB)], ...rest };
  assert.throws(() => mapOf(open).requireMemory(), { code: 'BLOCK_ADDRESS' });
  const told = mapOf(open, new Map([['a', 5 * GIB]]));
  assert.deepEqual(rangesOf(told), [
    [0, 1, 0, GIB],
    [5 * GIB, 0, 0, GIB],
  ]);
  // Nor for all of its nodes.
  const two = { blocks: [ram('dm', 2 * GIB), ram('m0', GIB), ram('m1', GIB)], ...nodes(GIB, GIB, [pluggable]) };
  assert.deepEqual(
    mapOf(two).ranges.map(({ block }) => block),
    [1, 2],
  );
  // The same without tables.
  const bare = { blocks: [ram('a', GIB), ram('b', GIB)], devices: [clockDevice(GIB)] };
  assert.throws(() => mapOf(bare).requireMemory(), { code: 'BLOCK_ADDRESS' });
});

test('an NVDIMM lies where the tables say', () => {
  const map = mapOf({
    blocks: [ram('nv', 128 * MIB), ram('pc.ram', 64 * MIB)],
    devices: [clockDevice(64 * MIB)],
    tables: tables([
      { address: 0, bytes: 64 * MIB },
      { address: 5 * GIB, bytes: 128 * MIB, flags: 5 },
    ]),
  });
  assert.deepEqual(rangesOf(map).at(-1), [5 * GIB, 0, 0, 128 * MIB]);
  map.requireMemory();
});

test('the region of a memory device lies where its section says', () => {
  const body = virtioMemEarlyBody(64);
  const description = { fields: [{ name: 'data', type: 'buffer', size: body.length }] };
  const early = [{ name: '0000:00:03.0/virtio-mem-device-early', body, description }];
  const pc = { devices: [clockDevice(64 * MIB)], early };
  const blocks = [ram('0000:00:03.0/vm0', 128 * MIB), ram('0000:00:04.0/vm0', 128 * MIB), ram('pc.ram', 64 * MIB)];
  const map = mapOf({ ...pc, blocks });
  assert.deepEqual(rangesOf(map), [
    [0, 2, 0, 64 * MIB],
    [4 * GIB, 0, 0, 128 * MIB],
  ]);
  assert.deepEqual(
    map.unplaced.map(({ block, kind }) => [block, kind]),
    [[1, 'device']],
  );
});

test('firmware lies below 4 GiB, and its end in the first MiB as well, where RAM is read; memory of devices is left out', () => {
  const names = [
    'pc.ram',
    'pc.bios',
    'pc.rom',
    'isa-bios',
    'system.flash0',
    'system.flash1',
    '0000:00:02.0/vga.vram',
    'vga.vram',
    '/rom@etc/table-loader',
  ];
  const sizes = [64 * MIB, 256 * 1024, 128 * 1024, 64 * 1024, MIB, 2 * MIB, MIB, MIB, 4096];
  const pc = (...indexes: number[]): PhysicalMap =>
    mapOf({ blocks: indexes.map((index) => ram(names[index]!, sizes[index]!)), devices: [clockDevice(64 * MIB)] });
  const map = pc(0, 1, 2, 6, 7, 8);
  assert.deepEqual(rangesOf(map), [
    [0, 0, 0, 64 * MIB],
    [4 * GIB - 256 * 1024, 1, 0, 256 * 1024],
  ]);
  assert.deepEqual(
    map.rangesOf(1).map(({ address, offset, bytes }) => [address, offset, bytes]),
    [
      [4 * GIB - 256 * 1024, 0, 256 * 1024],
      [0xe0000, 128 * 1024, 128 * 1024],
    ],
  );
  assert.deepEqual(
    map.rangesOf(2).map(({ address }) => address),
    [0xc0000],
  );
  assert.equal(map.at(0xffff0)!.block, 0);
  assert.deepEqual(
    map.unplaced.map(({ block, kind }) => [block, kind]),
    [
      [3, 'device'],
      [4, 'device'],
      [5, 'blob'],
    ],
  );
  assert.throws(() => map.rangesOf(3), { code: 'BLOCK_ADDRESS', value: names[6]! });
  map.requireMemory();
  const flash = pc(0, 4, 5, 3);
  assert.deepEqual(rangesOf(flash).slice(1), [
    [4 * GIB - 3 * MIB, 2, 0, 2 * MIB],
    [4 * GIB - MIB, 1, 0, MIB],
  ]);
  assert.deepEqual(
    flash.rangesOf(3).map(({ address }) => address),
    [0xf0000],
  );
});

test('what the file does not say, or says in two ways, is refused', () => {
  const blocks = [ram('pc.ram', 4 * GIB)];
  for (const machine of ['virt-10.0', 'pcx', 'ramferry-workload', 'xenpv', 'pseries-10.0']) {
    assert.throws(() => mapOf({ machine, blocks, devices: [clockDevice(3 * GIB, GIB)] }), {
      code: 'MACHINE_ADDRESSES',
    });
  }
  const refused: readonly TestPc[] = [
    { blocks, devices: [] },
    // A guest that has written to its CMOS.
    { blocks, devices: [clockDevice(3 * GIB, 2 * GIB)] },
    { blocks, devices: [clockDevice(2 * GIB, 0)] },
    { blocks, devices: [clockDevice(0, 0)] },
    { blocks: [ram('other', GIB)], devices: [clockDevice(2 * GIB, 0)] },
    {
      blocks,
      devices: [clockDevice(3 * GIB, GIB)],
      tables: tables([
        { address: 0, bytes: 2 * GIB },
        { address: 4 * GIB, bytes: 2 * GIB },
      ]),
    },
    {
      blocks,
      devices: [clockDevice(2 * GIB, 2 * GIB)],
      tables: tables([
        { address: 0, bytes: 2 * GIB },
        { address: 4 * GIB, bytes: GIB },
        { address: 6 * GIB, bytes: GIB },
      ]),
    },
  ];
  for (const [index, pc] of refused.entries()) {
    assert.throws(() => mapOf(pc), { kind: 'usage', code: 'RAM_ADDRESSES' }, `${index}`);
  }
});

test('tables with any byte changed, or cut anywhere: a map, or a named error', () => {
  const whole = tables([
    { address: 0, bytes: 64 * MIB },
    { address: 4 * GIB, bytes: 4 * GIB, flags: 3 },
    { address: 5 * GIB, bytes: 128 * MIB, flags: 5 },
  ]);
  const blocks = [ram('dm0', 512 * MIB), ram('nv', 128 * MIB), ram('pc.ram', 64 * MIB)];
  const stream = pcStream({ blocks, devices: [clockDevice(64 * MIB)], tables: whole });
  const start = Buffer.from(stream).indexOf('FACS');
  let maps = 0;
  for (let at = start; at < start + 420; at += 1) {
    for (const value of [0, 0xff]) {
      const byte = stream[at]!;
      stream[at] = value;
      try {
        const map = mapOfStream(stream);
        assert.ok(map.ranges.every(({ address, bytes }) => Number.isSafeInteger(address + bytes)));
        maps += 1;
      } catch (error) {
        assert.match((error as { code: string }).code, /^(RAM_ADDRESSES|BLOCK_PLACE)$/);
      }
      stream[at] = byte;
    }
  }
  assert.ok(maps > 400, `${maps}`);
});
