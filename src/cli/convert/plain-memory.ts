// Any memory file to guest memory as it is, for tools that know nothing of migration: raw, or an ELF core.

import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import type { ByteChannel } from '../../channel/channel.js';
import { channelError } from '../../channel/channel-error.js';
import { OutputFile } from '../../channel/output-file-node.js';
import { writeFully } from '../../channel/write-fully-node.js';
import { elfCore, pcMemoryLayout } from '../../format/elf-core.js';
import type { Snapshot } from '../../format/index.js';
import type { ReadRamBlock } from '../../format/stream/stream-handler.js';
import { copyDensely } from '../../guest/dense-copy-node.js';
import { copySparsely } from '../../guest/sparse-copy-node.js';
import { RamferryError } from '../../memory/errors.js';
import { OutputFolder } from '../output-folder.js';
import { inSlices, SILENT_MS } from '../read-memory-file.js';
import { isStdout, openStdout, refuseUnorderedStdout } from '../stdout-output.js';
import { type Conversion, nameAndLength, type Written } from './conversion.js';

const writeSome = promisify(fs.write);

/** @throws RamferryError `usage`, naming the blocks that there are */
const blockNamed = ({ setup }: Snapshot, name: string, file: string): ReadRamBlock => {
  const block = setup.blocks.find((candidate) => candidate.name === name);
  if (block === undefined) {
    const names = setup.blocks.map((candidate) => candidate.name).join(', ');
    throw new RamferryError('usage', 'NO_SUCH_BLOCK', `${file} has no RAM block "${name}".`, {
      file,
      value: name,
      hint: `its RAM blocks are: ${names}`,
    });
  }
  return block;
};

/** What the file of a block is called: characters that are no good in file names stand as %XX, so names stay apart. */
export const rawFileName = (block: string): string =>
  `${block.replace(/[^\w@.:-]/g, (character) => `%${character.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`)}.raw`;

const writeRawFolder = async ({ snapshot, out, surroundings }: Conversion): Promise<Written> => {
  refuseUnorderedStdout(out, 'raw, of all RAM blocks,', 'one block can be: name it with --block');
  const folder = OutputFolder.open(out);
  try {
    const blocks = snapshot.setup.blocks.map((block) => ({ ...nameAndLength(block), file: rawFileName(block.name) }));
    const copies = blocks.map(({ file }, block) => ({
      block,
      descriptor: folder.create(file),
      file: path.join(out, file),
      position: 0,
    }));
    const fileBytes = await copySparsely(snapshot, copies, (...slice) => inSlices(surroundings, ...slice));
    surroundings.progress.update({ phase: 'syncing the files' });
    folder.commit();
    return { blocks, fileBytes };
  } finally {
    folder.abort();
  }
};

/** One block as one file, with `head` before it. */
const writeBlock = async (
  conversion: Conversion,
  block: ReadRamBlock,
  head: Uint8Array,
  position: number,
): Promise<Written> => {
  const { snapshot, out, surroundings } = conversion;
  if (isStdout(out)) {
    const channel = openStdout();
    const written = await writeInOrder(conversion, block, head, position, (bytes) => writeToChannel(channel, bytes));
    await channel.end();
    return written;
  }
  const output = OutputFile.open(out);
  const { descriptor } = output;
  try {
    if (!output.isNew) {
      // A device holds what somebody else has left there, and a pipe has no positions.
      const written = await writeInOrder(conversion, block, head, position, (bytes) =>
        appendFully(descriptor, bytes, out),
      );
      await output.commit();
      return written;
    }
    try {
      writeFully(descriptor, head, 0, head.length, 0);
    } catch (error) {
      throw channelError(error, 'write', out);
    }
    const copies = [{ block: block.index, descriptor, file: out, position }];
    const ramBytes = await copySparsely(snapshot, copies, (...slice) => inSlices(surroundings, ...slice));
    surroundings.progress.update({ phase: 'syncing the file' });
    await output.commit();
    return { blocks: [nameAndLength(block)], fileBytes: head.length + ramBytes };
  } finally {
    output.abort();
  }
};

/** The same for what is written from its beginning to its end, zeros included. */
const writeInOrder = async (
  { snapshot, surroundings }: Conversion,
  block: ReadRamBlock,
  head: Uint8Array,
  position: number,
  write: (bytes: Uint8Array) => Promise<void>,
): Promise<Written> => {
  const { signal, progress } = surroundings;
  const start = performance.now();
  await write(head);
  await write(new Uint8Array(position - head.length));
  const totalBytes = block.usedLength;
  await copyDensely(snapshot, block.index, write, {
    signal,
    onProgress: (done) => {
      const elapsed = performance.now() - start;
      if (elapsed > SILENT_MS) {
        const bytesPerSecond = (done * 1000) / elapsed;
        progress.update({ phase: 'writing', totalBytes, remainingBytes: totalBytes - done, bytesPerSecond });
      }
    },
  });
  return { blocks: [nameAndLength(block)], fileBytes: position + totalBytes };
};

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

export const writeRaw = (conversion: Conversion): Promise<Written> =>
  conversion.block === undefined
    ? writeRawFolder(conversion)
    : writeBlock(conversion, blockNamed(conversion.snapshot, conversion.block, conversion.file), new Uint8Array(), 0);

export const writeElf = async (conversion: Conversion): Promise<Written> => {
  const { snapshot, file, block: name = 'pc.ram' } = conversion;
  const { machine } = snapshot.configuration;
  const block = blockNamed(snapshot, name, file);
  const ranges = pcMemoryLayout(machine, block.usedLength);
  const { head, ramOffset } = elfCore(machine, ranges);
  return { ...(await writeBlock(conversion, block, head, ramOffset)), ranges };
};
