// Guest-physical addresses against real QEMU. Its loader device stores markers at addresses, so the truth needs no second tool: by
// our map, or in our ELF core, the marker's value has to be at the marker's address, or the layout is refused by name.
//
// Small guests are converted. Large ones have their RAM in sparse files that x-ignore-shared leaves out of the stream: 64 GiB take
// no time, and the markers are looked up in these files.

import assert from 'node:assert/strict';
import { closeSync, openSync, readSync, rmSync } from 'node:fs';
import { physicalMap } from '../../src/format/physical-map.js';
import { openSnapshotFile } from '../../src/memory-file/open-snapshot-file-node.js';
import { ADDRESSED_FORMATS, type ReadAddress } from '../addressed-files.js';
import { interopTest, type Lab, type LabGuest } from './lab.js';
import { Ramferry } from './ramferry.js';
import { ALL_RELEASES, type QemuRelease } from './releases.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const FOUR_GIB = 4 * GIB;

interface Layout {
  readonly name: string;
  /** With every release if left out. */
  readonly release?: QemuRelease;
  readonly machine: string;
  readonly memoryMiB: number;
  /** Backends `id=MiB`; in files if `shared`. */
  readonly backends?: readonly string[];
  readonly shared?: true;
  readonly extra?: readonly string[];
  /** Hot-plugged: the backend's id. */
  readonly plugged?: string;
  readonly markers: readonly number[];
  /** `--block`. */
  readonly block?: string;
  /** `--at`, without which the layout has to be refused by the name of the first block. */
  readonly at?: readonly string[];
}

const dimms = ['-m', 'slots=4,maxmem=2G'];
const nodes = (...ids: readonly string[]): string[] => ids.flatMap((id) => ['-numa', `node,memdev=${id}`]);
const dimm = (id: string, more = ''): string[] => ['-device', `pc-dimm,memdev=${id}${more}`];

const converted: readonly Layout[] = [
  { name: 'pc', machine: 'pc', memoryMiB: 20, markers: [MIB, 20 * MIB - 8] },
  {
    name: 'q35 with max-ram-below-4g',
    machine: 'q35,max-ram-below-4g=24M',
    memoryMiB: 40,
    markers: [MIB, 24 * MIB - 8, FOUR_GIB, FOUR_GIB + 16 * MIB - 8],
  },
  {
    name: 'a DIMM',
    machine: 'q35',
    memoryMiB: 20,
    backends: ['dm0=16'],
    extra: [...dimms, ...dimm('dm0')],
    markers: [MIB, FOUR_GIB, FOUR_GIB + 16 * MIB - 8],
    at: ['dm0=0x100000000'],
  },
  {
    name: 'two nodes across the hole',
    release: '10',
    machine: 'pc,max-ram-below-4g=24M',
    memoryMiB: 32,
    backends: ['ram-node0=16', 'ram-node1=16'],
    extra: nodes('ram-node0', 'ram-node1'),
    markers: [MIB, 16 * MIB - 8, 16 * MIB, 24 * MIB - 8, FOUR_GIB, FOUR_GIB + 8 * MIB - 8],
  },
  {
    name: '--block of the second node',
    release: '11',
    machine: 'pc,max-ram-below-4g=24M',
    memoryMiB: 32,
    backends: ['ram-node0=16', 'ram-node1=16'],
    extra: nodes('ram-node0', 'ram-node1'),
    markers: [16 * MIB, 24 * MIB - 8, FOUR_GIB, FOUR_GIB + 8 * MIB - 8],
    block: 'ram-node1',
  },
  {
    name: 'nodes whose names say nothing, the second one first',
    release: '10',
    machine: 'q35',
    memoryMiB: 32,
    backends: ['one=16', 'two=16'],
    extra: nodes('two', 'one'),
    markers: [MIB, 16 * MIB - 8, 16 * MIB, 32 * MIB - 8],
    at: ['one=0x1000000', 'two=0'],
  },
  {
    name: '--block of a DIMM that was given its address',
    release: '7.2',
    machine: 'pc',
    memoryMiB: 20,
    backends: ['dm0=16'],
    extra: [...dimms, ...dimm('dm0', ',addr=0x120000000')],
    markers: [0x1_2000_0000, 0x1_2000_0000 + 16 * MIB - 8],
    block: 'dm0',
    at: ['dm0=0x120000000'],
  },
  {
    name: 'DIMMs plugged before and after',
    release: '11',
    machine: 'pc',
    memoryMiB: 20,
    backends: ['dm0=16'],
    extra: [...dimms, ...dimm('dm0')],
    plugged: 'dm1',
    markers: [MIB, FOUR_GIB + 8, FOUR_GIB + 16 * MIB, FOUR_GIB + 24 * MIB - 8],
    at: ['dm0=0x100000000', 'dm1=0x101000000'],
  },
  {
    name: 'an NVDIMM',
    release: '11',
    machine: 'q35,nvdimm=on',
    memoryMiB: 20,
    backends: ['nv=16'],
    extra: [...dimms, '-device', 'nvdimm,memdev=nv'],
    markers: [MIB, FOUR_GIB, FOUR_GIB + 16 * MIB - 8],
  },
  {
    name: "virtiofs's memfd",
    release: '10',
    machine: 'q35',
    memoryMiB: 20,
    extra: ['-object', 'memory-backend-memfd,id=mem,size=20M,share=on', ...nodes('mem')],
    markers: [MIB, 20 * MIB - 8],
  },
  { name: 'microvm', release: '10', machine: 'microvm', memoryMiB: 20, markers: [MIB, 20 * MIB - 8] },
  {
    name: 'microvm without a clock',
    release: '11',
    machine: 'microvm,rtc=off',
    memoryMiB: 20,
    markers: [MIB, 20 * MIB - 8],
  },
  { name: 'isapc', release: '10', machine: 'isapc', memoryMiB: 12, markers: [MIB, 12 * MIB - 8] },
];

