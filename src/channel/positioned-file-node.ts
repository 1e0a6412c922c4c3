// The positioned file on a disk.
//
//   engine's thread ──▶ headers, bitmaps, device state ──▶ descriptor of its own, buffered ─┐
//           │                                                                               ├─▶ the unfinished file
//           └──────────▶ pages ──▶ it, or queue n ──▶ writer thread n ──▶ a descriptor each ┘
//                                                                         (O_DIRECT if wanted)

import fs from 'node:fs';
import { getSystemErrorName } from 'node:util';
import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads';
import { RamferryError } from '../memory/errors.js';
import { type FileOffset, fileOffset } from '../memory/units.js';
import { channelDestroyed, channelError } from './channel-error.js';
import { copyHead } from './copy-head-node.js';
import { OutputFile } from './output-file-node.js';
import { allocatePageWriteQueue, PageWriteQueue } from './page-write-queue.js';
import type { PageWriterData } from './page-writer-thread-node.js';
import type { PositionedFile } from './positioned-file.js';
import { punchHole } from './punch-hole-node.js';
import { writeFully } from './write-fully-node.js';

/** More threads than this only wait for each other. */
const CHANNELS_MAX = 64;

/**
 * So many bytes go to the disk in the background while the next ones are written: or the disk would idle until the last
 * sync, and then everybody wait for it. Here 950 MiB took 1.1 s to the end of the last sync, and 0.55 s so; with 128 MiB at
 * a time it was 0.9 s.
 */
const WRITE_BACK_BYTES = 32 * 1024 * 1024;

export interface PositionedFileOptions {
  /** The first byte to write; what the file holds before it stays. Default 0. */
  readonly start?: number;
  /** Writer threads for pages; 0, the default, writes them in the calling thread. Theirs is memory that is shared. */
  readonly channels?: number;
  /** Pages bypass the page cache: they must lie at multiples of a page in memory and in the file. Default false. */
  readonly directIo?: boolean;
}

/** Starts a file that shall be `path`. Rejects with a `RamferryError`; then nothing was changed. */
export const openPositionedFile = async (
  path: string,
  options: PositionedFileOptions = {},
): Promise<PositionedFile> => {
  const { start = 0, channels = 0, directIo = false } = options;
  if (!(Number.isInteger(channels) && channels >= 0 && channels <= CHANNELS_MAX)) {
    throw new RamferryError('usage', 'CHANNELS', `A file has 0 to ${CHANNELS_MAX} channels, not ${channels}.`, {
      value: channels,
    });
  }
  const output = OutputFile.open(path);
  const flags = fs.constants.O_WRONLY | (directIo ? fs.constants.O_DIRECT : 0);
  let direct: number | undefined;
  try {
    if (start > 0) {
      copyHead(path, output.descriptor, start);
    }
    direct = directIo ? fs.openSync(output.currentPath, flags) : undefined;
  } catch (error) {
    output.abort();
    throw directIo && (error as NodeJS.ErrnoException).code === 'EINVAL'
      ? new RamferryError('failed', 'DIRECT_IO', `The file system of ${path} does not support direct I/O.`, {
          file: path,
          cause: error,
        })
      : channelError(error, 'write', path);
  }
  const file = new DiskFile(output, fileOffset(start), direct);
  file.startWriters(channels, flags);
  return file;
};

/** The positioned file that an output file becomes; it owns it from now on. A thread of its own writes the pages. */
export const positionedFile = (output: OutputFile): PositionedFile => {
  const file = new DiskFile(output, fileOffset(0), undefined);
  file.startWriters(1, fs.constants.O_WRONLY);
  return file;
};

const ZEROS = new Uint8Array(64 * 1024);

/** The runs of pieces of 64 KiB that are not all zero. */
const runsOfContent = (bytes: Uint8Array): [start: number, end: number][] => {
  const runs: [number, number][] = [];
  for (let at = 0; at < bytes.length; at += ZEROS.length) {
    const end = Math.min(at + ZEROS.length, bytes.length);
    if (Buffer.compare(bytes.subarray(at, end), ZEROS.subarray(0, end - at)) === 0) {
      continue;
    }
    const last = runs.at(-1);
    if (last?.[1] === at) {
      last[1] = end;
    } else {
      runs.push([at, end]);
    }
  }
  return runs;
};

/** A writer thread as the engine's thread sees it. */
class PageWriter {
  readonly queue: PageWriteQueue;
  readonly #memories: MessagePort;

  private constructor(queue: PageWriteQueue, memories: MessagePort) {
    this.queue = queue;
    this.#memories = memories;
  }

  static async start(path: string, flags: number): Promise<PageWriter> {
    const shared = allocatePageWriteQueue();
    const { port1, port2 } = new MessageChannel();
    const workerData: PageWriterData = { path, flags, queue: shared, memories: port2 };
    const worker = new Worker(new URL('./page-writer-thread-node.js', import.meta.url), {
      workerData,
      transferList: [port2],
      name: 'page writer',
    });
    await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
    worker.unref();
    port1.unref();
    return new PageWriter(new PageWriteQueue(shared), port1);
  }

  /** The next number goes to this memory. */
  introduce(memory: ArrayBufferLike): void {
    this.#memories.postMessage(memory);
  }

  close(): void {
    this.queue.close();
  }
}

