// Page records that follow one another as a source writes them: the next page each, of the same kind. Found by comparing heads
// alone, many at a time; whatever is odd is left to the reader of single records, which names it.

import { be32, be64 } from '../bytes.js';
import { RecordFlag } from './constants.js';

/** Bytes of a record with CONTINUE in front of its content. */
export const HEAD_BYTES = 8;

/** Consecutive pages of one block. One object is used again and again: a run may have a single page. */
export class RecordRun {
  readonly #pageSize: number;
  firstPage = 0;
  pageCount = 0;
  /** Zero marks rather than content. */
  isZero = false;
  /** Bytes from one record to the next. */
  stride = 0;

  constructor(pageSize: number) {
    this.#pageSize = pageSize;
  }

  /**
   * Finds the run at the start of [start, end), of whole records with CONTINUE that lie inside a block of `usedLength` bytes.
   * Returns its length in bytes; 0 if there is none.
   */
  read(bytes: Uint8Array, start: number, end: number, usedLength: number): number {
    const pageSize = this.#pageSize;
    if (end - start <= HEAD_BYTES) {
      return 0;
    }
    const flags = be32(bytes, start + 4) % pageSize;
    const isZero = flags === (RecordFlag.ZERO | RecordFlag.CONTINUE);
    if (!isZero && flags !== (RecordFlag.PAGE | RecordFlag.CONTINUE)) {
      return 0;
    }
    const stride = HEAD_BYTES + (isZero ? 1 : pageSize);
    const first = be64(bytes, start);
    const most = Math.min(Math.floor((end - start) / stride), Math.floor((usedLength - (first - flags)) / pageSize));
    let count = 0;
    for (
      let at = start, head = first;
      count < most && be64(bytes, at) === head && !(isZero && bytes[at + HEAD_BYTES] !== 0);
      at += stride, head += pageSize
    ) {
      count += 1;
    }
    this.firstPage = (first - flags) / pageSize;
    this.pageCount = count;
    this.isZero = isZero;
    this.stride = stride;
    return count * stride;
  }
}
