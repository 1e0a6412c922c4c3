// One file of guest memory and what tools want to read around it: sparse where it is a file of its own, in order where it is stdout,
// a pipe or a device.

import fs from 'node:fs';
import { promisify } from 'node:util';
import type { ByteChannel } from '../../channel/channel.js';
import { channelError } from '../../channel/channel-error.js';
import { OutputFile } from '../../channel/output-file-node.js';
import { writeFully } from '../../channel/write-fully-node.js';
import { refuseElsewhere } from '../../format/elsewhere.js';
import { copyDensely } from '../../guest/dense-copy-node.js';
import { copySparsely } from '../../guest/sparse-copy-node.js';
import { inSlices, SILENT_MS } from '../read-memory-file.js';
import { isStdout, openStdout } from '../stdout-output.js';
import type { Conversion } from './conversion.js';

const writeSome = promisify(fs.write);

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
  const { heads, memory } = content;
  refuseElsewhere(
    snapshot,
    memory.map(({ block }) => block),
  );
  if (isStdout(out)) {
    const channel = openStdout();
    const fileBytes = await writeInOrder(conversion, content, (bytes) => writeToChannel(channel, bytes));
    await channel.end();
    return fileBytes;
  }
  const output = OutputFile.open(out);
  const { descriptor } = output;
  try {
    if (!output.isNew) {
      // A device holds what somebody else has left there, and a pipe has no positions.
      const fileBytes = await writeInOrder(conversion, content, (bytes) => appendFully(descriptor, bytes, out));
      await output.commit();
      return fileBytes;
    }
    let headBytes = 0;
    for (const { content: bytes, position } of heads) {
      try {
        writeFully(descriptor, bytes, 0, bytes.length, position);
      } catch (error) {
        throw channelError(error, 'write', out);
      }
      headBytes += bytes.length;
    }
    const copies = memory.map((part) => ({ ...part, descriptor, file: out }));
    const ramBytes = await copySparsely(snapshot, copies, (...slice) => inSlices(surroundings, ...slice));
    surroundings.progress.update({ phase: 'syncing the file' });
    await output.commit();
    return headBytes + ramBytes;
  } finally {
    output.abort();
  }
};

/** The same for what is written from its beginning to its end, zeros included. */
const writeInOrder = async (
  { snapshot, surroundings }: Conversion,
  { heads, memory }: OneFile,
  write: (bytes: Uint8Array) => Promise<void>,
): Promise<number> => {
  const { signal, progress } = surroundings;
  const start = performance.now();
  const parts = [...heads, ...memory].sort((a, b) => a.position - b.position);
  const totalBytes = Math.max(0, ...parts.map((part) => part.position + bytesOf(part)));
  const onProgress = (done: number): void => {
    const elapsed = performance.now() - start;
    if (elapsed > SILENT_MS) {
      const bytesPerSecond = (done * 1000) / elapsed;
      progress.update({ phase: 'writing', totalBytes, remainingBytes: totalBytes - done, bytesPerSecond });
    }
  };
  const zeros = new Uint8Array(GAP_BYTES);
  let position = 0;
  for (const part of parts) {
    while (position < part.position) {
      const gap = zeros.subarray(0, Math.min(GAP_BYTES, part.position - position));
      await write(gap);
      signal.throwIfAborted();
      position += gap.length;
      onProgress(position);
    }
    if ('content' in part) {
      await write(part.content);
    } else {
      await copyDensely(snapshot, part, write, { signal, onProgress: (done) => onProgress(part.position + done) });
    }
    position += bytesOf(part);
  }
  return totalBytes;
};

const bytesOf = (part: HeadPart | MemoryPart): number => ('content' in part ? part.content.length : part.bytes);

const writeToChannel = (channel: ByteChannel, bytes: Uint8Array): Promise<void> =>
  new Promise((resolve, reject) => {
    channel.write(bytes, (error) => (error === undefined ? resolve() : reject(error)));
  });

/** Writes where the descriptor stands. */
const appendFully = async (descriptor: number, bytes: Uint8Array, file: string): Promise<void> => {
  try {
    for (let at = 0; at < bytes.length; ) {
      at += (await writeSome(descriptor, bytes, at)).bytesWritten;
    }
  } catch (error) {
    throw channelError(error, 'write', file);
  }
};
