// Mapped-ram files into memory: any number of reads at a time, memory that held something before, files that cannot be read.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { libvirtHead } from '../../test/libvirt-images.js';
import { mappedRamFile } from '../../test/mapped-ram-builder.js';
import { richStream } from '../../test/streams.js';
import { RamBlockList } from '../memory/ram-block-list.js';
import { loadMappedRam } from './load-mapped-ram-node.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-load-'));
after(() => fs.rmSync(folder, { recursive: true }));

const save = (name: string, ...parts: Uint8Array[]): string => {
  const file = path.join(folder, name);
  fs.writeFileSync(file, Buffer.concat(parts));
  return file;
};

const SEGMENT = 4 * 2 ** 20;
const PAGES = 2500;

/** Larger than two segments; runs across their ends, single pages, stale ones; a last word that is not full. */
const present = Array.from({ length: PAGES }, (_, page) => page).filter(
  (page) => page < 300 || (page > 900 && page < 1300) || page % 7 === 0 || page === PAGES - 1,
);
const guest = mappedRamFile([
  { name: 'pc.ram', pages: PAGES, present, stale: [301, 303] },
  { name: 'empty', pages: 700 },
  { name: 'pc.rom', pages: 3, present: [1], stale: [2] },
]);
const file = save('guest.mapped', guest.bytes);

const content = (blocks: RamBlockList): Map<string, Buffer> =>
  new Map(blocks.blocks.map((block) => [block.name, Buffer.from(block.read(0, block.usedLength))]));
const expected = new Map([...guest.memory].map(([name, bytes]) => [name, Buffer.from(bytes)]));

// MR-15, MR-16
for (const reads of [1, 2, 5]) {
  test(`${reads} reads at a time load the same memory, into new blocks and over old ones`, async () => {
    const blocks = RamBlockList.create({ segmentBytes: SEGMENT });
    const { configuration, summary } = await loadMappedRam(file, { blocks, memoryLimit: 2 ** 24, reads });
    assert.deepEqual([configuration.machine.length > 0, summary.tail], [true, guest.tail]);
    assert.deepEqual(content(blocks), expected);
    for (const block of blocks.blocks) {
      block.write(0, new Uint8Array(block.usedLength).fill(0xaa));
    }
    await loadMappedRam(file, { blocks, reads });
    assert.deepEqual(content(blocks), expected);
  });
}