const shared: readonly Layout[] = [
  {
    name: 'pc, 4 GiB',
    release: '7.2',
    machine: 'pc',
    memoryMiB: 4096,
    markers: [MIB, 3 * GIB - 8, FOUR_GIB, 5 * GIB - 8],
  },
  { name: 'q35, 4 GiB', machine: 'q35', memoryMiB: 4096, markers: [MIB, 2 * GIB - 8, FOUR_GIB, 6 * GIB - 8] },
  { name: 'pc, 3500 MiB', release: '10', machine: 'pc', memoryMiB: 3500, markers: [MIB, 3 * GIB, 3500 * MIB - 8] },
  { name: 'q35, 2816 MiB', release: '11', machine: 'q35', memoryMiB: 2816, markers: [MIB, 2 * GIB - 8, FOUR_GIB] },
  {
    name: 'pc, 64 GiB',
    release: '11',
    machine: 'pc',
    memoryMiB: 65536,
    markers: [MIB, 3 * GIB - 8, FOUR_GIB, 65 * GIB - 8],
  },
  { name: 'q35, 64 GiB', release: '10', machine: 'q35', memoryMiB: 65536, markers: [MIB, FOUR_GIB, 66 * GIB - 8] },
  {
    name: 'pc, max-ram-below-4g=3584M',
    release: '10',
    machine: 'pc,max-ram-below-4g=3584M',
    memoryMiB: 4096,
    // Memory ends at a whole GiB below 4 GiB, whatever is asked for.
    markers: [MIB, 3 * GIB - 8, FOUR_GIB, 5 * GIB - 8],
  },
  {
    name: 'q35, max-ram-below-4g=1G',
    release: '7.2',
    machine: 'q35,max-ram-below-4g=1G',
    memoryMiB: 4096,
    markers: [MIB, GIB - 8, FOUR_GIB, 7 * GIB - 8],
  },
  { name: 'microvm, 4 GiB', release: '11', machine: 'microvm', memoryMiB: 4096, markers: [MIB, 3 * GIB - 8, FOUR_GIB] },
  {
    name: 'two nodes, the hole in the first',
    release: '11',
    machine: 'q35',
    memoryMiB: 6144,
    backends: ['m0=3072', 'm1=3072'],
    extra: nodes('m0', 'm1'),
    markers: [MIB, 2 * GIB - 8, FOUR_GIB, 5 * GIB - 8, 5 * GIB, 8 * GIB - 8],
  },
  {
    name: 'two nodes, the larger second one made first',
    release: '7.2',
    machine: 'pc',
    memoryMiB: 5120,
    backends: ['large=4096', 'small=1024'],
    extra: nodes('small', 'large'),
    markers: [MIB, GIB - 8, GIB, 3 * GIB - 8, FOUR_GIB, 6 * GIB - 8],
  },
  {
    name: 'DIMMs: one at an address of its own, one plugged in later',
    release: '10',
    machine: 'q35',
    memoryMiB: 1024,
    backends: ['dm0=512'],
    extra: ['-m', 'slots=4,maxmem=8G', ...dimm('dm0', ',addr=0x140000000')],
    plugged: 'dm1',
    markers: [MIB, 0x1_4000_0000, 0x1_6000_0000 - 8, FOUR_GIB, FOUR_GIB + 8 * MIB - 8],
  },
];

