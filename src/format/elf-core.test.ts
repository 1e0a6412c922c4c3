// Where the RAM of a PC lies, by the rules of QEMU's hw/i386; the file itself is tested where it is written (cli/convert).

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { elfCore, pcMemoryLayout } from './elf-core.js';

const GIB = 2 ** 30;
const MIB = 2 ** 20;

const addresses = (machine: string, ramBytes: number): number[][] =>
  pcMemoryLayout(machine, ramBytes).map(({ address, offset, bytes }) => [address, offset, bytes]);

test('below the size at which RAM is split, all of it is low', () => {
  assert.deepEqual(addresses('pc-i440fx-10.0', 3.5 * GIB - MIB), [[0, 0, 3.5 * GIB - MIB]]);
  assert.deepEqual(addresses('pc-q35-7.2', 2.75 * GIB - MIB), [[0, 0, 2.75 * GIB - MIB]]);
});

test('from that size on the rest begins at 4 GiB', () => {
  for (const machine of ['pc', 'pc-i440fx-10.0']) {
    assert.deepEqual(addresses(machine, 3.5 * GIB), [
      [0, 0, 3 * GIB],
      [4 * GIB, 3 * GIB, 0.5 * GIB],
    ]);
  }
  for (const machine of ['q35', 'pc-q35-10.0']) {
    assert.deepEqual(addresses(machine, 8 * GIB), [
      [0, 0, 2 * GIB],
      [4 * GIB, 2 * GIB, 6 * GIB],
    ]);
  }
});

test('what is not known is refused: other machine types, sizes that QEMU places by the processor', () => {
  for (const machine of ['microvm', 'virt-10.0', 'pcx', 'isapc', 'ramferry-workload']) {
    assert.throws(() => pcMemoryLayout(machine, GIB), { kind: 'usage', code: 'ELF_MACHINE_TYPE' });
  }
  assert.throws(() => pcMemoryLayout('pc', 1024 * GIB), { kind: 'usage', code: 'ELF_LAYOUT' });
  assert.equal(addresses('q35', 1000 * GIB).length, 2);
});

test('the head is shorter than the space before RAM, also for the longest machine type name', () => {
  const { head, ramOffset } = elfCore('m'.repeat(300), pcMemoryLayout('pc', 8 * GIB));
  assert.ok(head.length <= ramOffset);
});
