// A QEMU command line rewritten so that guest RAM is mapped out of a file, copy-on-write (spec/qemu-lab.md G1):
//
//   -M pc -m 1G                                    │  the same, and
//                                                  │  -object memory-backend-file,id=pc.ram,size=…,mem-path=FILE,offset=…,share=off
//                                                  │  -machine memory-backend=pc.ram
//   ───────────────────────────────────────────────┼──────────────────────────────────────────────────────────────────
//   -object memory-backend-ram,id=ram0,size=1G     │  -object memory-backend-file,id=ram0,size=…,mem-path=FILE,offset=…,share=off
//   -machine q35,memory-backend=ram0               │  the same (also: -numa node,memdev=ram0; -device pc-dimm,memdev=ram0)
//
// Everything else stays as it is: what QEMU thinks of it, QEMU says.

import { RamferryError } from '../memory/errors.js';
import { programIndex } from './launcher.js';

/** A RAM block as a saved guest has it. */
export interface SavedBlock {
  readonly name: string;
  /** Bytes. */
  readonly usedLength: number;
}

/** Where QEMU shall find the bytes of a block. */
export interface BlockMapping extends SavedBlock {
  /** A path that QEMU opens. */
  readonly path: string;
  /** Byte of the file at which the block begins; undefined for 0, in a file that may be opened for writing (QEMU before 8.2). */
  readonly offset: number | undefined;
}

/** Which blocks of a guest a command line lets us map, and why not the others, as sentences. */
export interface MappingPlan<Block> {
  readonly mapped: readonly Block[];
  readonly obstacles: readonly string[];
}

/** The argument of an option: `driver,key=value,…` or JSON. */
interface OptionArgument {
  readonly index: number;
  readonly values: ReadonlyMap<string, unknown>;
  readonly json: boolean;
}

/** What some memory has to be made new for: to be the file's. */
const OWN_PROPERTIES = new Set([
  ...['qom-type', 'id', 'size', 'share', 'mem-path', 'offset', 'readonly', 'rom', 'discard-data', 'align', 'pmem'],
  // Touching every page in advance would copy every page.
  ...['prealloc', 'prealloc-threads', 'prealloc-context', 'reserve', 'hugetlb', 'hugetlbsize', 'seal'],
  'x-use-canonical-path-for-ramblock-id',
]);

/** Properties that somebody set for a reason, and that a private mapping of a file cannot have. */
const TOUCHING_PROPERTIES = new Set(['prealloc', 'hugetlb', 'pmem']);

/** As `default_ram_id` of QEMU's machines: pc.ram, mach-virt.ram, …; vga.vram is none. */
const MACHINE_RAM = /\.ram$/;

/** What of a command line is left out where RAM is mapped, as sentences. */
export const droppedByMapping = (command: readonly string[], mapped: readonly SavedBlock[]): string[] => {
  const dropped: string[] = [];
  if (hasOption(command, 'mem-prealloc')) {
    dropped.push(
      '-mem-prealloc is left out: touching every page in advance would copy all of the memory for each clone.',
    );
  }
  const [memPath] = optionsNamed(command, 'mem-path');
  if (memPath !== undefined) {
    dropped.push(`-mem-path ${command[memPath]} is left out: the memory is the file's, page by page.`);
  }
  const objects = memoryBackends(command);
  for (const { name } of mapped) {
    const values = objects.get(name)?.values;
    const ignored = [...TOUCHING_PROPERTIES].filter((key) => isOn(values?.get(key)));
    if (ignored.length > 0) {
      dropped.push(`${ignored.join(', ')} of memory object "${name}" is left out: it is mapped out of a file instead.`);
    }
  }
  return dropped;
};

