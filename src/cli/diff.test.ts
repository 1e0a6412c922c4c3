// `diff` from outside the process: the same memory in different forms, and every kind of difference.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { type CommandResult, runCommand } from '../../test/command.js';
import { patternPage, richStream, StreamBuilder, type TestRecord, testDevice } from '../../test/streams.js';
import type { DeviceState } from '../format/stream/device-tail.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-diff-'));
after(() => fs.rmSync(folder, { recursive: true }));

const save = (name: string, bytes: Uint8Array): string => {
  const file = path.join(folder, name);
  fs.writeFileSync(file, bytes);
  return file;
};

const PAGES = 600;

interface Content {
  readonly machine?: string;
  readonly pages?: number;
  readonly records?: readonly TestRecord[];
  readonly extraBlock?: string;
  readonly devices?: readonly DeviceState[];
}

const page = (index: number, seed: number): TestRecord => ({
  block: 'pc.ram',
  page: index,
  kind: 'normal',
  content: patternPage(seed),
});

const guest = (
  name: string,
  { machine = 'pc', pages = PAGES, records = [], extraBlock, devices = [testDevice('cpu', 50)] }: Content,
): string => {
  const blocks = ['pc.ram', ...(extraBlock === undefined ? [] : [extraBlock])];
  const builder = new StreamBuilder()
    .header({ machine })
    .ramStart(blocks.map((block) => ({ name: block, usedLength: pages * 4096 })));
  return save(name, builder.end(records).devices(devices).bytes);
};

interface Document {
  readonly a: string;
  readonly b: string;
  readonly equal: boolean;
  readonly machine?: { readonly a: string; readonly b: string };
  readonly blocks: readonly { readonly name: string; readonly ranges: readonly (readonly number[])[] }[];
  readonly onlyInA: readonly string[];
  readonly onlyInB: readonly string[];
  readonly devices: readonly object[];
  readonly error?: { readonly code: string; readonly message: string };
}

const diff = async (a: string, b: string): Promise<{ result: CommandResult; document: Document }> => {
  const result = await runCommand('diff', '--json', a, b);
  return { result, document: JSON.parse(result.stdout) as Document };
};

test('equal: the same content, stored as content, as zero marks, again, or not at all', async () => {
  const a = guest('equal-a', { records: [page(3, 1), page(3, 2), { block: 'pc.ram', page: 9, kind: 'zero' }] });
  const zeroes: TestRecord = { block: 'pc.ram', page: 300, kind: 'normal', content: new Uint8Array(4096) };
  const b = guest('equal-b', { records: [zeroes, page(3, 2)] });
  const { result, document } = await diff(a, b);
  assert.deepEqual([result.status, result.stderr], [0, '']);
  assert.deepEqual(document, {
    a,
    b,
    equal: true,
    blocks: [{ name: 'pc.ram', pages: PAGES, differing: 0, ranges: [], rangeCount: 0 }],
    onlyInA: [],
    onlyInB: [],
    elsewhere: [],
    devices: [],
  });
  assert.match((await runCommand('diff', a, b)).stdout, /: equal\n/);
});

test('ranges: pages side by side are one, across the pieces that are read at a time too; status 1', async () => {
  const changed = [0, 254, 255, 256, 257, 300, 511, 512, 599];
  const a = guest('ranges-a', { records: [page(5, 5), page(255, 7)] });
  const b = guest('ranges-b', { records: [page(5, 5), ...changed.map((index) => page(index, index + 1000))] });
  const ranges = [
    [0, 0],
    [254, 257],
    [300, 300],
    [511, 512],
    [599, 599],
  ];
  for (const [left, right] of [
    [a, b],
    [b, a],
  ] as const) {
    const { result, document } = await diff(left, right);
    assert.equal(result.status, 1);
    assert.equal(document.equal, false);
    assert.equal(document.error?.code, 'FILES_DIFFER');
    assert.deepEqual(document.blocks, [
      { name: 'pc.ram', pages: PAGES, differing: changed.length, ranges, rangeCount: ranges.length },
    ]);
  }
  const { status, stdout, stderr } = await runCommand('diff', a, b);
  assert.equal(status, 1);
  assert.match(stdout, /^ {2}pc\.ram +600 +9 +0, 254-257, 300, 511-512, 599$/m);
  assert.match(stderr, /^ramferry: .* differ: 9 pages\.\n$/m);
});

test('more ranges than are listed: all counted', async () => {
  const records = Array.from({ length: 1100 }, (_, index) => page(2 * index, index));
  const { document } = await diff(
    guest('many-a', { pages: 2200 }),
    guest('many-b', { pages: 2200, records: [...records, page(2199, 1)] }),
  );
  const [block] = document.blocks as unknown as [{ differing: number; ranges: number[][]; rangeCount: number }];
  assert.deepEqual([block.differing, block.rangeCount, block.ranges.length], [1101, 1100, 1000]);
  assert.deepEqual(block.ranges.at(-1), [1998, 1998]);
});

test('blocks of only one file, a longer block, another machine', async () => {
  const a = guest('blocks-a', { extraBlock: 'vga.vram' });
  const b = guest('blocks-b', { extraBlock: 'vmem', pages: PAGES + 40, machine: 'q35' });
  const { result, document } = await diff(a, b);
  assert.equal(result.status, 1);
  assert.deepEqual([document.onlyInA, document.onlyInB], [['vga.vram'], ['vmem']]);
  assert.deepEqual(document.machine, { a: 'pc', b: 'q35' });
  assert.deepEqual(document.blocks, [
    { name: 'pc.ram', pages: PAGES + 40, differing: 40, ranges: [[PAGES, PAGES + 39]], rangeCount: 1 },
  ]);
});

test('device sections, by name and instance', async () => {
  const changed = testDevice('changed', 100);
  const body = changed.body.slice();
  body[77]! ^= 1;
  const same = testDevice('same', 30);
  const a = guest('devices-a', {
    devices: [testDevice('only a', 10), changed, same, testDevice('grown', 20), testDevice('cpu', 9)],
  });
  const b = guest('devices-b', {
    devices: [
      same,
      { ...changed, body },
      { ...testDevice('grown', 20), body: new Uint8Array([...testDevice('grown', 20).body, 1]) },
      { ...testDevice('cpu', 9), version: 2 },
      testDevice('same', 30, 1),
    ],
  });
  const { result, document } = await diff(a, b);
  assert.equal(result.status, 1);
  assert.deepEqual(document.devices, [
    { name: 'only a', instance: 0, difference: 'onlyInA', bytes: 10 },
    { name: 'changed', instance: 0, difference: 'content', bytes: 100, offset: 77 },
    { name: 'grown', instance: 0, difference: 'content', bytes: 21, offset: 20 },
    { name: 'cpu', instance: 0, difference: 'version', bytes: 9 },
    { name: 'same', instance: 1, difference: 'onlyInB', bytes: 30 },
  ]);
  assert.match(document.error!.message, /differ: 5 device sections\.$/);
});

test('a damaged file is not compared: status 3, and which of the two', async () => {
  const { bytes } = richStream();
  const whole = save('whole', bytes);
  const cut = save('cut', bytes.subarray(0, 20_000));
  const result = await runCommand('diff', '--json', whole, cut);
  assert.equal(result.status, 3);
  assert.equal((JSON.parse(result.stdout) as { error: { file: string } }).error.file, cut);
});
