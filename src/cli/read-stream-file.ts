// Reads a stream file through, for the verbs that tell about one: with a progress line, in slices that leave room for
// Ctrl-C, and so that of a damaged file there is something to tell as well.

import { totalmem } from 'node:os';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { FILE_HEAD_BYTES, foreignFile } from '../format/foreign-file.js';
import { type IndexedSoFar, StreamIndexer, type StreamSnapshot } from '../format/stream/snapshot.js';
import { openFileReader } from '../guest/file-reader-node.js';
import { RamferryError } from '../memory/errors.js';
import type { Invocation } from './verb.js';

/** Large enough that the system call does not matter. */
const READ_BYTES = 1024 * 1024;

/** Work that is over sooner needs no progress line. */
const SILENT_MS = 300;

/** Longest time in which nobody else gets a turn. */
const SLICE_MS = 30;

/** The file says how large the index gets; what a machine can spare decides how large it may. */
const INDEX_LIMIT_BYTES = totalmem() / 4;

export const INDEX_HELP = "\nMemory: 8 bytes for each page in the file, at most a quarter of this machine's.";

type Surroundings = Pick<Invocation<unknown>, 'signal' | 'progress'>;

/**
 * Calls `step`, which returns how many bytes it did, until `totalBytes` are done or it returns 0.
 * Rejects with the reason of the signal.
 */
export const inSlices = async (
  { signal, progress }: Surroundings,
  phase: string,
  totalBytes: number,
  step: () => number,
): Promise<void> => {
  const start = performance.now();
  let sliceEnd = start + SLICE_MS;
  for (let done = 0; done < totalBytes; ) {
    const bytes = step();
    if (bytes === 0) {
      return;
    }
    done += bytes;
    const now = performance.now();
    if (now >= sliceEnd) {
      if (now - start > SILENT_MS) {
        const bytesPerSecond = (done * 1000) / (now - start);
        progress.update({ phase, totalBytes, remainingBytes: totalBytes - done, bytesPerSecond });
      }
      await nextTurn();
      signal.throwIfAborted();
      sliceEnd = performance.now() + SLICE_MS;
    }
  }
};

export interface StreamFile {
  readonly file: string;
  readonly sizeBytes: number;
  /** What the file says of itself; of a damaged one, up to the damage. */
  readonly soFar: IndexedSoFar;
  /** How far it was read. */
  readonly readBytes: number;
  /** Undefined if the file is damaged. Readable until `close`. */
  readonly snapshot: StreamSnapshot | undefined;
  /** What is wrong with it. */
  readonly damage: RamferryError | undefined;
  close(): void;
}

/** @throws RamferryError if the file cannot be read, or does not even begin as a stream */
export const readStreamFile = async (file: string, surroundings: Surroundings): Promise<StreamFile> => {
  const { readAt, sizeBytes, close } = openFileReader(file);
  try {
    const head = new Uint8Array(Math.min(FILE_HEAD_BYTES, sizeBytes));
    readAt(0, head);
    const foreign = foreignFile(head, file);
    if (foreign !== undefined) {
      throw foreign;
    }
    const indexer = new StreamIndexer({ file, indexLimitBytes: INDEX_LIMIT_BYTES });
    const buffer = new Uint8Array(READ_BYTES);
    let snapshot: StreamSnapshot | undefined;
    let damage: RamferryError | undefined;
    try {
      // What a push leaves over is read again with the next piece: with 4 KiB pages, less than half a percent.
      await inSlices(surroundings, 'reading', sizeBytes, () => {
        const piece = buffer.subarray(0, Math.min(READ_BYTES, sizeBytes - indexer.position));
        readAt(indexer.position, piece);
        const consumed = indexer.push(piece);
        return indexer.done || indexer.position + piece.length - consumed === sizeBytes ? 0 : consumed;
      });
      snapshot = indexer.finish(readAt, sizeBytes - indexer.position);
    } catch (error) {
      if (!(error instanceof RamferryError && error.kind === 'invalid') || indexer.soFar.configuration === undefined) {
        throw error;
      }
      damage = error;
    }
    return { file, sizeBytes, soFar: indexer.soFar, readBytes: indexer.position, snapshot, damage, close };
  } catch (error) {
    close();
    throw error;
  }
};
