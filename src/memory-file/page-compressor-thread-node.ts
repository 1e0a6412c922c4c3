// A thread of PageCompressor: takes batches of pages, and leaves each page's content behind that of the page before it.

import { parentPort, workerData } from 'node:worker_threads';
import { deflateSync } from 'node:zlib';

/** Memory of a batch, shared between the threads. */
export interface BatchMemory {
  /** Pages, one behind the other. */
  readonly pages: SharedArrayBuffer;
  /** Their content, one behind the other. */
  readonly data: SharedArrayBuffer;
  /** Bytes of each page's content, as 32-bit numbers: 0 if it is zero, those of a page if it does not shrink. */
  readonly lengths: SharedArrayBuffer;
}

export interface PageCompressorThreadData {
  readonly pageBytes: number;
  readonly batches: readonly BatchMemory[];
}

/** What a thread is told; it answers with the number of the batch. */
export interface CompressRequest {
  readonly batch: number;
  readonly pageCount: number;
}

/**
 * The fastest level, as in dumps of others. A window that holds a page, and tables to match, are set up faster and stay in the
 * cache: a tenth less time.
 */
const OPTIONS = { level: 1, windowBits: 13, memLevel: 6 };

const { pageBytes, batches } = workerData as PageCompressorThreadData;
const zeroPage = Buffer.alloc(pageBytes);

const compress = ({ batch, pageCount }: CompressRequest): void => {
  const memory = batches[batch]!;
  const pages = Buffer.from(memory.pages);
  const data = Buffer.from(memory.data);
  const lengths = new Uint32Array(memory.lengths);
  let end = 0;
  for (let page = 0; page < pageCount; page += 1) {
    const content = pages.subarray(page * pageBytes, (page + 1) * pageBytes);
    if (content.equals(zeroPage)) {
      lengths[page] = 0;
      continue;
    }
    // Node has no other door to zlib than one that makes an object for each piece; that is a tenth of the time.
    const compressed = deflateSync(content, OPTIONS);
    const smaller = compressed.length < pageBytes ? compressed : content;
    data.set(smaller, end);
    lengths[page] = smaller.length;
    end += smaller.length;
  }
};

parentPort!.on('message', (request: CompressRequest) => {
  compress(request);
  parentPort!.postMessage(request.batch);
});
