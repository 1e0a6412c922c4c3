// One file of guest memory and what tools want to read around it: sparse where it is a file of its own, else in order.

import { channelError } from '../../channel/channel-error.js';
import { OutputFile } from '../../channel/output-file-node.js';
import { writeFully } from '../../channel/write-fully-node.js';
import { refuseElsewhere } from '../../format/elsewhere.js';
import { copyDensely } from '../../memory-file/dense-copy-node.js';
import { copySparsely } from '../../memory-file/sparse-copy-node.js';
import { inSlices, progressOf } from '../read-memory-file.js';
import type { Conversion } from './conversion.js';
import { openOutput, type SequentialOutput } from './open-output.js';

/** Whole pages [offset, offset + bytes) of a block, and the file offset that they go to. */
export interface MemoryPart {
  readonly position: number;
  /** Position in `setup.blocks`. */
  readonly block: number;
  readonly offset: number;
  readonly bytes: number;
}

/** Bytes that are not guest memory, and the file offset that they go to. */
export interface HeadPart {
  readonly position: number;
  readonly content: Uint8Array;
}

/** What a file is made of. Parts may come in any order and do not overlap; what is between them is zero. */
export interface OneFile {
  readonly heads: readonly HeadPart[];
  readonly memory: readonly MemoryPart[];
}

/** Zeros of a gap that are written at a time. */
const GAP_BYTES = 1024 * 1024;

/** Writes the file; resolves with the number of bytes that took space. */
export const writeOneFile = async (conversion: Conversion, content: OneFile): Promise<number> => {
  const { snapshot, out, surroundings } = conversion;
  refuseElsewhere(
    snapshot,
    content.memory.map(({ block }) => block),
  );
  const output = openOutput(out);
  try {
    const fileBytes =
      output instanceof OutputFile
        ? await writeSparsely(conversion, content, output)
        : await writeInOrder(conversion, content, output);
    surroundings.progress.update({ phase: 'syncing the file' });
    await output.commit();
    return fileBytes;
  } finally {
    output.abort();
  }
};

const writeSparsely = async (
  { snapshot, out, surroundings }: Conversion,
  { heads, memory }: OneFile,
  { descriptor }: OutputFile,
): Promise<number> => {
  let headBytes = 0;
  for (const { content, position } of heads) {
    try {
      writeFully(descriptor, content, 0, content.length, position);
    } catch (error) {
      throw channelError(error, 'write', out);
    }
    headBytes += content.length;
  }
  const copies = memory.map((part) => ({ ...part, descriptor, file: out }));
  const ramBytes = await copySparsely(snapshot, copies, (...slice) => inSlices(surroundings, ...slice));
  return headBytes + ramBytes;
};

/** The same for what is written from its beginning to its end, zeros included. */
const writeInOrder = async (
  { snapshot, surroundings }: Conversion,
  { heads, memory }: OneFile,
  output: SequentialOutput,
): Promise<number> => {
  const { signal } = surroundings;
  const parts = [...heads, ...memory].sort((a, b) => a.position - b.position);
  const totalBytes = Math.max(0, ...parts.map((part) => part.position + bytesOf(part)));
  const onProgress = progressOf(surroundings, 'writing', totalBytes);
  const zeros = new Uint8Array(GAP_BYTES);
  let position = 0;
  for (const part of parts) {
    while (position < part.position) {
      const gap = zeros.subarray(0, Math.min(GAP_BYTES, part.position - position));
      await output.write(gap);
      signal.throwIfAborted();
      position += gap.length;
      onProgress(position);
    }
    if ('content' in part) {
      await output.write(part.content);
    } else {
      await copyDensely(snapshot, part, (bytes) => output.write(bytes), {
        signal,
        onProgress: (done) => onProgress(part.position + done),
      });
    }
    position += bytesOf(part);
  }
  return totalBytes;
};

const bytesOf = (part: HeadPart | MemoryPart): number => ('content' in part ? part.content.length : part.bytes);