/** What is stored at an address. */
const markerOf = (address: number): bigint => 0x52414d_0000_0000_00n | (BigInt(address) >> 3n);

const backend = (lab: Lab, id: string, mebibytes: number | string, isShared: boolean): string =>
  isShared
    ? `memory-backend-file,id=${id},size=${mebibytes}M,mem-path=${lab.path(id)},share=on`
    : `memory-backend-ram,id=${id},size=${mebibytes}M`;

/** The saved guest of a layout. */
const save = async (lab: Lab, layout: Layout, file: string): Promise<void> => {
  const { machine, memoryMiB, backends = [], extra = [], plugged, markers } = layout;
  const isShared = layout.shared === true;
  // What has no backend of its own is the machine's.
  const isMain = isShared && !extra.includes('-numa');
  const guest = await lab.startGuest({
    machine,
    memory: memoryMiB,
    ...(isMain && { machine: `${machine},memory-backend=main` }),
    extraArguments: [
      ...(isMain ? ['-object', backend(lab, 'main', memoryMiB, true)] : []),
      ...backends.flatMap((text) => {
        const [id, mebibytes] = text.split('=') as [string, string];
        return ['-object', backend(lab, id, mebibytes, isShared)];
      }),
      ...extra,
      ...markers.flatMap((address) => ['-device', `loader,addr=${address},data=${markerOf(address)},data-len=8`]),
    ],
  });
  if (plugged !== undefined) {
    await plug(lab, guest, plugged, isShared);
  }
  await guest.saveStream(file, isShared ? { capabilities: { 'x-ignore-shared': true } } : {});
  guest.qemu.kill();
  await guest.qemu.exited;
};

/** A DIMM of 8 MiB; the loader stores its markers again when the machine is reset. */
const plug = async (lab: Lab, { qmp }: LabGuest, id: string, isShared: boolean): Promise<void> => {
  const size = 8 * MIB;
  await qmp.execute('object-add', {
    id,
    size,
    ...(isShared
      ? { 'qom-type': 'memory-backend-file', 'mem-path': lab.path(id), share: true }
      : { 'qom-type': 'memory-backend-ram' }),
  });
  await qmp.execute('device_add', { driver: 'pc-dimm', memdev: id, id: `${id}-device` });
  await qmp.execute('system_reset');
  await qmp.execute('human-monitor-command', { 'command-line': 'info status' });
};

const readAt = (file: string, position: number): bigint => {
  const bytes = Buffer.alloc(8);
  const descriptor = openSync(file, 'r');
  try {
    readSync(descriptor, bytes, 0, 8, position);
  } finally {
    closeSync(descriptor);
  }
  return bytes.readBigUInt64LE();
};

const check = (layout: Layout, read: (address: number) => bigint | undefined): void => {
  for (const address of layout.markers) {
    assert.equal(read(address), markerOf(address), `${layout.name}: 0x${address.toString(16)}`);
  }
};

