import assert from 'node:assert/strict';
import { test } from 'node:test';
import { patternPage, StreamBuilder, type TestRecord } from '../../test/streams.js';
import { openSnapshot, type Snapshot } from '../format/index.js';
import { pageMap, pageMapText } from './page-map.js';
import { terminalText } from './safe-text.js';
import { createColors } from './terminal.js';

const PAGE = 4096;
const MIB = 2 ** 20;
const plain = createColors(false);
const content = patternPage(1);

const snapshotOf = (blocks: { name: string; usedLength: number }[], records: TestRecord[]): Snapshot => {
  const { bytes } = new StreamBuilder().header().ramStart(blocks).end(records).devices([]);
  return openSnapshot((at, target) => target.set(bytes.subarray(at, at + target.length)), bytes.length);
};

/** Pages [first, end) of a block. */
const run = (block: string, first: number, end: number, kind: 'zero' | 'normal' = 'normal'): TestRecord[] =>
  Array.from({ length: end - first }, (_, index) =>
    kind === 'zero' ? { block, page: first + index, kind } : { block, page: first + index, kind, content },
  );

test('a picture of a guest: density, zero marks, nothing; small blocks in a line; empty ones in words', () => {
  const snapshot = snapshotOf(
    [
      { name: 'pc.ram', usedLength: 8 * MIB },
      { name: 'vga.vram', usedLength: MIB },
      { name: 'vmem0', usedLength: 4 * MIB },
      { name: 'pc.bios', usedLength: 3 * PAGE },
      { name: 'rom', usedLength: PAGE },
    ],
    [
      // Cells of 2 pages, lines of 64 cells.
      ...run('pc.ram', 0, 128),
      ...run('pc.ram', 128, 129),
      ...run('pc.ram', 130, 192, 'zero'),
      ...run('vga.vram', 0, 256, 'zero'),
      ...run('pc.bios', 0, 3),
      ...run('rom', 0, 1, 'zero'),
    ],
  );
  const map = pageMap(snapshot, 80);
  assert.equal(map.pagesPerCell, 2);
  assert.deepEqual(map.blocks[0]?.cells[64], { presentPages: 1, zeroPages: 0, absentPages: 1 });
  assert.deepEqual(map.blocks[3]?.cells[1], { presentPages: 1, zeroPages: 0, absentPages: 0 });
  const lines = pageMapText(map, { unicode: true, colors: plain }).split('\n');
  assert.deepEqual(lines.slice(0, 5), [
    'pc.ram, 8.00 MiB',
    `       0 B  ${'█'.repeat(64)}`,
    `   512 KiB  ▒${'·'.repeat(31)}`,
    '  1.00 MiB  ',
    '  1.50 MiB  ',
  ]);
  assert.deepEqual(lines.slice(18, 22), [
    'vga.vram  zero marks only',
    'vmem0     nothing in the file',
    'pc.bios   ██',
    'rom       ·',
  ]);
  assert.match(lines[23]!, /^A character is 8\.00 KiB: ░▒▓█ present/);

  const ascii = pageMapText(map, { unicode: false, colors: plain });
  assert.match(ascii, /^[\n -~]*$/);
  assert.match(ascii, /^ +512 KiB {2}\+\.{31}$/m);
});

test('the picture fits the terminal: the largest block in 16 lines, and no line too long', () => {
  for (const columns of [50, 80, 100, 200]) {
    for (const mib of [1, 3, 64, 1000]) {
      const pages = (mib * MIB) / PAGE;
      const snapshot = snapshotOf(
        [{ name: 'pc.ram', usedLength: mib * MIB }],
        [
          { block: 'pc.ram', page: pages - 1, kind: 'normal', content },
          { block: 'pc.ram', page: 0, kind: 'zero' },
        ],
      );
      const map = pageMap(snapshot, columns);
      const [head, ...lines] = pageMapText(map, { unicode: true, colors: plain }).split('\n\n')[0]!.split('\n');
      assert.match(head!, /^pc\.ram, /);
      assert.ok(lines.length > (mib < 64 ? 1 : 8) && lines.length <= 16, `${lines.length} lines`);
      assert.ok(
        lines.every((line) => line.length < columns),
        `${columns} columns`,
      );
      assert.match(lines.at(-1)!, /[░▒▓█]$/);
    }
  }
});

test('colours change nothing but the colour', () => {
  const snapshot = snapshotOf([{ name: 'pc.ram', usedLength: MIB }], run('pc.ram', 3, 70));
  const map = pageMap(snapshot, 80);
  const colored = terminalText(pageMapText(map, { unicode: true, colors: createColors(true) }));
  assert.ok(colored.includes('\x1b['));
  // biome-ignore lint/suspicious/noControlCharactersInRegex: that is what colours are made of
  assert.equal(colored.replace(/\x1b\[\d+m/g, ''), pageMapText(map, { unicode: true, colors: plain }));
});