class DiskFile implements PositionedFile {
  readonly name: string;
  readonly start: FileOffset;
  readonly #output: OutputFile;
  /** Bypasses the page cache: the engine's thread writes pages with it while there are no writer threads. */
  readonly #direct: number | undefined;
  readonly #writers: PageWriter[] = [];
  /** What kept a writer thread from starting. */
  #startError: unknown;
  /** Memories the writer threads know, and under which numbers. */
  readonly #memories = new Map<ArrayBufferLike, number>();
  #isOpen = true;
  #writersClosed = false;
  /** Given since the last sync in the background began. */
  #dirtyBytes = 0;
  #sync: Promise<void> | undefined;
  /** The system tells an error of writing back only once. */
  #syncError: unknown;

  constructor(output: OutputFile, start: FileOffset, direct: number | undefined) {
    this.name = output.path;
    this.start = start;
    this.#output = output;
    this.#direct = direct;
  }

  /** Nobody waits for a thread that starts, which takes as long as writing 50 MiB: it takes part from when it is there. */
  startWriters(count: number, flags: number): void {
    for (let writer = 0; writer < count; writer += 1) {
      this.#join(PageWriter.start(this.#output.currentPath, flags));
    }
  }

  #join(starting: Promise<PageWriter>): void {
    starting.then(
      (writer) => {
        if (this.#writersClosed) {
          writer.close();
          return;
        }
        for (const memory of this.#memories.keys()) {
          writer.introduce(memory);
        }
        this.#writers.push(writer);
      },
      (error) => {
        this.#startError ??= error;
      },
    );
  }

  get pendingBytes(): number {
    return this.#writers.reduce((sum, { queue }) => sum + queue.pendingBytes, 0);
  }

  write(bytes: Uint8Array, position: number): void {
    this.#write(this.#output.descriptor, bytes, 0, bytes.length, position);
  }

  writeOnce(bytes: Uint8Array, position: number): void {
    if (this.#output.isNew) {
      for (const [start, end] of runsOfContent(bytes)) {
        this.#write(this.#output.descriptor, bytes, start, end - start, position + start);
      }
    } else {
      this.write(bytes, position);
    }
  }

  writePages(bytes: Uint8Array, at: number, length: number, position: number): void {
    if (this.#writers.length === 0) {
      this.#write(this.#direct ?? this.#output.descriptor, bytes, at, length, position);
    } else {
      this.#throwIfBroken();
      const idlest = this.#writers.reduce((a, b) => (b.queue.length < a.queue.length ? b : a));
      idlest.queue.push(this.#numberOf(bytes.buffer), bytes.byteOffset + at, length, position);
    }
    this.#dirtyBytes += length;
    if (this.#dirtyBytes >= WRITE_BACK_BYTES && this.#sync === undefined && this.#direct === undefined) {
      this.#dirtyBytes = 0;
      this.#sync = this.#writeBack();
    }
  }

  /** Never rejects. An abort does not wait for it: then its descriptor may be gone, and its error is nobody's. */
  #writeBack(): Promise<void> {
    return new Promise((resolve) => {
      fs.fdatasync(this.#output.descriptor, (error) => {
        // What has no disk behind it cannot be synced, and need not.
        this.#syncError ??= error?.code === 'EINVAL' ? undefined : (error ?? undefined);
        this.#sync = undefined;
        resolve();
      });
    });
  }

  barrier(): void {
    // Of an aborted file nothing will be written any more.
    this.#throwIfBroken();
    for (const { queue } of this.#writers) {
      queue.drain();
    }
    this.#throwIfBroken();
  }

  read(target: Uint8Array, position: number): void {
    this.#throwIfBroken();
    try {
      for (let done = 0; done < target.length; ) {
        const count = fs.readSync(this.#output.descriptor, target, done, target.length - done, position + done);
        if (count === 0) {
          throw Object.assign(new Error('the file is shorter than what was written to it'), { code: 'EIO' });
        }
        done += count;
      }
    } catch (error) {
      throw channelError(error, 'read back', this.name);
    }
  }

  punchHole(position: number, length: number): void {
    this.#throwIfBroken();
    punchHole(this.#output.descriptor, position, length);
  }

  async commit(renamed?: () => void): Promise<void> {
    this.barrier();
    this.#closeWriters();
    await this.#sync;
    this.#throwIfBroken();
    await this.#output.commit(renamed);
    this.#isOpen = false;
  }

  abort(): void {
    if (this.#isOpen) {
      this.#isOpen = false;
      this.#closeWriters();
      this.#output.abort();
    }
  }

  #closeWriters(): void {
    if (this.#writersClosed) {
      return;
    }
    this.#writersClosed = true;
    for (const writer of this.#writers) {
      writer.close();
    }
    if (this.#direct !== undefined) {
      fs.closeSync(this.#direct);
    }
  }

  #write(descriptor: number, bytes: Uint8Array, at: number, length: number, position: number): void {
    this.#throwIfBroken();
    try {
      writeFully(descriptor, bytes, at, length, position);
    } catch (error) {
      throw channelError(error, 'write', this.name);
    }
  }

  #numberOf(memory: ArrayBufferLike): number {
    const known = this.#memories.get(memory);
    if (known !== undefined) {
      return known;
    }
    const number = this.#memories.size;
    this.#memories.set(memory, number);
    for (const writer of this.#writers) {
      writer.introduce(memory);
    }
    return number;
  }

  #throwIfBroken(): void {
    if (!this.#isOpen) {
      throw channelDestroyed(this.name);
    }
    const error = this.#syncError ?? this.#startError;
    if (error !== undefined) {
      throw channelError(error, 'write', this.name);
    }
    for (const { queue } of this.#writers) {
      const { errno } = queue;
      if (errno !== 0) {
        throw channelError({ code: getSystemErrorName(errno) }, 'write', this.name);
      }
    }
  }
}
