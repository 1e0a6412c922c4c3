// Opens a memory file for reading by page, whatever it is: what decides is its content.
//
//   pipe ─▶ a temporary file
//               ▼
//   file ─▶ gzip, zstd?     ─ yes ─▶ unpacked into a temporary file, and looked at anew
//           libvirt image?  ─ yes ─▶ raw, sparse: the data begin at an offset; gzip, zstd: unpacked
//           qcow2 disk?     ─ yes ─▶ the stream of one of its snapshots, read in place
//           anything else?  ─ yes ─▶ an error that says what it is (format/foreign-file.ts)
//               ▼
//          stream or mapped-ram, as the configuration says (format/open-snapshot.ts)
//

import { parseUri } from '../channel/uri.js';
import { beginsStream, FILE_HEAD_BYTES, foreignFile, packingOf } from '../format/foreign-file.js';
import { withFile } from '../format/invalid.js';
import { isLibvirtImage, type LibvirtImage, readLibvirtImage } from '../format/libvirt/save-image.js';
import { openSnapshot } from '../format/open-snapshot.js';
import { type DiskSnapshot, isQcow2 } from '../format/qcow2/index.js';
import type { Snapshot } from '../format/snapshot.js';
import { RamferryError } from '../memory/errors.js';
import { openDiskSnapshot } from './disk-snapshot-node.js';
import { type FileReader, openFileReader } from './file-reader-node.js';
import { readPipe } from './read-pipe-node.js';
import type { CopyOptions } from './unnamed-copy-node.js';
import { unpack } from './unpack-node.js';
// What lies in what is found out layer by layer, each with a FileReader of its own.

/** What a stream is wrapped in. */
export type Wrapping = 'gzip' | 'zstd' | 'libvirt' | 'qcow2';

/** A file packed more often than this was made to waste somebody's time. */
const MOST_WRAPPINGS = 4;

/** A file of which it is known where its stream begins. */
export interface OpenedContainer extends FileReader {
  /** Path. */
  readonly file: string;
  /** Of the file itself, packed or not. */
  readonly fileBytes: number;
  /** Where in what is read the stream begins. */
  readonly startOffset: number;
  /** Around the stream, from the outside in; empty for QEMU's own files. */
  readonly wrappings: readonly Wrapping[];
  /** Set for a libvirt save image. */
  readonly libvirt: LibvirtImage | undefined;
  /** Set for a snapshot inside a disk image. */
  readonly diskSnapshot: DiskSnapshot | undefined;
}

/** How stdin is called, which is `-` on the command line. */
export const STDIN = '/dev/stdin';

/** What an operand names: a file, the byte at which to begin, and of a disk image the snapshot. */
export interface MemoryFileName {
  readonly path: string;
  readonly offset: number;
  readonly snapshot?: string | undefined;
}

export const memoryFile = (operand: string): MemoryFileName => {
  if (operand === '-') {
    return { path: STDIN, offset: 0 };
  }
  if (!operand.startsWith('file:')) {
    return { path: operand, offset: 0 };
  }
  const [, uri, snapshot] = /^(.*?)(?:,snapshot=(.*))?$/s.exec(operand)!;
  const endpoint = parseUri(uri!);
  return endpoint.kind === 'file' ? { ...endpoint, snapshot } : { path: operand, offset: 0 };
};

/**
 * Finds the stream in a file.
 * @param operand a path, `-` for stdin, `file:PATH,offset=N` for a stream that begins at byte N, or
 *   `file:DISK,snapshot=TAG` for one that `savevm` put into a qcow2 disk image
 * @throws RamferryError `invalid` if it is no memory file, `failed` if it cannot be read, `usage` if it is no file
 */
