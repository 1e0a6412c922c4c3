// Reads a whole mapped-ram file the simple way, for tests: written from the description of the format, so that an error
// in the product's codec does not hide behind itself.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';

export interface MappedBlock {
  readonly name: string;
  readonly usedLength: number;
  readonly bitmapOffset: number;
  readonly bitmap: Buffer;
  readonly pagesOffset: number;
  /** Whether page n is stored. */
  readonly has: (page: number) => boolean;
  readonly present: number;
  /** The used length, zeros where nothing is stored. */
  readonly content: Buffer;
}

export interface MappedFile {
  readonly machine: string;
  readonly capabilities: readonly string[];
  readonly totalBytes: number;
  readonly blocks: readonly MappedBlock[];
  /** From behind the last pages area to the end of the file. */
  readonly tail: Buffer;
}

export const readMappedFile = (path: string, start = 0): MappedFile => {
  const file = readFileSync(path);
  let at = start;
  const u8 = (): number => file[at++]!;
  const be32 = (): number => file.readUInt32BE((at += 4) - 4);
  const be64 = (): number => Number(file.readBigUInt64BE((at += 8) - 8));
  const text = (length: number): string => file.toString('latin1', at, (at += length));
  const str8 = (): string => text(u8());

  assert.deepEqual([be32(), be32(), u8()], [0x5145564d, 3, 7]);
  const machine = text(be32());
  const capabilities: string[] = [];
  while (file[at] === 5) {
    u8();
    const name = str8();
    assert.equal(be32(), 1);
    if (name === 'configuration/capabilities') {
      for (let count = be32(); count > 0; count -= 1) {
        capabilities.push(str8());
      }
    } else {
      at += name === 'configuration/target-page-bits' ? 4 : 16;
    }
  }
  assert.equal(u8(), 1);
  be32();
  assert.deepEqual([str8(), be32(), be32()], ['ram', 0, 4]);
  const totalBytes = be64() - 4;
  const blocks: MappedBlock[] = [];
  for (let left = totalBytes; left > 0; ) {
    const name = str8();
    const usedLength = be64();
    assert.equal(be32(), 1);
    const pageSize = be64();
    const bitmapOffset = be64();
    const pagesOffset = be64();
    assert.equal(pageSize, 4096);
    assert.equal(bitmapOffset, at);
    assert.equal(pagesOffset % 2 ** 20, 0);
    const pageCount = usedLength / pageSize;
    const bitmap = file.subarray(at, at + 8 * Math.ceil(pageCount / 64));
    const has = (page: number): boolean => (bitmap[page >>> 3]! & (1 << (page & 7))) !== 0;
    const content = Buffer.alloc(usedLength);
    let present = 0;
    for (let page = 0; page < 8 * bitmap.length; page += 1) {
      if (has(page)) {
        assert.ok(page < pageCount, 'MR-24');
        present += 1;
        file.copy(content, page * 4096, pagesOffset + page * 4096, pagesOffset + (page + 1) * 4096);
      }
    }
    blocks.push({ name, usedLength, bitmapOffset, bitmap, pagesOffset, has, present, content });
    left -= usedLength;
    at = pagesOffset + usedLength;
    assert.ok(at <= file.length, 'MR-6');
  }
  return { machine, capabilities, totalBytes, blocks, tail: file.subarray(at) };
};
