// The head of an ELF core; the file itself is tested where it is written (cli/convert).

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { elfCore } from './elf-core.js';

test('the head is shorter than the space before RAM, for the longest machine type name, and for any number of segments', () => {
  for (const count of [1, 2, 60, 70, 4096]) {
    const segments = Array.from({ length: count }, (_, index) => ({
      address: index * 8192,
      offset: index * 4096,
      bytes: 4096,
    }));
    const { head, ramOffset } = elfCore('m'.repeat(300), segments);
    assert.ok(head.length <= ramOffset && ramOffset - head.length < 4096, `${head.length} of ${ramOffset}`);
    assert.equal(ramOffset % 4096, 0);
    const view = new DataView(head.buffer, head.byteOffset, head.length);
    assert.equal(view.getUint16(56, true), 1 + count);
    const last = 64 + count * 56;
    const field = (at: number): number => Number(view.getBigUint64(last + at, true));
    assert.deepEqual([field(8), field(24), field(32)], [ramOffset + (count - 1) * 4096, (count - 1) * 8192, 4096]);
  }
});
