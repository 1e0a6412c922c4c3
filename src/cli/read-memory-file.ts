// Reads a memory file through, for the verbs that tell about one: with a progress line, in slices that leave room for
// Ctrl-C, and so that of a damaged file there is something to tell as well.

import { totalmem } from 'node:os';
import { Option } from 'commander';
import { isUnfinishedOutput } from '../channel/output-file-node.js';
import { type IndexedSoFar, type Snapshot, SnapshotIndexer } from '../format/index.js';
import type { LibvirtImage } from '../format/libvirt/save-image.js';
import type { DiskSnapshot } from '../format/qcow2/index.js';
import { RamferryError } from '../memory/errors.js';
import {
  type OpenedContainer,
  openContainer,
  unfinishedImage,
  type Wrapping,
} from '../memory-file/open-snapshot-file-node.js';
import { inTurns, type Slices } from '../memory-file/slices-node.js';
import { parsePageSize } from './arguments.js';
import type { Invocation } from './verb.js';

/** The file says how large the index gets; what a machine can spare decides how large it may. */
const INDEX_LIMIT_BYTES = totalmem() / 4;

export const INDEX_HELP =
  "\nMemory: 8 bytes for each page in a stream, a bit in a mapped-ram file, at most a quarter of this machine's.";

/** What long work needs of a verb's invocation. */
export type Surroundings = Pick<Invocation<unknown>, 'signal' | 'progress'>;

/** What a verb is told of the files that it reads. */
export interface FileOptions {
  readonly pageSize?: number | undefined;
}

/** What a verb needs of the files that it reads. */
export interface FileNeeds extends FileOptions {
  /** The verb is about memory alone: a file whose device state is damaged is good enough, and a warning says so. */
  readonly memoryOnly?: boolean;
}

/** For verbs that read memory files: `command.addOption(pageSizeOption())`, with `FileOptions` among the verb's own. */
export const pageSizeOption = (): Option =>
  new Option('--page-size <bytes>', 'page size of a stream that does not tell: alpha and sparc64 have 8K').argParser(
    parsePageSize,
  );

/** Shows how far work has come, once it takes long; call what it returns with the bytes that are done. */
export const progressOf = (
  { progress }: Pick<Surroundings, 'progress'>,
  phase: string,
  totalBytes: number,
): ((doneBytes: number) => void) => {
  const start = performance.now();
  return (doneBytes) => {
    const ms = performance.now() - start;
    if (ms > progress.shortWorkMs) {
      progress.update({
        phase,
        totalBytes,
        remainingBytes: totalBytes - doneBytes,
        bytesPerSecond: (doneBytes * 1000) / ms,
      });
    }
  };
};

/** Slices with progress, once they take long. Reject with the reason of the signal. */
export const inSlices = (
  surroundings: Surroundings,
  ...[phase, totalBytes, step]: Parameters<Slices>
): Promise<void> => {
  const onProgress = progressOf(surroundings, phase, totalBytes);
  return inTurns(surroundings.signal, (_phase, _totalBytes, doneBytes) => onProgress(doneBytes))(
    phase,
    totalBytes,
    step,
  );
};

export interface MemoryFile {
  /** Path. */
  readonly file: string;
  /** Bytes of the file. */
  readonly sizeBytes: number;
  /** Set for a libvirt save image. */
  readonly libvirt: LibvirtImage | undefined;
  /** Set for a snapshot inside a disk image. */
  readonly diskSnapshot: DiskSnapshot | undefined;
  /** Around the stream, from the outside in. */
  readonly wrappings: readonly Wrapping[];
  /** Where the stream begins: in the file, or in what was unpacked from it. */
  readonly startOffset: number;
  /** What the file says of itself; of a damaged one, up to the damage. */
  readonly soFar: IndexedSoFar;
  /** Bytes of the stream, and how far it was read; of a mapped-ram file's pages, most only passed by. */
  readonly streamBytes: number;
  readonly readBytes: number;
  /** Undefined if the file is damaged. Readable until `close`. */
  readonly snapshot: Snapshot | undefined;
  /** What is wrong with it. */
  readonly damage: RamferryError | undefined;
  close(): void;
}

