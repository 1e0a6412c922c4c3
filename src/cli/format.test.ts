import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { parseInteger, parseRate, parseSize } from './arguments.js';
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

test('sizes are read as QEMU reads them, as people write them', () => {
  const cases: [string, number][] = [
    ['4096', 4096],
    ['0x1000', 4096],
    ['4K', 4096],
    ['4k', 4096],
    ['1.5G', 1.5 * 2 ** 30],
    ['1T', 2 ** 40],
    ['7B', 7],
    ['1GiB', 2 ** 30],
    ['1 gib', 2 ** 30],
    ['0.5 MiB', 2 ** 19],
    ['1e9', 1e9],
    ['1.5e9', 1.5e9],
    ['500MB', 500e6],
    ['500 kB', 500e3],
    ['1.0001K', 1024],
    ['446,157,664 bytes', 446_157_664],
    ['1,023 MiB', 1023 * 2 ** 20],
  ];
  for (const [text, size] of cases) {
    assert.equal(parseSize(text), size, text);
  }
  const wrongs = [
    '',
    'G',
    '-1',
    '1X',
    '99999T',
    '0x',
    '0x1G',
    '1.5',
    '1e-3',
    '1,00',
    '1 G B',
    '1G/s',
    'e9',
    '.5G',
    '1e400',
  ];
  for (const wrong of wrongs) {
    assert.throws(() => parseSize(wrong), /whole number of bytes/, wrong);
  }
  assert.deepEqual(['100M', '100MiB/s', '100 MiB/s', '1e8', '100MB/s', '104857600 B/s'].map(parseRate), [
    ...[100 * 2 ** 20, 100 * 2 ** 20, 100 * 2 ** 20, 1e8, 1e8, 100 * 2 ** 20],
  ]);
  for (const wrong of ['100Mb/s', '100Mbit/s', '1Gbps', '/s', '1G/h']) {
    assert.throws(() => parseRate(wrong), /bytes \(not bits\) per second/, wrong);
  }
});

test('what is printed of a size is read again, to three digits', () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 2 ** 50 }), (size) => {
      for (const read of [parseSize(formatBytes(size)), parseRate(formatRate(size))]) {
        assert.ok(Math.abs(read - size) <= size * 0.005, `${size} is printed as ${formatBytes(size)}, read as ${read}`);
      }
      assert.equal(parseSize(`${formatCount(size)} bytes`), size);
    }),
  );
});

test('numbers within their range', () => {
  assert.equal(parseInteger(1, 64)('64'), 64);
  for (const wrong of ['0', '65', '1.5', '', 'x', '1e1']) {
    assert.throws(() => parseInteger(1, 64)(wrong), /from 1 to 64/, wrong);
  }
});