/** Plans for the blocks of a saved guest. What is not mapped has to come to the guest in another way. */
export const planMapping = <Block extends SavedBlock>(
  command: readonly string[],
  blocks: readonly Block[],
): MappingPlan<Block> => {
  const objects = memoryBackends(command);
  const users = memoryUsers(command);
  const mapped: Block[] = [];
  const obstacles: string[] = [];
  for (const block of blocks) {
    const object = objects.get(block.name);
    if (object !== undefined) {
      const obstacle = obstacleOf(object, users.get(block.name));
      if (obstacle === undefined) {
        mapped.push(block);
      } else {
        obstacles.push(`RAM block "${block.name}" cannot be mapped: ${obstacle}.`);
      }
    }
  }
  // Without a word about it in the command line, the machine makes its RAM itself.
  if (![...users.values()].includes('machine')) {
    const machineRam = blocks
      .filter(({ name }) => MACHINE_RAM.test(name) && !objects.has(name))
      .sort((one, other) => other.usedLength - one.usedLength)[0];
    if (machineRam !== undefined) {
      mapped.push(machineRam);
    }
  }
  if (mapped.length === 0 && obstacles.length === 0) {
    const names = blocks.map(({ name }) => `"${name}"`).join(', ');
    obstacles.push(`None of the RAM blocks ${names} is known as the machine's memory.`);
  }
  return { mapped, obstacles };
};

/** The command line with these blocks mapped, waiting for the rest of the guest (`-incoming defer`). */
export const withMappedRam = (command: readonly string[], mappings: readonly BlockMapping[]): string[] => {
  // Both would make memory of their own: one a copy of every page, the other a file that is not the guest's.
  const rewritten = withIncomingDefer(withoutArguments(withoutFlag(command, 'mem-prealloc'), 'mem-path'));
  const objects = memoryBackends(rewritten);
  for (const mapping of mappings) {
    const object = objects.get(mapping.name);
    if (object !== undefined) {
      rewritten[object.index] = mappedObject(mapping, object);
      continue;
    }
    if (!optionsNamed(rewritten, 'm').next().value) {
      // In MiB, as without a suffix; RAM is always whole ones.
      rewritten.push('-m', `${mapping.usedLength / 2 ** 20}`);
    }
    rewritten.push('-object', mappedObject(mapping), '-machine', `memory-backend=${optionValue(mapping.name)}`);
  }
  return rewritten;
};

/** The command line such that QEMU waits for `migrate-incoming`. */
export const withIncomingDefer = (command: readonly string[]): string[] => [
  ...withoutArguments(command, 'incoming'),
  '-incoming',
  'defer',
];

/** The command line without an option that takes an argument. */
const withoutArguments = (command: readonly string[], name: string): string[] => {
  const arguments_ = new Set(optionsNamed(command, name));
  return command.filter((_, index) => !arguments_.has(index) && !arguments_.has(index + 1));
};

/** The command line without an option that takes none. */
const withoutFlag = (command: readonly string[], name: string): string[] => {
  const from = programIndex(command) + 1;
  return command.filter((word, index) => index < from || !isOption(word, name));
};

/** A property of an option as QEMU reads it, or as JSON has it. */
export const isOn = (value: unknown): boolean => value === true || ['on', 'yes', 'true', 'y'].includes(String(value));
export const isOff = (value: unknown): boolean =>
  value === false || ['off', 'no', 'false', 'n'].includes(String(value));

/** Whether an option is there, as in `-S` or `--daemonize`. */
export const hasOption = (command: readonly string[], name: string): boolean =>
  command.slice(programIndex(command) + 1).some((word) => isOption(word, name));

/** The arguments of each occurrence of an option, as key and value. The first may come without its key. */
export function* optionArguments(
  command: readonly string[],
  names: readonly string[],
  firstKey: string,
): Generator<OptionArgument> {
  for (const name of names) {
    for (const index of optionsNamed(command, name)) {
      yield { index, ...parseArgument(command[index]!, firstKey) };
    }
  }
}

/** QEMU takes `-name` and `--name`. */
const isOption = (word: string, name: string): boolean => word === `-${name}` || word === `--${name}`;

/** The command line of one of many: `{i}` becomes its number. */
export const fillTemplate = (template: readonly string[], index: number): string[] =>
  template.map((word) => word.replaceAll('{i}', String(index)));

/** Where the arguments of an option stand. */
function* optionsNamed(command: readonly string[], name: string): Generator<number> {
  for (let index = programIndex(command) + 1; index < command.length - 1; index += 1) {
    if (isOption(command[index]!, name)) {
      index += 1;
      yield index;
    }
  }
}

