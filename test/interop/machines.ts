// Machines of many architectures and ages, as small as QEMU makes them, that never ran. Saved here with the truth about
// their memory by ways that do not read the saved file.

import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { patternPage } from '../streams.js';
import type { Lab, QemuRelease } from './lab.js';

export interface Machine {
  /** What it is called here, and in test/recorded. */
  readonly name: string;
  /** Machine type. */
  readonly type: string;
  /** Of the QEMU that has it; 10 unless said otherwise. */
  readonly release?: QemuRelease;
  /** What its page size has to be. */
  readonly pageSize: number;
  /** In MiB, backed by a file; or a RAM block of a machine whose memory cannot be chosen, and where the machine sees it. */
  readonly memory: number | { readonly block: string; readonly address: number; readonly bytes: number };
  /** More of its command line. The firmware is ours: QEMU's own would make the saved files large. */
  readonly options?: (lab: Lab) => readonly string[];
  /** What a file of it is warned of. */
  readonly warning?: RegExp;
}

const MEBIBYTE = 2 ** 20;

/** Writes a file for a machine to begin with, and returns its path. */
const firmware = (lab: Lab, name: string, content: Uint8Array): string => {
  const file = lab.path(name);
  writeFileSync(file, content);
  return file;
};

/** A ROM that holds next to nothing. */
const bios =
  (bytes: number) =>
  (lab: Lab): string[] => {
    const content = new Uint8Array(bytes);
    content.set(patternPage(1, 16));
    return ['-bios', firmware(lab, 'bios', content)];
  };

const emptyBios = bios(65_536);

/** Alpha's firmware has to be an ELF file. */
const alphaBios = (lab: Lab): string[] => {
  const content = Buffer.alloc(64 + 56 + 16);
  content.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  // An executable for Alpha, with one program header, which follows.
  content.writeUInt16LE(2, 16);
  content.writeUInt16LE(0x9026, 18);
  content.writeUInt32LE(1, 20);
  content.writeBigUInt64LE(64n, 32);
  content.writeUInt16LE(64, 52);
  content.writeUInt16LE(56, 54);
  content.writeUInt16LE(1, 56);
  // To be loaded: what follows the header.
  content.writeUInt32LE(1, 64);
  content.writeBigUInt64LE(120n, 72);
  content.writeBigUInt64LE(16n, 96);
  content.writeBigUInt64LE(16n, 104);
  content.set(patternPage(1, 16), 120);
  return ['-bios', firmware(lab, 'bios', content)];
};

const OLD_WARNING = /no configuration/;

export const machines: readonly Machine[] = [
  { name: 'aarch64-virt', type: 'virt', pageSize: 4096, memory: 1, options: () => ['-cpu', 'cortex-a57'] },
  { name: 'arm-virt', type: 'virt', pageSize: 4096, memory: 1 },
  { name: 'arm-mps2', type: 'mps2-an385', pageSize: 1024, memory: 16 },
  {
    name: 'arm-microbit',
    type: 'microbit',
    pageSize: 1024,
    memory: { block: 'nrf51.sram', address: 0x2000_0000, bytes: 16 * 1024 },
  },
  { name: 'alpha-clipper', type: 'clipper', pageSize: 8192, memory: 1, options: alphaBios },
  {
    name: 'avr-mega2560',
    type: 'mega2560',
    pageSize: 256,
    memory: { block: 'sram', address: 0x80_0200, bytes: 8 * 1024 },
  },
  { name: 'loongarch64-virt', type: 'virt', pageSize: 4096, memory: 1, options: emptyBios },
  { name: 'm68k-virt', type: 'virt', pageSize: 4096, memory: 1 },
  { name: 'microblaze-s3adsp1800', type: 'petalogix-s3adsp1800', pageSize: 4096, memory: 1 },
  { name: 'mips-malta', type: 'malta', pageSize: 4096, memory: 1, options: emptyBios },
  { name: 'mips64el-malta', type: 'malta', pageSize: 4096, memory: 1, options: emptyBios },
  { name: 'mips-mipssim', type: 'mipssim', pageSize: 4096, memory: 1, options: emptyBios },
  { name: 'or1k-sim', type: 'or1k-sim', pageSize: 8192, memory: 1 },
  { name: 'ppc-g3beige', type: 'g3beige', pageSize: 4096, memory: 1, options: emptyBios },
  {
    name: 'ppc64-pseries',
    type: 'pseries',
    pageSize: 4096,
    memory: 256,
    options: emptyBios,
    warning: /"spapr\/htab" iterates/,
  },
  { name: 'riscv32-spike', type: 'spike', pageSize: 4096, memory: 1, options: () => ['-bios', 'none'] },
  { name: 'riscv64-virt', type: 'virt', pageSize: 4096, memory: 1, options: () => ['-bios', 'none'] },
  { name: 'rx-gdbsim', type: 'gdbsim-r5f562n8', pageSize: 4096, memory: 16 },
  {
    name: 's390x-ccw',
    type: 's390-ccw-virtio',
    pageSize: 4096,
    memory: 4,
    // What is no ELF file may be a page long.
    options: bios(4096),
    warning: /"s390-storage_attributes" iterates/,
  },
  { name: 'sparc-ss5', type: 'SS-5', pageSize: 4096, memory: 1, options: emptyBios },
  { name: 'sparc64-sun4u', type: 'sun4u', pageSize: 8192, memory: 1, options: emptyBios },
  {
    name: 'tricore-testboard',
    type: 'tricore_testboard',
    pageSize: 16_384,
    memory: { block: 'powerlink_int_d.ram', address: 0xd000_0000, bytes: 48 * 1024 },
  },
  { name: 'x86_64-q35', type: 'q35', pageSize: 4096, memory: 1, options: emptyBios },
  { name: 'x86_64-microvm', type: 'microvm', pageSize: 4096, memory: 1, options: emptyBios },
  { name: 'x86_64-pc-7.2', type: 'pc', release: '7.2', pageSize: 4096, memory: 1, options: emptyBios },
  ...(['2.0', '2.1', '2.2', '2.3'] as const).map((version) => ({
    name: `x86_64-pc-${version}`,
    type: `pc-i440fx-${version}`,
    release: '7.2' as const,
    pageSize: 4096,
    memory: 1,
    options: emptyBios,
    warning: OLD_WARNING,
  })),
  {
    name: 'x86_64-isapc',
    type: 'isapc',
    release: '7.2',
    pageSize: 4096,
    memory: 1,
    options: emptyBios,
    warning: /"isa-ide" \(instance 0\)/,
  },
];

