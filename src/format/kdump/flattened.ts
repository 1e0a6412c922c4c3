// The flattened form of a dump, for what has no positions, like a pipe: a header, then pieces of the file in any order, each behind
// its offset and length. crash and drgn read it as it is; `makedumpfile -R` makes the file of it. Big-endian on every machine.

import { ByteWriter } from '../byte-writer.js';

const SIGNATURE = 'makedumpfile';
const SIGNATURE_BYTES = 16;
const TYPE = 1;
const VERSION = 1;

export const FLATTENED_HEAD_BYTES = 4096;

export const flattenedHead = (): Uint8Array => {
  const bytes = new Uint8Array(FLATTENED_HEAD_BYTES);
  const fields = new ByteWriter().bytes(new TextEncoder().encode(SIGNATURE.padEnd(SIGNATURE_BYTES, '\0')));
  bytes.set(fields.be64(TYPE).be64(VERSION).copy());
  return bytes;
};

/** What stands before a piece. */
export const flattenedPiece = (position: number, bytes: number): Uint8Array =>
  new ByteWriter().be64(position).be64(bytes).copy();

/** What stands behind the last piece: an offset and a length of -1. */
export const flattenedEnd = (): Uint8Array => new Uint8Array(16).fill(0xff);
