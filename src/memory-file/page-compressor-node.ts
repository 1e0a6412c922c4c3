// Pages compressed with zlib, each for itself, by threads: a core does some 45 MB/s, which is less than a disk takes.

import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import type { BatchMemory, CompressRequest, PageCompressorThreadData } from './page-compressor-thread-node.js';

/** Bytes of pages in a batch. */
const BATCH_BYTES = 1024 * 1024;
/** One is compressed while the next one is read or the one before is written. */
const BATCHES_PER_THREAD = 2;
/** More do not help: one thread reads and writes for all of them. */
const MOST_THREADS = 16;

/** A batch of pages: `pages` is filled by who claims it; the rest is there when it was compressed. */
export interface CompressorBatch {
  readonly pages: Uint8Array;
  /** The content of the pages, one behind the other. */
  readonly data: Uint8Array;
  /** Bytes of each page's content: 0 if it is zero, those of a page if it does not shrink. */
  readonly lengths: Uint32Array;
}

interface Batch extends CompressorBatch {
  /** Of its thread, which knows it by `number`. */
  readonly worker: Worker;
  readonly number: number;
  settle: { readonly resolve: () => void; readonly reject: (error: Error) => void } | undefined;
}

/**
 * Compresses pages in batches, several at a time. Whoever uses it claims batches and fills them, has them compressed, and takes the
 * results; then it fills them again.
 */
export class PageCompressor {
  readonly #workers: Worker[] = [];
  readonly #free: Batch[] = [];
  readonly #underWay = new Set<Batch>();
  #failure: Error | undefined;

  constructor(pageBytes: number, threads = Math.min(MOST_THREADS, availableParallelism())) {
    for (let thread = 0; thread < threads; thread += 1) {
      const memories = Array.from({ length: BATCHES_PER_THREAD }, () => batchMemory(pageBytes));
      const workerData: PageCompressorThreadData = { pageBytes, batches: memories };
      const worker = new Worker(new URL('./page-compressor-thread-node.js', import.meta.url), { workerData });
      this.#workers.push(worker);
      const batches = memories.map(({ pages, data, lengths }, number): Batch => {
        const views = { pages: new Uint8Array(pages), data: new Uint8Array(data), lengths: new Uint32Array(lengths) };
        return { ...views, worker, number, settle: undefined };
      });
      this.#free.push(...batches);
      worker.on('message', (number: number) => this.#done(batches[number]!));
      worker.on('error', (error) => this.#fail(error));
      worker.on('exit', () => this.#fail(new Error('A thread that compresses pages has ended.')));
    }
    // So that the first batches go to different threads.
    this.#free.sort((a, b) => a.number - b.number);
  }

  /** A batch that was not claimed yet; undefined if there is none. */
  claim(): CompressorBatch | undefined {
    return this.#free.shift();
  }

  /** Compresses the first pages of a batch. Rejects if a thread ends. */
  compress(batch: CompressorBatch, pageCount: number): Promise<void> {
    const own = batch as Batch;
    const done = new Promise<void>((resolve, reject) => {
      if (this.#failure !== undefined) {
        reject(this.#failure);
        return;
      }
      own.settle = { resolve, reject };
      this.#underWay.add(own);
      own.worker.postMessage({ batch: own.number, pageCount } satisfies CompressRequest);
    });
    // Whoever waits for another batch hears of it there.
    done.catch(() => {});
    return done;
  }

  /** Ends the threads; what is under way is not waited for. */
  async close(): Promise<void> {
    await Promise.all(this.#workers.map((worker) => worker.terminate()));
  }

  #done(batch: Batch): void {
    this.#underWay.delete(batch);
    batch.settle?.resolve();
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    for (const { settle } of this.#underWay) {
      settle?.reject(error);
    }
    this.#underWay.clear();
  }
}

const batchMemory = (pageBytes: number): BatchMemory => ({
  pages: new SharedArrayBuffer(BATCH_BYTES),
  data: new SharedArrayBuffer(BATCH_BYTES),
  lengths: new SharedArrayBuffer((BATCH_BYTES / pageBytes) * Uint32Array.BYTES_PER_ELEMENT),
});