/** A value as it stands in `key=value,…`: a comma in it, which would end it, is written twice. */
export const optionValue = (value: string): string => value.replaceAll(',', ',,');

const parseArgument = (text: string, firstKey: string): Pick<OptionArgument, 'values' | 'json'> => {
  if (text.startsWith('{')) {
    try {
      return { values: new Map(Object.entries(JSON.parse(text) as object)), json: true };
    } catch {
      throw new RamferryError('usage', 'QEMU_COMMAND', `'${text}' in the QEMU command line is not JSON.`, {
        value: text,
      });
    }
  }
  const values = new Map<string, unknown>();
  // A comma inside a value is written twice.
  for (const [index, part] of (text.match(/(?:[^,]|,,)+/g) ?? []).entries()) {
    const equals = part.indexOf('=');
    const value = part.slice(equals + 1).replaceAll(',,', ',');
    if (equals >= 0) {
      values.set(part.slice(0, equals), value);
    } else if (index === 0) {
      values.set(firstKey, value);
    } else {
      values.set(value, 'on');
    }
  }
  return { values, json: false };
};

/** Memory objects by id. */
const memoryBackends = (command: readonly string[]): ReadonlyMap<string, OptionArgument> => {
  const found = new Map<string, OptionArgument>();
  for (const object of optionArguments(command, ['object'], 'qom-type')) {
    if (String(object.values.get('qom-type')).startsWith('memory-backend-')) {
      found.set(String(object.values.get('id')), object);
    }
  }
  return found;
};

/** What each memory object is for: `machine`, or the driver of a device. */
const memoryUsers = (command: readonly string[]): ReadonlyMap<string, string> => {
  const users = new Map<string, string>();
  for (const { values } of optionArguments(command, ['device'], 'driver')) {
    if (values.has('memdev')) {
      users.set(String(values.get('memdev')), String(values.get('driver')));
    }
  }
  for (const { values } of [
    ...optionArguments(command, ['machine', 'M'], 'type'),
    ...optionArguments(command, ['numa'], 'type'),
  ]) {
    const id = values.get('memory-backend') ?? values.get('memdev');
    if (id !== undefined) {
      users.set(String(id), 'machine');
    }
  }
  return users;
};

const obstacleOf = ({ values }: OptionArgument, user: string | undefined): string | undefined => {
  const kind = String(values.get('qom-type'));
  // A memfd is shared unless it says otherwise.
  if (isOn(values.get('share') ?? (kind === 'memory-backend-memfd' ? 'on' : 'off'))) {
    return 'it is share=on, for another process that works on the same memory; a copy-on-write mapping is private';
  }
  // virtio-mem punches holes into its memory, nvdimm and virtio-pmem are the file's owners.
  if (user !== 'machine' && user !== 'pc-dimm') {
    return `its memory is for ${user ?? 'nothing in the command line'}, not for the machine or a pc-dimm`;
  }
  return undefined;
};

const mappedObject = (mapping: BlockMapping, object?: OptionArgument): string => {
  const kept = [...(object?.values ?? [])].filter(([key]) => !OWN_PROPERTIES.has(key));
  const { name, usedLength, path, offset } = mapping;
  const own: [string, string | number | boolean][] = [
    ['qom-type', 'memory-backend-file'],
    ['id', name],
    ['size', usedLength],
    ['mem-path', path],
    ['share', false],
    // Machine types up to 4.0 would call the block /objects/ID.
    ['x-use-canonical-path-for-ramblock-id', false],
  ];
  if (offset !== undefined) {
    // QEMU cannot write into a file that it has open for reading, whatever the guest does; without rom=off it would make a ROM of it.
    own.push(['offset', offset], ['readonly', true], ['rom', 'off']);
  }
  if (object?.json === true) {
    return JSON.stringify(Object.fromEntries([...own, ...kept]));
  }
  const word = (value: unknown): string =>
    typeof value === 'boolean' ? (value ? 'on' : 'off') : optionValue(String(value));
  const [[, type], ...properties] = own as [[string, string], ...[string, unknown][]];
  return [type, ...[...properties, ...kept].map(([key, value]) => `${key}=${word(value)}`)].join(',');
};
