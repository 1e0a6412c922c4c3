import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { adviseHugePages } from './huge-pages-node.js';
import { RamBlockList } from './ram-block-list.js';
import { systemFunction } from './system-library-node.js';

/** Bytes of the process's memory in huge pages. */
const hugeBytes = (): number =>
  1024 *
  [...readFileSync('/proc/self/smaps', 'utf8').matchAll(/^AnonHugePages:\s+(\d+) kB$/gm)].reduce(
    (sum, match) => sum + Number(match[1]),
    0,
  );

const mode = ((): string => {
  try {
    return readFileSync('/sys/kernel/mm/transparent_hugepage/enabled', 'utf8');
  } catch {
    return '';
  }
})();
const skip =
  mode.includes('[madvise]') && systemFunction('int getpid()') !== undefined ? false : 'no huge pages on request';

test('guest RAM that was asked for comes in huge pages', { skip }, () => {
  const before = hugeBytes();
  const blocks = RamBlockList.create({ onSegment: adviseHugePages });
  const { segment, address } = blocks.add({ name: 'ram', usedLength: 64 * 2 ** 20 }).extents[0]!;
  for (let at = 0; at < 64 * 2 ** 20; at += 4096) {
    segment.bytes[address + at] = 1;
  }
  assert.ok(hugeBytes() - before >= 32 * 2 ** 20, `${hugeBytes() - before} bytes`);
});