/** The value at an address; undefined if the file has no memory there. */
const valueAt = (read: ReadAddress, address: number): bigint | undefined => read(address, 8)?.readBigUInt64LE();

/** Converts to every format with addresses, at once. */
const convertAll = async (
  lab: Lab,
  file: string,
  more: readonly string[],
  visit: (read: ReadAddress, format: string) => void,
): Promise<void> => {
  const convertOne = async ({ args, read }: (typeof ADDRESSED_FORMATS)[number]): Promise<void> => {
    const out = lab.path(`guest.${args[0]}`);
    const { status, stdout, stderr } = await Ramferry.run(lab, 'convert', file, out, '--to', ...args, ...more);
    assert.equal(status, 0, `${args.join(' ')} ${more.join(' ')}: ${stdout}${stderr}`);
    visit(read(out), args.join(' '));
    rmSync(out);
  };
  await Promise.all(ADDRESSED_FORMATS.map(convertOne));
};

const checkConverted = async (lab: Lab, layout: Layout): Promise<void> => {
  const file = lab.path('guest.mig');
  await save(lab, layout, file);
  const block = layout.block === undefined ? [] : ['--block', layout.block];
  if (layout.at !== undefined) {
    const refused = await Ramferry.run(lab, 'convert', file, lab.path('no'), '--to', 'elf', '--json', ...block);
    const { error } = JSON.parse(refused.stdout) as { error: { code: string; value?: string; message: string } };
    assert.deepEqual([refused.status, error.code], [2, 'BLOCK_ADDRESS'], `${layout.name}: ${refused.stdout}`);
    assert.match(error.message, new RegExp(`"${layout.at[0]!.split('=')[0]}"`));
  }
  const places = (layout.at ?? []).flatMap((place) => ['--at', place]);
  await convertAll(lab, file, [...block, ...places], (read, format) => {
    check({ ...layout, name: `${layout.name}, ${format}` }, (address) => valueAt(read, address));
  });
};

const checkShared = async (lab: Lab, layout: Layout): Promise<void> => {
  const file = lab.path('guest.mig');
  await save(lab, { ...layout, shared: true }, file);
  const { snapshot, close } = await openSnapshotFile(file);
  const map = physicalMap(snapshot);
  close();
  map.requireMemory();
  const ramFile = (block: number): string => lab.path(snapshot.setup.blocks[block]!.name);
  check(layout, (address) => {
    const range = map.at(address)!;
    return readAt(ramFile(range.block), range.offset + address - range.address);
  });
  for (const { block } of map.ranges) {
    rmSync(ramFile(block), { force: true });
  }
};

interopTest(
  'addresses: every marker is where QEMU stored it, or the layout is refused by name',
  async (lab) => {
    const here = ({ release }: Layout): boolean => release === undefined || release === lab.release;
    for (const layout of converted.filter(here)) {
      await checkConverted(lab, layout);
    }
    for (const layout of shared.filter(here)) {
      await checkShared(lab, layout);
    }
  },
  ALL_RELEASES,
);

interopTest(
  'addresses: the BIOS lies below 4 GiB, and its end below 1 MiB',
  async (lab) => {
    const guest = await lab.startGuest({ machine: 'q35', memory: 20 });
    await guest.saveStream(lab.path('guest.mig'));
    // The machine has not run: what the processor reads there is the ROM.
    const values = new Map<number, bigint>();
    for (const address of [0xfff0, 0xf0000, 0xffff0, 0xfffe_0000, 0xffff_fff0]) {
      const dump = String(
        await guest.qmp.execute('human-monitor-command', { 'command-line': `xp /1gx 0x${address.toString(16)}` }),
      );
      values.set(address, BigInt(/: (0x[0-9a-f]+)/.exec(dump)![1]!));
    }
    await convertAll(lab, lab.path('guest.mig'), ['--block', 'pc.bios'], (read, format) => {
      for (const [address, value] of values) {
        assert.equal(valueAt(read, address) ?? 0n, value, `${format}: 0x${address.toString(16)}`);
      }
    });
  },
  ['10'],
);