export type MachineFormat = 'stream' | 'mapped-ram';

/** Whether the machine's QEMU writes the format. */
export const canSave = ({ release }: Machine, format: MachineFormat): boolean =>
  format === 'stream' || release !== '7.2';

export interface SavedMachine {
  readonly file: string;
  /** Machine type, as QEMU calls it, no alias; empty where the file does not say: up to 2.3. */
  readonly machine: string;
  /** The RAM block that `content` is of; up to 2.3 a backend's block is called by its path. */
  readonly block: string;
  /** As the machine had it. */
  readonly content: Buffer;
}

/** What it is saved with, by place in memory; `seed` makes other content of some of it. */
const pieces = (bytes: number, seed: number): (readonly [offset: number, content: Uint8Array])[] => {
  const changing = Math.floor(bytes / 4);
  return [
    [Math.floor(bytes / 2), patternPage(2, 700)],
    [changing, patternPage(seed, 300)],
    // Its last byte.
    [bytes - 1, Uint8Array.of(0x5a)],
  ];
};

const fill = (file: string, bytes: number, seed: number): void => {
  writeFileSync(file, '');
  truncateSync(file, bytes);
  const content = readFileSync(file);
  for (const [offset, piece] of pieces(bytes, seed)) {
    content.set(piece, offset);
  }
  writeFileSync(file, content);
};

/** Starts the machine, without running it, and saves it. */
export const saveMachine = async (
  lab: Lab,
  machine: Machine,
  format: MachineFormat,
  seed: number,
): Promise<SavedMachine> => {
  const { name, type, memory, release = '10' } = machine;
  const ramFile = lab.path(`${name}.ram`);
  const isChosen = typeof memory === 'number';
  fill(ramFile, isChosen ? memory * MEBIBYTE : memory.bytes, seed);
  const architecture = name.slice(0, name.indexOf('-'));
  const loader = isChosen ? [] : ['-device', `loader,file=${ramFile},addr=${memory.address},force-raw=on`];
  const guest = await lab.startGuest({
    release,
    machine: type,
    ...(architecture !== 'x86_64' && {
      program: join(lab.toolbox.folder, 'qemu-10-others', `qemu-system-${architecture}`),
    }),
    ...(isChosen ? { memory, ramFile } : { memory: 0 }),
    extraArguments: [...(machine.options?.(lab) ?? []), ...loader],
  });
  const file = lab.path(`${name}-${seed}.${format}`);
  await guest.saveStream(file, format === 'stream' ? {} : { capabilities: { 'mapped-ram': true } });
  const truth = isChosen ? ramFile : lab.path(`${name}.seen`);
  if (!isChosen) {
    // As its processor sees it, which on a microbit sees more than there is without it.
    await guest.qmp.execute('memsave', { val: memory.address, size: memory.bytes, filename: truth });
  }
  const qomType = await guest.qmp.execute('qom-get', { path: '/machine', property: 'type' });
  await guest.qemu.quit();
  const isOld = machine.warning === OLD_WARNING;
  const backend = isOld ? '/objects/pc.ram' : 'pc.ram';
  return {
    file,
    machine: isOld ? '' : String(qomType).replace(/-machine$/, ''),
    block: isChosen ? backend : memory.block,
    content: readFileSync(truth),
  };
};
