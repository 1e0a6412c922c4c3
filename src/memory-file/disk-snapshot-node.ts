// What `savevm` put into a qcow2 disk image, read where it lies.

import fs from 'node:fs';
import { withFile } from '../format/invalid.js';
import { type DiskSnapshot, isQcow2, type Qcow2Disk, readQcow2Disk, VmState } from '../format/qcow2/index.js';
import { RamferryError } from '../memory/errors.js';
import { shellCommand } from '../memory/shell-command.js';
import { type FileReader, openFileReader } from './file-reader-node.js';

/** How many snapshots an error names. */
const NAMED = 5;

const ofFile = <Result>(file: string, call: () => Result): Result => {
  try {
    return call();
  } catch (error) {
    throw withFile(error, file);
  }
};

/**
 * The stream of a snapshot as a file of its own; closes the disk's with it.
 * @param name its tag, or its id where no snapshot has that tag
 * @throws RamferryError `invalid` DISK_IMAGE without a name; `usage` if there is no such snapshot, or it has no memory
 */
export const openDiskSnapshot = (
  reader: FileReader,
  file: string,
  name: string | undefined,
): { readonly reader: FileReader; readonly snapshot: DiskSnapshot } =>
  ofFile(file, () => {
    const disk = readQcow2Disk(reader.readAt, reader.sizeBytes);
    const snapshot = findSnapshot(disk, file, name);
    const state = new VmState(reader.readAt, reader.sizeBytes, disk, snapshot);
    const readAt = (position: number, target: Uint8Array): void => ofFile(file, () => state.readAt(position, target));
    return {
      snapshot,
      reader: {
        readAt,
        readLater: async (position, target) => readAt(position, target),
        sizeBytes: state.sizeBytes,
        isDevice: false,
        close: reader.close,
      },
    };
  });

const findSnapshot = ({ snapshots }: Qcow2Disk, file: string, name: string | undefined): DiskSnapshot => {
  const withMemory = snapshots.filter(({ vmStateBytes }) => vmStateBytes > 0);
  const names = withMemory.map(({ tag }) => tag);
  const listed = names.slice(0, NAMED).join(', ') + (names.length > NAMED ? ', …' : '');
  if (name === undefined) {
    throw new RamferryError('invalid', 'DISK_IMAGE', `${file} is a qcow2 disk image, not a migration stream.`, {
      file,
      offset: 0,
      hint:
        names.length === 0
          ? 'It has no snapshot with memory, as savevm makes them.'
          : `Open one of its snapshots (${listed}): ${shellCommand`ramferry inspect file:${file},snapshot=${names[0]!}`}`,
    });
  }
  const found = snapshots.find(({ tag }) => tag === name) ?? snapshots.find(({ id }) => id === name);
  if (found === undefined || found.vmStateBytes === 0) {
    const what = found === undefined ? `There is no snapshot ${name}` : `Snapshot ${name} is of the disk alone,`;
    const hint = names.length === 0 ? 'no snapshot there has memory' : `there are ${listed}`;
    throw new RamferryError('usage', 'NO_SNAPSHOT', `${what} in ${file}.`, { file, value: name, hint });
  }
  return found;
};

/** The snapshots in a disk image; undefined for what is none, or cannot be looked at twice. */
export const diskSnapshotsOf = (file: string): { readonly disk: Qcow2Disk; readonly fileBytes: number } | undefined => {
  const stat = fs.statSync(file, { throwIfNoEntry: false });
  if (!(stat?.isFile() || stat?.isBlockDevice())) {
    return undefined;
  }
  const reader = openFileReader(file);
  try {
    const { readAt, sizeBytes } = reader;
    const head = new Uint8Array(Math.min(4, sizeBytes));
    readAt(0, head);
    return isQcow2(head)
      ? { disk: ofFile(file, () => readQcow2Disk(readAt, sizeBytes)), fileBytes: sizeBytes }
      : undefined;
  } finally {
    reader.close();
  }
};
