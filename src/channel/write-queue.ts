// Writes that wait for their system call, in order, and the callbacks that give their memory back.

import type { WriteDone, WriteVector } from './channel.js';
import { VectorCursor } from './vector-cursor.js';

/**
 * Bounds of one gathering write. Small pieces share a system call; yet a batch is kept short, because the memory of all
 * its pieces comes back only when all of it is written, and the engine fills the next block meanwhile: two of its four
 * staging slots, of a little over a MiB. With one at a time a conversion takes 5 % longer. Linux takes at most 1024 pieces.
 */
const BATCH_BYTES = 2.25 * 1024 * 1024;
const BATCH_PIECES = 512;

const NOTHING = new Uint8Array(0);

interface QueuedWrite {
  bytes: Uint8Array;
  /** Instead of `bytes`. */
  readonly vector?: VectorCursor;
  readonly done: WriteDone;
}

export class WriteQueue {
  #writes: QueuedWrite[] = [];

  get length(): number {
    return this.#writes.length;
  }

  push(bytes: Uint8Array, done: WriteDone): void {
    this.#writes.push({ bytes, done });
  }

  pushVector(vector: WriteVector, done: WriteDone): void {
    this.#writes.push({ bytes: NOTHING, vector: new VectorCursor(vector), done });
  }

  /** The vector that is next, if one is; stays queued until `vectorCompleted`. */
  get vector(): VectorCursor | undefined {
    return this.#writes[0]?.vector;
  }

  vectorCompleted(): void {
    this.#writes.shift()!.done(undefined);
  }

  /**
   * What the next system call shall write, up to the next vector; stays queued until `completed`. At least one piece if
   * any comes before that.
   */
  batch(): Uint8Array[] {
    const pieces: Uint8Array[] = [];
    let batchBytes = 0;
    for (const { bytes, vector } of this.#writes) {
      batchBytes += bytes.length;
      if (vector !== undefined || pieces.length === BATCH_PIECES || (pieces.length > 0 && batchBytes > BATCH_BYTES)) {
        break;
      }
      pieces.push(bytes);
    }
    return pieces;
  }

  /** `byteCount` bytes from the front were written; the rest of a piece that was written partly stays queued. */
  completed(byteCount: number): void {
    let left = byteCount;
    let count = 0;
    for (const { bytes, vector } of this.#writes) {
      if (vector !== undefined || bytes.length > left) {
        break;
      }
      left -= bytes.length;
      count += 1;
    }
    const written = this.#writes.splice(0, count);
    if (left > 0) {
      const first = this.#writes[0]!;
      first.bytes = first.bytes.subarray(left);
    }
    for (const { done } of written) {
      done(undefined);
    }
  }

  /** Nothing of what is queued will be written. */
  fail(error: Error): void {
    for (const { done } of this.#writes.splice(0)) {
      done(error);
    }
  }
}

export const byteLength = (pieces: readonly Uint8Array[]): number =>
  pieces.reduce((sum, { length }) => sum + length, 0);
