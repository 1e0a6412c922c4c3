// Mapped-ram files into memory: any number of threads, memory that held something before, files that cannot be read.

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
for (const threads of [1, 2, 5]) {
  test(`${threads} threads load the same memory, into new blocks and over old ones`, async () => {
    const blocks = RamBlockList.create({ segmentBytes: SEGMENT });
    const { configuration, summary } = await loadMappedRam(file, { blocks, memoryLimit: 2 ** 24, threads });
    assert.deepEqual([configuration.machine.length > 0, summary.tail], [true, guest.tail]);
    assert.deepEqual(content(blocks), expected);
    for (const block of blocks.blocks) {
      block.write(0, new Uint8Array(block.usedLength).fill(0xaa));
    }
    await loadMappedRam(file, { blocks, threads });
    assert.deepEqual(content(blocks), expected);
  });
}

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

test('at an offset, and in a packed image, which no second thread can open', async () => {
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
    await loadMappedRam(operand, { blocks, memoryLimit: 2 ** 24, threads: 4 });
    assert.deepEqual(content(blocks).get('ram'), Buffer.from(moved.memory.get('ram')!));
  }
});

test('what does not fit, is no such file, or cannot be read', async (t) => {
  const blocks = RamBlockList.create({ segmentBytes: SEGMENT });
  await assert.rejects(loadMappedRam(file, { blocks, memoryLimit: 2 ** 20 }), { code: 'MEMORY_LIMIT' });
  await assert.rejects(loadMappedRam(file, { blocks }), { code: 'RAM_GEOMETRY' });
  const stream = save('guest.mig', richStream().bytes);
  await assert.rejects(loadMappedRam(stream, { blocks, memoryLimit: 2 ** 30 }), { code: 'NOT_MAPPED_RAM' });
  // A disk with a bad sector.
  const lastPages = guest.layouts[2]!.pagesOffset;
  const { readSync } = fs;
  const read = (descriptor: number, bytes: Uint8Array, at: number, length: number, position: number): number => {
    if (position >= lastPages && position < lastPages + 3 * 4096) {
      throw Object.assign(new Error('EIO'), { code: 'EIO' });
    }
    return readSync(descriptor, bytes, at, length, position);
  };
  const reads = t.mock.method(fs, 'readSync', read as typeof readSync);
  const fresh = RamBlockList.create({ segmentBytes: SEGMENT });
  await assert.rejects(loadMappedRam(file, { blocks: fresh, memoryLimit: 2 ** 24, threads: 1 }), { code: 'IO_ERROR' });
  assert.ok(reads.mock.callCount() > 0);
});
