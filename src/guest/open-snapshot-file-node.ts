// Opens a memory file for reading by page, whatever it is: what decides is its content.
//
//   pipe ─▶ a temporary file
//               ▼
//   file ─▶ libvirt image? ─ yes ─▶ raw, sparse: the data begin at an offset
//               │                   gzip, zstd:  unpacked into a temporary file
//               no                  others:      an error that names the program
//               ▼                        ▼
//          stream or mapped-ram, as the configuration says (format/open-snapshot.ts)

import { parseUri } from '../channel/uri.js';
import { FILE_HEAD_BYTES, foreignFile } from '../format/foreign-file.js';
import { withFile } from '../format/invalid.js';
import { isLibvirtImage, type LibvirtImage, readLibvirtImage } from '../format/libvirt/save-image.js';
import { openSnapshot } from '../format/open-snapshot.js';
import type { Snapshot } from '../format/snapshot.js';
import { RamferryError } from '../memory/errors.js';
import { type FileReader, openFileReader } from './file-reader-node.js';
import { readPipe } from './read-pipe-node.js';
import type { CopyOptions } from './unnamed-copy-node.js';
import { unpack } from './unpack-node.js';

/** A file of which it is known where its stream begins. */
export interface OpenedContainer extends FileReader {
  /** Path. */
  readonly file: string;
  /** Of the file itself, packed or not. */
  readonly fileBytes: number;
  /** Where in what is read the stream begins. */
  readonly startOffset: number;
  /** Set for a libvirt save image. */
  readonly libvirt: LibvirtImage | undefined;
}

/** How stdin is called, which is `-` on the command line. */
export const STDIN = '/dev/stdin';

/** The file that an operand names, and the byte at which to begin. */
export const memoryFile = (operand: string): { readonly path: string; readonly offset: number } => {
  if (operand === '-') {
    return { path: STDIN, offset: 0 };
  }
  const endpoint = operand.startsWith('file:') ? parseUri(operand) : undefined;
  return endpoint?.kind === 'file' ? endpoint : { path: operand, offset: 0 };
};

/**
 * Finds the stream in a file.
 * @param operand a path, `-` for stdin, or `file:PATH,offset=N` for a stream that begins at byte N
 * @throws RamferryError `invalid` if it is no memory file, `failed` if it cannot be read, `usage` if it is no file
 */
export const openContainer = async (operand: string, options: CopyOptions = {}): Promise<OpenedContainer> => {
  const { path: file, offset } = memoryFile(operand);
  const reader = (await readPipe(file, options)) ?? openFileReader(file);
  try {
    const found = findStream(reader, file, offset);
    const { libvirt, startOffset } = found;
    const fileBytes = reader.sizeBytes;
    if (libvirt === undefined || libvirt.format === 'raw' || libvirt.format === 'sparse') {
      return { ...reader, file, fileBytes, startOffset, libvirt };
    }
    const unpacked = await unpack(reader, file, startOffset, libvirt.format, options);
    reader.close();
    return { ...unpacked, file, fileBytes, startOffset: 0, libvirt };
  } catch (error) {
    reader.close();
    throw error;
  }
};

const findStream = (
  { readAt, sizeBytes }: FileReader,
  file: string,
  offset: number,
): { readonly startOffset: number; readonly libvirt: LibvirtImage | undefined } => {
  const head = new Uint8Array(Math.max(0, Math.min(FILE_HEAD_BYTES, sizeBytes - offset)));
  readAt(offset, head);
  if (isLibvirtImage(head)) {
    const libvirt = libvirtImage(head, file);
    return { startOffset: offset + libvirt.dataOffset, libvirt };
  }
  const foreign = foreignFile(head, file);
  if (foreign !== undefined) {
    throw foreign;
  }
  return { startOffset: offset, libvirt: undefined };
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