export const openContainer = async (operand: string, options: CopyOptions = {}): Promise<OpenedContainer> => {
  const { path: file, offset, snapshot } = memoryFile(operand);
  let reader = (await readPipe(file, options)) ?? openFileReader(file);
  const fileBytes = reader.sizeBytes;
  const wrappings: Wrapping[] = [];
  let startOffset = offset;
  let libvirt: LibvirtImage | undefined;
  let diskSnapshot: DiskSnapshot | undefined;
  const unpackAs = async (format: string): Promise<void> => {
    const isWrapped = wrappings.at(-1) !== 'libvirt';
    const unpacked = await unpack(
      reader,
      file,
      startOffset,
      format,
      (head) => isWrapped && checkUnpacked(head, file),
      options,
    );
    reader.close();
    reader = unpacked;
    startOffset = 0;
  };
  try {
    for (;;) {
      const head = headOf(reader, startOffset);
      const wrapping = libvirt === undefined ? wrappingOf(head) : undefined;
      if (wrapping === undefined) {
        break;
      }
      wrappings.push(wrapping);
      if (wrappings.length > MOST_WRAPPINGS) {
        const statement = `${file} is packed more than ${MOST_WRAPPINGS} times: ${wrappings.join(' in ')}.`;
        throw new RamferryError('invalid', 'COMPRESSED_DATA', statement, { file });
      }
      if (wrapping === 'libvirt') {
        libvirt = libvirtImage(head, file);
        startOffset += libvirt.dataOffset;
        if (libvirt.format !== 'raw' && libvirt.format !== 'sparse') {
          await unpackAs(libvirt.format);
        }
      } else if (wrapping === 'qcow2') {
        const opened = openDiskSnapshot(reader, file, snapshot);
        reader = opened.reader;
        diskSnapshot = opened.snapshot;
        startOffset = 0;
      } else {
        await unpackAs(wrapping);
      }
    }
    if (libvirt === undefined) {
      refuseForeign(headOf(reader, startOffset), file, wrappings.length > 0);
    }
    if (snapshot !== undefined && diskSnapshot === undefined) {
      throw new RamferryError('usage', 'NOT_A_DISK', `${file} is no qcow2 disk image: it has no snapshots.`, {
        file,
        value: snapshot,
        hint: `leave out snapshot=${snapshot}`,
      });
    }
    return { ...reader, file, fileBytes, startOffset, wrappings, libvirt, diskSnapshot };
  } catch (error) {
    reader.close();
    throw error;
  }
};

const headOf = ({ readAt, sizeBytes }: FileReader, offset: number): Uint8Array => {
  const head = new Uint8Array(Math.max(0, Math.min(FILE_HEAD_BYTES, sizeBytes - offset)));
  readAt(offset, head);
  return head;
};

const wrappingOf = (head: Uint8Array): Wrapping | undefined =>
  isLibvirtImage(head) ? 'libvirt' : isQcow2(head) ? 'qcow2' : packingOf(head);

const refuseForeign = (head: Uint8Array, file: string, isUnpacked: boolean): void => {
  const foreign = foreignFile(head, file, isUnpacked);
  if (foreign !== undefined) {
    throw foreign;
  }
};

/** Refuses what is neither a stream nor wraps one, before all of it is unpacked. */
const checkUnpacked = (head: Uint8Array, file: string): void => {
  if (wrappingOf(head) === undefined && !beginsStream(head)) {
    refuseForeign(head.subarray(0, FILE_HEAD_BYTES), file, true);
    throw new RamferryError('invalid', 'NOT_A_STREAM', `${file}, unpacked, is no migration stream.`, {
      file,
      offset: 0,
    });
  }
};

const libvirtImage = (head: Uint8Array, file: string): LibvirtImage => {
  try {
    return readLibvirtImage(head);
  } catch (error) {
    throw withFile(error, file);
  }
};

/** The error about an image that libvirt did not finish; undefined for any other file. */
export const unfinishedImage = ({ file, libvirt }: OpenedContainer): RamferryError | undefined =>
  libvirt === undefined || libvirt.complete
    ? undefined
    : new RamferryError('invalid', 'LIBVIRT_INCOMPLETE', `${file} is an incomplete libvirt save image, at byte 0.`, {
        file,
        offset: 0,
        hint: 'libvirt marks a save so until it is complete: this one was interrupted.',
      });

export interface OpenedSnapshotFile {
  readonly snapshot: Snapshot;
  readonly container: OpenedContainer;
  close(): void;
}

/**
 * Opens a memory file: a stream is read through once, of a mapped-ram file only the headers.
 * @param operand as for `openContainer`
 * @throws RamferryError `invalid` if it is not whole, `failed` if it cannot be read
 */
export const openSnapshotFile = async (operand: string, options: CopyOptions = {}): Promise<OpenedSnapshotFile> => {
  const container = await openContainer(operand, options);
  const { file, readAt, sizeBytes, startOffset, isDevice, close } = container;
  try {
    const unfinished = unfinishedImage(container);
    if (unfinished !== undefined) {
      throw unfinished;
    }
    return { snapshot: openSnapshot(readAt, sizeBytes, { file, startOffset, isPadded: isDevice }), container, close };
  } catch (error) {
    close();
    throw error;
  }
};
