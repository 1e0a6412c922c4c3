// What several QEMUs of one command line would fight over: a disk that each writes, memory that each shares. QEMU locks
// some of it, which shows as a start that fails; the rest it damages without a word. So it is looked for before the start.

import fs from 'node:fs';
import { resolve } from 'node:path';
import { RamferryError } from '../memory/errors.js';
import { shellCommand } from '../memory/shell-command.js';
import { hasOption, isOff, isOn, optionArguments } from './command-line.js';

/** The number of a clone in a command line. */
const NUMBER = '{i}';

/** Options that name a disk and nothing else. */
const DISK_OPTIONS = ['hda', 'hdb', 'hdc', 'hdd', 'fda', 'fdb', 'sd', 'mtdblock', 'pflash'];

/** Devices that only read their medium. */
const READ_ONLY_DEVICES = /^(ide|scsi)-cd$/;

/** Nodes without a medium that anybody else could have. */
const PRIVATE_DRIVERS = new Set(['null-co', 'null-aio', 'blkdebug', 'vvfat']);

/** Properties that name an object of QEMU's, and no medium. */
const NAMES = /^(node-name|id|tls-.*|.*-secret|pr-manager)$/;

const QCOW2_MAGIC = Buffer.from('QFI\xfb', 'latin1');

type Properties = Readonly<Record<string, unknown>>;

/**
 * Refuses a template of several QEMUs that all write to one disk or share one memory.
 * @throws RamferryError `usage` SHARED_BY_CLONES, with the option that lacks `{i}`
 */
export const refuseSharedResources = (template: readonly string[], count: number): void => {
  refuseSharedMemory(template);
  // Each writes into a temporary file of its own then.
  if (!hasOption(template, 'snapshot')) {
    refuseSharedDrives(template, count);
    refuseSharedNodes(template);
  }
};

const refuse = (option: string, argument: string, why: string, hint: string): never => {
  throw new RamferryError('usage', 'SHARED_BY_CLONES', `-${option} ${argument} lacks ${NUMBER}: ${why}.`, {
    value: argument,
    hint,
  });
};

const DISK_HINT =
  'Add readonly=on or snapshot=on, or share-rw=on at the device if the guests are made for that; or give each clone a disk of its own';

const refuseDisk = (option: string, argument: string, overlays = `, with ${NUMBER} in its name.`): never =>
  refuse(option, argument, 'all clones would write to the same disk', DISK_HINT + overlays);

/** How to make a disk for each clone on top of a disk that is a file; undefined for any other. */
const overlaysOf = (disk: string, count: number): string | undefined => {
  const magic = Buffer.alloc(QCOW2_MAGIC.length);
  try {
    const descriptor = fs.openSync(disk, 'r');
    try {
      fs.readSync(descriptor, magic, 0, magic.length, 0);
    } finally {
      fs.closeSync(descriptor);
    }
  } catch {
    return undefined;
  }
  const format = magic.equals(QCOW2_MAGIC) ? 'qcow2' : 'raw';
  // A relative name would be looked for beside the new disk.
  const base = resolve(disk);
  const command = shellCommand`for i in $(seq 0 ${count - 1}); do qemu-img create -f qcow2 -b ${base} -F ${format} ${disk}.$i; done`;
  return `, named ${disk}.${NUMBER} and format=qcow2, made by: ${command}`;
};

const refuseSharedMemory = (template: readonly string[]): void => {
  const users = new Map(
    [...optionArguments(template, ['device'], 'driver')].map(({ values }) => [
      String(values.get('memdev')),
      String(values.get('driver')),
    ]),
  );
  for (const { index, values } of optionArguments(template, ['object'], 'qom-type')) {
    const path = String(values.get('mem-path') ?? '');
    const isShared = values.get('qom-type') === 'memory-backend-file' && isOn(values.get('share'));
    // Memory that guests are to share is what ivshmem is for; a folder gets a new file for each.
    const isMeant = /^ivshmem/.test(users.get(String(values.get('id'))) ?? '') || isOn(values.get('readonly'));
    if (isShared && !isMeant && !path.includes(NUMBER) && !isFolder(path)) {
      const hint = `Write mem-path=…${NUMBER}, or leave share=on out.`;
      refuse('object', template[index]!, 'all clones would have the same memory', hint);
    }
  }
};

const isFolder = (path: string): boolean => fs.statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;

