// Opens a stream file for reading by page.

import { openStream, type StreamSnapshot } from '../format/stream/snapshot.js';
import { openFileReader } from './file-reader-node.js';

export interface OpenedStreamFile {
  readonly snapshot: StreamSnapshot;
  /** Bytes of the file. */
  readonly sizeBytes: number;
  close(): void;
}

/**
 * Reads the file through once to index it.
 * @throws RamferryError `invalid` if it is not a whole stream, `failed` if it cannot be read
 */
export function openStreamFile(file: string): OpenedStreamFile {
  const { readAt, sizeBytes, close } = openFileReader(file);
  try {
    return { snapshot: openStream(readAt, sizeBytes, { file }), sizeBytes, close };
  } catch (error) {
    close();
    throw error;
  }
}
