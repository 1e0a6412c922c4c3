// `pages` from outside the process, on guests whose every page is known.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import * as zlib from 'node:zlib';
import { runCommand } from '../../test/command.js';
import { mappedRamFile } from '../../test/mapped-ram-builder.js';
import { patternPage, StreamBuilder, type TestRecord, testDevice } from '../../test/streams.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-pages-'));
after(() => fs.rmSync(folder, { recursive: true }));

const PAGE = 4096;

const save = (name: string, bytes: Uint8Array): string => {
  const file = path.join(folder, name);
  fs.writeFileSync(file, bytes);
  return file;
};

const guest = (
  name: string,
  blocks: readonly { readonly name: string; readonly pages: number }[],
  records: readonly TestRecord[],
  pageSize = PAGE,
): string => {
  const builder = new StreamBuilder(1, pageSize)
    .header({ targetPageBits: Math.log2(pageSize) })
    .ramStart(blocks.map(({ name: block, pages }) => ({ name: block, usedLength: pages * pageSize })));
  return save(name, builder.end(records).devices([testDevice('timer', 24)]).bytes);
};

interface Figures {
  readonly presentPages: number;
  readonly zeroPages: number;
  readonly absentPages: number;
  readonly zeroContentPages: number;
  readonly distinctPages: number;
  readonly repeatedPages: number;
  readonly entropyPages: readonly number[];
}

interface Document {
  readonly ram: Figures & { readonly totalBytes: number; readonly pageSize: number };
  readonly blocks: readonly (Figures & { readonly name: string; readonly map?: { readonly entropyBits: number[] } })[];
  readonly repeated: { readonly isExact: boolean; readonly most: readonly object[] };
  readonly compression: {
    readonly isSample: boolean;
    readonly pages: number;
    readonly methods: readonly {
      readonly method: string;
      readonly pagesAtOnce: number;
      readonly compressedBytes: number;
      readonly estimatedBytes: number;
    }[];
    readonly classes: readonly { readonly pages: number; readonly compressedBytes: Readonly<Record<string, number>> }[];
  };
}

const documentOf = async (...args: string[]): Promise<Document> => {
  const { status, stdout, stderr } = await runCommand('pages', '--json', '--quiet', ...args);
  assert.deepEqual([status, stderr], [0, '']);
  return JSON.parse(stdout) as Document;
};

/** Two values in turn: an entropy of 1 bit. */
const twoValues = new Uint8Array(PAGE).map((_, index) => index % 2);
const filled = (byte: number): Uint8Array => new Uint8Array(PAGE).fill(byte);

const contents: readonly (readonly [block: string, page: number, content: Uint8Array | 'zero'])[] = [
  ['pc.ram', 0, patternPage(1)],
  ['pc.ram', 1, 'zero'],
  ['pc.ram', 3, filled(0xcc)],
  ['pc.ram', 4, filled(0xcc)],
  ['pc.ram', 7, filled(0)],
  ['pc.ram', 300, twoValues],
  ['pc.ram', 599, patternPage(1)],
  ['vram', 0, filled(0xcc)],
  ['vram', 2, patternPage(2)],
];
const records = contents.map(
  ([block, page, content]): TestRecord =>
    content === 'zero' ? { block, page, kind: 'zero' } : { block, page, kind: 'normal', content },
);
const blocks = [
  { name: 'pc.ram', pages: 600 },
  { name: 'vram', pages: 4 },
];
const file = guest('guest.mig', blocks, records);

test('counts, entropy and repetitions, by block and in all', async () => {
  const { ram, blocks: ofBlocks, repeated, compression } = await documentOf(file);
  assert.deepEqual(ram, {
    totalBytes: 604 * PAGE,
    pageSize: PAGE,
    presentPages: 8,
    zeroPages: 1,
    absentPages: 595,
    zeroContentPages: 1,
    distinctPages: 4,
    repeatedPages: 3,
    entropyPages: [3, 1, 0, 0, 0, 0, 0, 3],
  });
  assert.deepEqual(
    ofBlocks.map(({ name, presentPages, zeroContentPages, distinctPages, repeatedPages, entropyPages }) => [
      name,
      presentPages,
      zeroContentPages,
      distinctPages,
      repeatedPages,
      entropyPages,
    ]),
    [
      ['pc.ram', 6, 1, 3, 2, [2, 1, 0, 0, 0, 0, 0, 2]],
      ['vram', 2, 0, 1, 1, [1, 0, 0, 0, 0, 0, 0, 1]],
    ],
  );
  assert.deepEqual(repeated, {
    isExact: true,
    most: [
      { block: 'pc.ram', offset: 3 * PAGE, pages: 3, byte: 0xcc },
      { block: 'pc.ram', offset: 0, pages: 2 },
    ],
  });
  assert.deepEqual([compression.isSample, compression.pages], [false, 7]);
});