/** Finds the stream in a file, with a progress line if it has to be unpacked. */
export const openMemoryFile = (operand: string, surroundings: Surroundings): Promise<OpenedContainer> =>
  openContainer(operand, { signal: surroundings.signal, onProgress: copyingProgress(surroundings) });

/** What shows without reading the stream that it is not whole. */
export const damageAtOnce = (container: OpenedContainer): RamferryError | undefined =>
  unfinishedImage(container) ?? unfinishedOutput(container.file);

/** @throws RamferryError if the file cannot be read, or does not even begin as a memory file */
export const readMemoryFile = async (
  operand: string,
  surroundings: Surroundings,
  options: FileOptions = {},
): Promise<MemoryFile> => indexMemoryFile(await openMemoryFile(operand, surroundings), surroundings, options);

/** Closes the container if it fails. */
const indexMemoryFile = async (
  container: OpenedContainer,
  surroundings: Surroundings,
  { pageSize, memoryOnly }: FileNeeds,
): Promise<MemoryFile> => {
  const { file, fileBytes, libvirt, diskSnapshot, wrappings, readAt, sizeBytes, startOffset, isDevice, close } =
    container;
  try {
    const indexer = new SnapshotIndexer(readAt, sizeBytes, {
      file,
      startOffset,
      isPadded: isDevice,
      indexLimitBytes: INDEX_LIMIT_BYTES,
      ...(pageSize !== undefined && { targetPageSize: pageSize }),
    });
    const streamBytes = sizeBytes - startOffset;
    let snapshot: Snapshot | undefined;
    let damage = damageAtOnce(container);
    try {
      await inSlices(surroundings, 'reading', streamBytes, () => indexer.advance());
      snapshot = indexer.finish();
    } catch (error) {
      if (!(error instanceof RamferryError && error.kind === 'invalid') || indexer.soFar.configuration === undefined) {
        throw damage ?? error;
      }
      snapshot = memoryOnly === true && damage === undefined ? indexer.memoryDespite(error) : undefined;
      if (snapshot === undefined) {
        damage ??= error;
      } else {
        surroundings.progress.note(`warning: ${snapshot.summary.warnings[0]!}`);
      }
    }
    const readBytes = indexer.position - startOffset;
    const { soFar } = indexer;
    return {
      file,
      sizeBytes: fileBytes,
      libvirt,
      diskSnapshot,
      wrappings,
      startOffset,
      soFar,
      streamBytes,
      readBytes,
      snapshot,
      damage,
      close,
    };
  } catch (error) {
    close();
    throw error;
  }
};

/** A save that is under way, or was interrupted: mapped-ram files are as long as good ones then, and may read as such. */
const unfinishedOutput = (file: string): RamferryError | undefined =>
  isUnfinishedOutput(file)
    ? new RamferryError('invalid', 'UNFINISHED_FILE', `${file} was not finished, or is being written.`, {
        file,
        hint: 'A file gets its name when all of it is on the disk. If it is all there is, rename it and try what can be read.',
      })
    : undefined;

/** A memory file that is not damaged. */
export type WholeMemoryFile = MemoryFile & { readonly snapshot: Snapshot };

/** @throws RamferryError as `readMemoryFile`, and if the file is damaged */
export const readWholeMemoryFile = async (
  operand: string,
  surroundings: Surroundings,
  options: FileNeeds = {},
): Promise<WholeMemoryFile> => indexWholeMemoryFile(await openMemoryFile(operand, surroundings), surroundings, options);

/** The same for one that is open; closes it if it is damaged. */
export const indexWholeMemoryFile = async (
  container: OpenedContainer,
  surroundings: Surroundings,
  options: FileNeeds = {},
): Promise<WholeMemoryFile> => {
  const opened = await indexMemoryFile(container, surroundings, options);
  const { snapshot, damage } = opened;
  if (snapshot === undefined || damage !== undefined) {
    opened.close();
    throw damage;
  }
  return { ...opened, snapshot };
};

/** Says how far a temporary copy is, now and then. */
const copyingProgress = ({ progress }: Surroundings): ((packedBytes: number) => void) => {
  const start = performance.now();
  let done = 0;
  return (packedBytes) => {
    done += packedBytes;
    const now = performance.now();
    if (now - start > progress.shortWorkMs) {
      progress.update({ phase: 'copying', bytesPerSecond: (done * 1000) / (now - start) });
    }
  };
};