test('a guest that is being migrated is not loaded over, and one that is being loaded is not migrated', async () => {
  const blocks = RamBlockList.create({ segmentBytes: SEGMENT });
  const loading = loadMappedRam(file, { blocks, memoryLimit: 2 ** 24 });
  while (blocks.blocks.length === 0) {
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.throws(() => blocks.claim('migration'), { code: 'GUEST_BUSY' });
  await loading;
  const claim = blocks.claim('migration');
  blocks.find('pc.ram')!.write(0, Uint8Array.of(1, 2, 3));
  await assert.rejects(loadMappedRam(file, { blocks }), {
    code: 'GUEST_BUSY',
    message: /while a migration of the guest/,
  });
  assert.deepEqual(blocks.find('pc.ram')!.read(0, 3), Uint8Array.of(1, 2, 3));
  claim.release();
});

test('loaded pages count as written, others do not: a stream may follow', async () => {
  const blocks = RamBlockList.create({ segmentBytes: SEGMENT });
  await loadMappedRam(file, { blocks, memoryLimit: 2 ** 24 });
  const block = blocks.find('pc.ram')!;
  for (let page = 0; page < PAGES; page += 1) {
    const { segment, address, firstPage } = block.extentOf(page);
    const bit = address / 4096 + page - firstPage;
    const isWritten = (segment.words[segment.writtenBitmap / 4 + (bit >>> 5)]! & (1 << (bit & 31))) !== 0;
    assert.equal(isWritten, present.includes(page), `page ${page}`);
  }
});

test('at an offset, and in a packed image', async () => {
  const moved = mappedRamFile([{ name: 'ram', pages: 20, present: [3, 4] }], { start: 5000 });
  for (const operand of [
    `file:${save('moved.mapped', moved.bytes)},offset=5000`,
    save(
      'gzip.save',
      libvirtHead({ format: 1 }),
      gzipSync(mappedRamFile([{ name: 'ram', pages: 20, present: [3, 4] }]).bytes),
    ),
  ]) {
    const blocks = RamBlockList.create({ segmentBytes: SEGMENT });
    await loadMappedRam(operand, { blocks, memoryLimit: 2 ** 24 });
    assert.deepEqual(content(blocks).get('ram'), Buffer.from(moved.memory.get('ram')!));
  }
});

test('what does not fit, is no such file, or cannot be read', async () => {
  const blocks = RamBlockList.create({ segmentBytes: SEGMENT });
  await assert.rejects(loadMappedRam(file, { blocks, memoryLimit: 2 ** 20 }), { code: 'MEMORY_LIMIT' });
  await assert.rejects(loadMappedRam(file, { blocks }), { code: 'RAM_GEOMETRY' });
  const stream = save('guest.mig', richStream().bytes);
  await assert.rejects(loadMappedRam(stream, { blocks, memoryLimit: 2 ** 30 }), { code: 'NOT_MAPPED_RAM' });
});

type Read = (
  descriptor: number,
  bytes: Uint8Array,
  at: number,
  length: number,
  position: number,
  end: (error: NodeJS.ErrnoException | null, count: number) => void,
) => void;

// Of single pages, which are read at once, and of runs, which other threads read.
for (const { what, block } of [
  { what: 'a page', block: 2 },
  { what: 'a run', block: 0 },
]) {
  test(`${what} that cannot be read is the end, once nothing is being read any more`, async (t) => {
    const { pagesOffset } = guest.layouts[block]!;
    const { read, readSync } = fs;
    const isBad = (position: number): boolean => position >= pagesOffset && position < pagesOffset + 3 * 4096;
    const eio = Object.assign(new Error('EIO'), { code: 'EIO' });
    let reading = 0;
    let done = 0;
    t.mock.method(fs, 'readSync', ((
      descriptor: number,
      bytes: Uint8Array,
      at: number,
      length: number,
      position: number,
    ) => {
      if (isBad(position)) {
        throw eio;
      }
      return readSync(descriptor, bytes, at, length, position);
    }) as typeof readSync);
    t.mock.method(fs, 'read', ((...[descriptor, bytes, at, length, position, end]: Parameters<Read>) => {
      if (isBad(position)) {
        setImmediate(end, eio, 0);
        return;
      }
      reading += 1;
      // In pieces, and slowly.
      read(descriptor, bytes, at, Math.min(length, 100_000), position, (error, count) => {
        setTimeout(() => {
          reading -= 1;
          done += 1;
          end(error, count);
        }, 5);
      });
    }) as unknown as typeof read);
    const blocks = RamBlockList.create({ segmentBytes: SEGMENT });
    await assert.rejects(loadMappedRam(file, { blocks, memoryLimit: 2 ** 24 }), { code: 'IO_ERROR', file });
    assert.deepEqual([reading, done > 0], [0, true]);
  });
}

test('a file that becomes shorter while it is read', async (t) => {
  const { read } = fs;
  t.mock.method(fs, 'read', ((...[descriptor, bytes, at, , position, end]: Parameters<Read>) =>
    read(descriptor, bytes, at, 0, position, end)) as unknown as typeof read);
  const blocks = RamBlockList.create({ segmentBytes: SEGMENT });
  await assert.rejects(loadMappedRam(file, { blocks, memoryLimit: 2 ** 24 }), {
    code: 'FILE_CHANGED',
    offset: guest.layouts[0]!.pagesOffset,
  });
});

test('given up', async () => {
  const blocks = RamBlockList.create({ segmentBytes: SEGMENT });
  const signal = AbortSignal.abort();
  await assert.rejects(loadMappedRam(file, { blocks, memoryLimit: 2 ** 24, signal }), { name: 'AbortError' });
});