test('what compresses to what: each page by itself, and all in one', async () => {
  const { compression } = await documentOf(file);
  const withContent = contents.flatMap(([, , content]) =>
    content === 'zero' || content.every((byte) => byte === 0) ? [] : [content],
  );
  const packed = (bytes: Uint8Array): number => Math.min(bytes.length, zlib.deflateSync(bytes, { level: 1 }).length);
  const sum = withContent.reduce((total, content) => total + packed(content), 0);
  assert.deepEqual(
    compression.methods.filter(({ method }) => method === 'zlib').map(({ compressedBytes }) => compressedBytes),
    // Block by block, as they are in the file.
    [sum, packed(Buffer.concat(withContent))],
  );
  // Random pages do not shrink: they count as they are.
  assert.deepEqual([compression.classes[7]!.pages, compression.classes[7]!.compressedBytes['zlib']], [3, 3 * PAGE]);
  assert.equal(compression.classes[1]!.compressedBytes['zlib'], packed(twoValues));
});

test('of many pages a sample is compressed, evenly spread; with --all every one', async () => {
  const [pages, SMALL] = [2500, 1024];
  // The first half compresses to nothing, the second not at all.
  const name = guest(
    'many.mig',
    [{ name: 'pc.ram', pages }],
    Array.from({ length: pages }, (_, page) => ({
      block: 'pc.ram',
      page,
      kind: 'normal',
      content: page < pages / 2 ? new Uint8Array(SMALL).fill(1 + (page % 200)) : patternPage(page, SMALL),
    })),
    SMALL,
  );
  const sample = await documentOf(name);
  const all = await documentOf(name, '--all');
  assert.deepEqual(
    [sample, all].map(({ compression: { isSample, pages: compressed } }) => [isSample, compressed]),
    [
      [true, 2048],
      [false, pages],
    ],
  );
  const share = ({ compression: { methods } }: Document): number => methods[0]!.estimatedBytes / (pages * SMALL);
  assert.equal(all.compression.methods[0]!.estimatedBytes, all.compression.methods[0]!.compressedBytes);
  assert.ok(Math.abs(share(all) - 0.5) < 0.02 && Math.abs(share(sample) - share(all)) < 0.01);
  assert.deepEqual([sample.ram.distinctPages, sample.ram.repeatedPages], [200 + pages / 2, pages / 2 - 200]);
  const { stdout } = await runCommand('pages', name);
  assert.match(stdout, /^compressed {2}sample: 2,048 of 2,500 pages/m);
});

test('the text, with a map', async () => {
  const { status, stdout, stderr } = await runCommand('pages', '--map', file);
  assert.deepEqual([status, stderr], [0, '']);
  assert.match(stdout, /^pc\.ram +6 +1 +593 +1 +2$/m);
  assert.match(stdout, /^all +8 +1 +595 +1 +3$/m);
  assert.match(stdout, /^7 to 8 +\S+ +3 +42\.9 % +100\.0 %/m);
  assert.match(stdout, /^3 pages of 7 with content hold what an earlier one holds \(12\.0 KiB\)\.$/m);
  assert.match(stdout, /^ +3 {2}pc\.ram\+0x3000 {2}all bytes 0xcc$/m);
  assert.match(stdout, /^compressed {2}all 7 pages/m);
  assert.match(stdout, /present, by entropy/);
  const narrow = (await runCommand('pages', file)).stdout.split('\n');
  assert.ok(Math.max(...narrow.map((line) => line.length)) <= 80);
  const { blocks: ofBlocks } = await documentOf('--map', file);
  const bits = ofBlocks[0]!.map!.entropyBits;
  assert.ok(bits[0]! > 7.9 && bits[3] === 0 && bits[300] === 1);
});

test('a mapped-ram file, whose pages have no zero marks', async () => {
  const present = Array.from({ length: 300 }, (_, index) => 2 * index);
  const { bytes } = mappedRamFile([{ name: 'pc.ram', pages: 1000, present, stale: [1] }]);
  const { ram } = await documentOf(save('guest.mapped', bytes));
  assert.deepEqual([ram.presentPages, ram.absentPages, ram.distinctPages, ram.repeatedPages], [300, 700, 300, 0]);
});

test('a guest whose device state is damaged: its memory is all there, and a warning says so', async () => {
  const whole = fs.readFileSync(file);
  const cut = save('cut.mig', whole.subarray(0, whole.indexOf('timer') + 10));
  const { status, stdout, stderr } = await runCommand('pages', '--json', cut);
  assert.equal(status, 0);
  const { ram, warnings } = JSON.parse(stdout) as Document & { readonly warnings: readonly string[] };
  assert.deepEqual(ram, (await documentOf(file)).ram);
  assert.match(warnings[0]!, /^The stream ends in .*at byte \d+\. The memory before it is whole/);
  assert.match(stderr, /^warning: The stream ends in /);
  // Not where pages may be missing.
  const less = save('less.mig', whole.subarray(0, whole.indexOf('timer') - 5000));
  assert.equal((await runCommand('pages', less)).status, 3);
});

test('pages of other sizes; a guest in which nothing is present', async () => {
  const small = guest(
    'small.mig',
    [{ name: 'ram', pages: 16 }],
    [0, 5, 9].map((page) => ({ block: 'ram', page, kind: 'normal', content: patternPage(3, 1024) })),
    1024,
  );
  const { ram } = await documentOf(small);
  assert.deepEqual([ram.pageSize, ram.presentPages, ram.distinctPages, ram.repeatedPages], [1024, 3, 1, 2]);
  const empty = guest('empty.mig', [{ name: 'ram', pages: 16 }], []);
  assert.deepEqual((await documentOf(empty)).ram.distinctPages, 0);
  assert.match((await runCommand('pages', empty)).stdout, /^No page has content\.$/m);
});
