// What ties a mapped-ram file to its digest sidecar: files of one guest are all of the same size, so that a newer one
// under the same name could be taken for the older one, damaged. 32 characters stand where nobody reads: in the hole
// between the bitmap of the first block and its pages. QEMU and others that write the file anew do not write them.

import { type FileOffset, fileOffset } from '../../memory/units.js';
import type { ReadAt } from '../snapshot.js';
import type { MappedRamLayout } from './layout.js';

const LABEL = 'ramferry digest ';
const BYTES = 32;

type WriteAt = (bytes: Uint8Array, position: number) => void;

type Hole = Pick<MappedRamLayout, 'bitmapOffset' | 'bitmapBytes' | 'pagesOffset'>;

/** Undefined where the hole is too small, as with one bitmap in some thousands, or there is none. */
const positionIn = ({ bitmapOffset, bitmapBytes, pagesOffset }: Hole): FileOffset | undefined => {
  const position = bitmapOffset + bitmapBytes;
  return bitmapBytes > 0 && position + BYTES <= pagesOffset ? fileOffset(position) : undefined;
};

/** Makes a file carry the fingerprint (16 characters); returns whether it has room for it. */
export const writeFingerprint = (first: Hole | undefined, fingerprint: string, write: WriteAt): boolean => {
  const position = first && positionIn(first);
  if (position === undefined) {
    return false;
  }
  write(new TextEncoder().encode(LABEL + fingerprint), position);
  return true;
};

/** The fingerprint that a file carries, if any. */
export const readFingerprint = (first: Hole | undefined, readAt: ReadAt): string | undefined => {
  const position = first && positionIn(first);
  if (position === undefined) {
    return undefined;
  }
  const bytes = new Uint8Array(BYTES);
  readAt(position, bytes);
  const text = String.fromCharCode(...bytes);
  return text.startsWith(LABEL) ? text.slice(LABEL.length) : undefined;
};
