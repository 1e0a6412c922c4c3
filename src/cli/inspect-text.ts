// What people read of `inspect`.

import type { PageCounts } from '../format/snapshot.js';
import { type Align, formatBytes, formatCount, formatTable } from './format.js';
import type { BlockDocument, DiskSnapshotDocument, MemoryDocument } from './memory-document.js';
import { oneLine } from './safe-text.js';
import type { Colors } from './terminal.js';

/** A table with a heading that stands out. Coloured after it is aligned: escape sequences have no width. */
const table = (
  heading: readonly string[],
  rows: readonly string[][],
  align: readonly Align[],
  colors: Colors,
): string => {
  const [first, ...rest] = formatTable([[...heading], ...rows], align).split('\n');
  return [colors.bold(first!), ...rest].join('\n');
};

export const plural = (count: number, noun: string): string => `${formatCount(count)} ${noun}${count === 1 ? '' : 's'}`;

/** The file in a few lines. */
export const headText = (document: MemoryDocument, fileBytes: number, colors: Colors): string => {
  const { file, libvirt, format, streamVersion, complete, machine, uuid, capabilities, ram, blocks, devices } =
    document;
  const { memoryDevices, packed, snapshot } = document;
  const kind = format === 'stream' ? 'migration stream' : `${format} file`;
  const state = complete ? 'complete' : colors.red('not complete');
  const deviceBytes = devices.reduce((sum, { bytes }) => sum + bytes, 0);
  const rows: (string[] | undefined)[] = [
    libvirt && [
      'libvirt',
      `save image, ${libvirt.format}, of a guest that was ${libvirt.wasRunning ? 'running' : 'paused'}`,
    ],
    snapshot && ['snapshot', `${oneLine(snapshot.tag)}, made ${snapshot.date}, in a qcow2 disk image`],
    packed === undefined ? undefined : ['packed', packed],
    ['machine', machine],
    uuid === undefined ? undefined : ['uuid', uuid],
    ['capabilities', capabilities.length === 0 ? 'none' : capabilities.join(', ')],
    ram && [
      'memory',
      `${formatBytes(ram.totalBytes)} in ${plural(blocks.length, 'block')}, pages of ${ram.pageSize} bytes`,
    ],
    ram && ['pages', pagesText(ram, ram.pageSize)],
    devices.length === 0
      ? undefined
      : ['device state', `${plural(devices.length, 'section')}, ${formatBytes(deviceBytes)}`],
    ...(memoryDevices ?? []).map(({ name, regionSize, blockSize, pluggedSize }) => [
      'virtio-mem',
      `${name}: ${formatBytes(pluggedSize)} plugged of ${formatBytes(regionSize)}, in blocks of ${formatBytes(blockSize)}`,
    ]),
    ['file', `${formatCount(fileBytes)} bytes`],
  ];
  const lines = formatTable(
    rows.filter((row) => row !== undefined).map(([name, value]) => [`  ${name}`, value!]),
    ['left', 'left'],
  );
  return `${colors.bold(file)}: QEMU ${kind}, version ${streamVersion}, ${state}\n\n${lines}`;
};

export const pagesText = ({ presentPages, zeroPages, absentPages }: PageCounts, pageSize: number): string =>
  `${formatCount(presentPages)} present (${formatBytes(presentPages * pageSize)}), ` +
  `${formatCount(zeroPages)} zero, ${formatCount(absentPages)} absent`;

export const blockText = (blocks: readonly BlockDocument[], colors: Colors): string =>
  table(
    ['RAM block', 'used length', 'pages', 'present', 'zero', 'absent'],
    blocks.map(({ name, usedLength, pageSize, presentPages, zeroPages, absentPages }) => [
      name,
      formatBytes(usedLength),
      ...[usedLength / pageSize, presentPages, zeroPages, absentPages].map(formatCount),
    ]),
    ['left', 'right', 'right', 'right', 'right', 'right'],
    colors,
  );

export const digestText = (
  blocks: readonly BlockDocument[],
  digests: readonly (string | undefined)[],
  colors: Colors,
): string =>
  table(
    ['SHA-256', 'RAM block'],
    blocks.map(({ name }, index) => [digests[index] ?? 'not in the file', name]),
    ['left', 'left'],
    colors,
  );

export const deviceText = ({ devices }: Pick<MemoryDocument, 'devices'>, colors: Colors): string =>
  devices.length === 0
    ? ''
    : table(
        ['section', 'device', 'instance', 'version', 'offset', 'bytes'],
        devices.map(({ section, name, instance, version, offset, bytes }) => [
          ...[String(section), name, String(instance), String(version)],
          ...[`0x${offset.toString(16)}`, formatCount(bytes)],
        ]),
        ['right', 'left', 'right', 'right', 'right', 'right'],
        colors,
      );

/** The snapshots in a disk image, and how one is opened. */
export const diskText = (file: string, snapshots: readonly DiskSnapshotDocument[], colors: Colors): string => {
  const head = `${colors.bold(file)}: qcow2 disk image, ${plural(snapshots.length, 'snapshot')}\n`;
  if (snapshots.length === 0) {
    return head;
  }
  const rows = snapshots.map(({ id, tag, vmStateBytes, date, 'vm-clock-ms': clockMs }) => [
    `  ${oneLine(id)}`,
    oneLine(tag),
    vmStateBytes === 0 ? 'none' : formatBytes(vmStateBytes),
    date.slice(0, 19).replace('T', ' '),
    `${formatCount(Math.round(clockMs / 1000))} s`,
  ]);
  const heading = ['  id', 'tag', 'memory', 'made (UTC)', 'guest ran'];
  const memory = snapshots.find(({ vmStateBytes }) => vmStateBytes > 0);
  const hint = memory && `\nOne of them is opened as file:${file},snapshot=${oneLine(memory.tag)}\n`;
  return [head, table(heading, rows, ['left', 'left', 'right', 'left', 'right'], colors), hint ?? ''].join('\n');
};
