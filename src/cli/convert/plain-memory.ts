// Any memory file to guest memory as it is, for tools that know nothing of migration: raw, or an ELF core.

import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import type { ByteChannel } from '../../channel/channel.js';
import { channelError } from '../../channel/channel-error.js';
import { OutputFile } from '../../channel/output-file-node.js';
import { writeFully } from '../../channel/write-fully-node.js';
import { elfCore } from '../../format/elf-core.js';
import type { Snapshot } from '../../format/index.js';
import { physicalMap } from '../../format/physical-map.js';
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

/** Blocks as one file, one behind the other from `position` on, with `head` before them. */
interface OneFile {
  readonly blocks: readonly ReadRamBlock[];
  readonly head: Uint8Array;
  readonly position: number;
}

const writeBlocks = async (conversion: Conversion, content: OneFile): Promise<Written> => {
  const { snapshot, out, surroundings } = conversion;
  const { blocks, head } = content;
  if (isStdout(out)) {
    const channel = openStdout();
    const written = await writeInOrder(conversion, content, (bytes) => writeToChannel(channel, bytes));
    await channel.end();
    return written;
  }
  const output = OutputFile.open(out);
  const { descriptor } = output;
  try {
    if (!output.isNew) {
      // A device holds what somebody else has left there, and a pipe has no positions.
      const written = await writeInOrder(conversion, content, (bytes) => appendFully(descriptor, bytes, out));
      await output.commit();
      return written;
    }
    try {
      writeFully(descriptor, head, 0, head.length, 0);
    } catch (error) {
      throw channelError(error, 'write', out);
    }
    let { position } = content;
    const copies = blocks.map(({ index, usedLength }) => {
      const copy = { block: index, descriptor, file: out, position };
      position += usedLength;
      return copy;
    });
    const ramBytes = await copySparsely(snapshot, copies, (...slice) => inSlices(surroundings, ...slice));
    surroundings.progress.update({ phase: 'syncing the file' });
    await output.commit();
    return { blocks: blocks.map(nameAndLength), fileBytes: head.length + ramBytes };
  } finally {
    output.abort();
  }
};

/** The same for what is written from its beginning to its end, zeros included. */
const writeInOrder = async (
  { snapshot, surroundings }: Conversion,
  { blocks, head, position }: OneFile,
  write: (bytes: Uint8Array) => Promise<void>,
): Promise<Written> => {
  const { signal, progress } = surroundings;
  const start = performance.now();
  await write(head);
  await write(new Uint8Array(position - head.length));
  const totalBytes = blocks.reduce((sum, { usedLength }) => sum + usedLength, 0);
  let before = 0;
  for (const { index, usedLength } of blocks) {
    await copyDensely(snapshot, index, write, {
      signal,
      onProgress: (done) => {
        const elapsed = performance.now() - start;
        if (elapsed > SILENT_MS) {
          const bytesPerSecond = ((before + done) * 1000) / elapsed;
          const remainingBytes = totalBytes - before - done;
          progress.update({ phase: 'writing', totalBytes, remainingBytes, bytesPerSecond });
        }
      },
    });
    before += usedLength;
  }
  return { blocks: blocks.map(nameAndLength), fileBytes: position + totalBytes };
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
    : writeBlocks(conversion, {
        blocks: [blockNamed(conversion.snapshot, conversion.block, conversion.file)],
        head: new Uint8Array(),
        position: 0,
      });

/** All memory of the guest, or one block, by guest-physical address. */
export const writeElf = async (conversion: Conversion): Promise<Written> => {
  const { snapshot, file, block: name, places } = conversion;
  const { machine } = snapshot.configuration;
  const one = name === undefined ? undefined : blockNamed(snapshot, name, file);
  const map = physicalMap(snapshot, places);
  if (one === undefined) {
    map.requireMemory();
  }
  const placed = one === undefined ? map.ranges : map.rangesOf(one.index);
  const isPlaced = new Set(placed.map(({ block }) => block));
  const blocks = snapshot.setup.blocks.filter(({ index }) => isPlaced.has(index));
  const positions = new Map<number, number>();
  let position = 0;
  for (const { index, usedLength } of blocks) {
    positions.set(index, position);
    position += usedLength;
  }
  const segments = placed.map(({ block, address, offset, bytes }) => ({
    address,
    offset: positions.get(block)! + offset,
    bytes,
  }));
  const { head, ramOffset } = elfCore(
    machine,
    segments.sort((a, b) => a.address - b.address),
  );
  const written = await writeBlocks(conversion, { blocks, head, position: ramOffset });
  const nameOf = (block: number): string => snapshot.setup.blocks[block]!.name;
  return {
    ...written,
    ranges: placed.map(({ block, address, offset, bytes }) => ({ block: nameOf(block), address, offset, bytes })),
    ...(one === undefined && {
      leftOut: map.unplaced.map(({ block, reason }) => ({ block: nameOf(block), reason })),
    }),
  };
};
