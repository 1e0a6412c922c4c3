// FILE.digest as verbs that write files have it. What is in it: memory-file/digest-sidecar-node.ts.

import fs from 'node:fs';
import type { Snapshot } from '../format/snapshot.js';
import { checkSidecar, type DigestCheck } from '../memory-file/check-digest-sidecar-node.js';
import { sidecarPath } from '../memory-file/digest-sidecar-node.js';
import { refuseForeignSidecar } from '../memory-file/write-digest-sidecar-node.js';
import { inSlices, type MemoryFile, type Surroundings } from './read-memory-file.js';
import { isStdout, STDOUT } from './stdout-output.js';

export const NO_DIGEST_HELP = 'do not write OUT.digest, which verify and send check the file against';

/** Whether an output can have a sidecar: a device or a pipe cannot. */
export const hasSidecar = (out: string): boolean => !isStdout(out) && fs.statSync(out).isFile();

/** What a run writes that makes `out`, for `FilesOfRun`. */
export const outputsWithSidecar = (out: string, hasDigest: boolean): string[] =>
  isStdout(out) ? [STDOUT] : hasDigest ? [out, sidecarPath(out)] : [out];

/**
 * Refuses an output whose sidecar would replace a file that is no digest, before anything is written.
 * @throws RamferryError `FILE_EXISTS`
 */
export const refuseForeignOutput = (out: string): void => {
  if (!isStdout(out)) {
    refuseForeignSidecar(out);
  }
};

/** Compares an opened file with its sidecar, with progress; resolves with undefined if it has none. */
export const checkDigest = (
  { file, sizeBytes, wrappings }: MemoryFile,
  snapshot: Snapshot,
  surroundings: Surroundings,
): Promise<DigestCheck | undefined> =>
  checkSidecar({ file, fileBytes: sizeBytes, wrappings }, snapshot, (...slices) => inSlices(surroundings, ...slices));
