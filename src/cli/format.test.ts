import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { parseInteger, parseSize } from './arguments.js';
import { formatBytes, formatCount, formatDuration, formatPercent, formatRate, formatTable } from './format.js';

test('sizes and rates', () => {
  const cases: [number, string][] = [
    [0, '0 B'],
    [1023, '1023 B'],
    [1024, '1.00 KiB'],
    [1.5 * 2 ** 30, '1.50 GiB'],
    [10.24 * 2 ** 20, '10.2 MiB'],
    [2 ** 20 - 1, '1.00 MiB'],
    [512 * 2 ** 20, '512 MiB'],
    [2 ** 40, '1.00 TiB'],
  ];
  for (const [byteCount, text] of cases) {
    assert.equal(formatBytes(byteCount), text);
  }
  assert.equal(formatRate(2 ** 31), '2.00 GiB/s');
});

test('a size as shown is within half a percent of the size', () => {
  fc.assert(
    fc.property(fc.maxSafeNat(), (byteCount) => {
      const [value, unit] = formatBytes(byteCount).split(' ');
      const shown = Number(value) * 1024 ** ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'].indexOf(unit!);
      assert.ok(Math.abs(shown - byteCount) <= byteCount * 0.005, `${byteCount} as ${value} ${unit}`);
      assert.ok(value!.length <= 4);
    }),
  );
});

test('durations', () => {
  const cases: [number, string][] = [
    [0.417, '0.42 ms'],
    [120.4, '120 ms'],
    [999.6, '1.00 s'],
    [4200, '4.20 s'],
    [59_960, '1 min 00 s'],
    [185_000, '3 min 05 s'],
    [7_380_000, '2 h 03 min'],
  ];
  for (const [milliseconds, text] of cases) {
    assert.equal(formatDuration(milliseconds), text);
  }
});

test('counts and percentages', () => {
  assert.deepEqual([0, 999, 1000, 1234567].map(formatCount), ['0', '999', '1,000', '1,234,567']);
  assert.deepEqual([0, 0.999, 1, 1.5].map(formatPercent), ['0 %', '99 %', '100 %', '100 %']);
});

test('tables', () => {
  assert.equal(
    formatTable(
      [
        ['block', 'pages'],
        ['pc.ram', '262,144'],
        ['vga', '9'],
      ],
      ['left', 'right'],
    ),
    'block     pages\npc.ram  262,144\nvga           9\n',
  );
});

test('sizes and numbers are read as QEMU reads them', () => {
  assert.deepEqual(['4096', '0x1000', '4K', '4k', '1.5G', '1T', '7B'].map(parseSize), [
    4096,
    4096,
    4096,
    4096,
    1.5 * 2 ** 30,
    2 ** 40,
    7,
  ]);
  for (const wrong of ['', 'G', '-1', '1X', '1.0001K', '99999T', '0x', '1 G']) {
    assert.throws(() => parseSize(wrong), /whole number of bytes/, wrong);
  }
  assert.equal(parseInteger(1, 64)('64'), 64);
  for (const wrong of ['0', '65', '1.5', '', 'x', '1e1']) {
    assert.throws(() => parseInteger(1, 64)(wrong), /from 1 to 64/, wrong);
  }
});