/** Ids of drives and nodes whose device says that others may write as well, or that only reads; of those that have one. */
const sparedDrives = (template: readonly string[]): ReadonlySet<unknown> =>
  new Set(
    [...optionArguments(template, ['device'], 'driver')]
      .filter(({ values }) => isOn(values.get('share-rw')) || READ_ONLY_DEVICES.test(String(values.get('driver'))))
      .map(({ values }) => values.get('drive'))
      .filter((drive) => drive !== undefined),
  );

/**
 * Whether a leaf of the block graph is another medium for each clone. That a node, a drive or a helper of it has another name
 * for each does not make it that.
 */
const isNumbered = (leaf: Properties): boolean => {
  const { filename, ...rest } = leaf;
  const medium = filename ?? Object.entries(rest).filter(([key]) => !NAMES.test(key));
  return JSON.stringify(medium).includes(NUMBER);
};

const refuseSharedDrives = (template: readonly string[], count: number): void => {
  const spared = sparedDrives(template);
  for (const option of DISK_OPTIONS) {
    for (const { index } of optionArguments(template, [option], 'file')) {
      if (!template[index]!.includes(NUMBER)) {
        refuseDisk(option, template[index]!, overlaysOf(template[index]!, count));
      }
    }
  }
  for (const { index, values } of optionArguments(template, ['drive'], 'file')) {
    const properties = nested(values);
    const { file } = properties;
    const below: Properties = typeof file === 'object' ? (file as Properties) : { filename: file };
    const isReadOnly =
      [values.get('readonly'), values.get('read-only'), values.get('snapshot')].some(isOn) ||
      values.get('media') === 'cdrom';
    const isNull = [properties['driver'], below['driver'], below['filename']].some((name) =>
      /^null-/.test(String(name)),
    );
    if (file !== undefined && !isReadOnly && !isNull && !spared.has(values.get('id')) && !isNumbered(below)) {
      refuseDisk('drive', template[index]!, overlaysOf(String(below['filename']), count));
    }
  }
};

/** A `-blockdev`, with the option it stands in. */
interface BlockNode {
  readonly argument: string;
  readonly properties: Properties;
}

const refuseSharedNodes = (template: readonly string[]): void => {
  const nodes = new Map<string, BlockNode>();
  for (const { index, values } of optionArguments(template, ['blockdev'], 'driver')) {
    const argument = template[index]!;
    nodes.set(String(values.get('node-name')), { argument, properties: nested(values) });
  }
  const spared = sparedDrives(template);
  for (const { values } of optionArguments(template, ['device'], 'driver')) {
    const drive = String(values.get('drive'));
    const node = nodes.get(drive);
    if (node !== undefined && !spared.has(drive)) {
      refuseWritten(node.properties, node.argument, nodes, new Set());
    }
  }
};

/** Follows a node to the media that a write to it would reach. */
const refuseWritten = (
  properties: Properties,
  argument: string,
  nodes: ReadonlyMap<string, BlockNode>,
  seen: Set<unknown>,
): void => {
  if (seen.has(properties) || isOn(properties['read-only']) || PRIVATE_DRIVERS.has(String(properties['driver']))) {
    return;
  }
  seen.add(properties);
  let isLeaf = true;
  for (const [key, value] of Object.entries(properties)) {
    const referred = typeof value === 'string' ? nodes.get(value) : undefined;
    const isNode = typeof value === 'object' && value !== null && 'driver' in value;
    // What backs an image is only read.
    if (key !== 'node-name' && (referred !== undefined || isNode)) {
      isLeaf = false;
      if (key !== 'backing') {
        const below = referred ?? { argument, properties: value as Properties };
        refuseWritten(below.properties, below.argument, nodes, seen);
      }
    }
  }
  if (isLeaf && !isNumbered(properties) && !isOff(properties['locking'])) {
    refuseDisk('blockdev', argument);
  }
};

/** `file.filename=x` as QEMU reads it: a property within a property. */
const nested = (values: ReadonlyMap<string, unknown>): Properties => {
  const root: Record<string, unknown> = {};
  for (const [key, value] of values) {
    const path = key.split('.');
    let at = root;
    for (const part of path.slice(0, -1)) {
      const next = at[part];
      at[part] = typeof next === 'object' && next !== null ? next : {};
      at = at[part] as Record<string, unknown>;
    }
    at[path.at(-1)!] = value;
  }
  return root;
};
