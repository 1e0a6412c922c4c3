// The head of an ELF core; the file itself is tested where it is written (cli/convert).

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { elfCore } from './elf-core.js';

/** Program headers as [type, offset, virtual, physical, bytes], and how many the file says there are. */
const readHead = (head: Uint8Array) => {
  const view = new DataView(head.buffer, head.byteOffset, head.length);
  const u64 = (at: number): bigint => view.getBigUint64(at, true);
  const u16 = (at: number): number => view.getUint16(at, true);
  const sections = Number(u64(40));
  const count = u16(56) === 0xffff ? view.getUint32(sections + 44, true) : u16(56);
  const headers = Array.from({ length: count }, (_, index) => {
    const at = Number(u64(32)) + index * u16(54);
    return { type: view.getUint32(at, true), fields: [8, 16, 24, 32].map((field) => u64(at + field)) };
  });
  return { machine: u16(18), hasSections: u16(60) === 1 && u16(58) === 64, sections, count, headers };
};

test('the head ends before RAM, for any number of segments; more than 16 bits can count are counted elsewhere', () => {
  for (const count of [0, 1, 2, 60, 70, 4096, 65_533, 65_534, 65_535, 100_000]) {
    const segments = Array.from({ length: count }, (_, index) => ({
      virtual: 0xffff_8880_0000_0000n + BigInt(index) * 8192n,
      physical: index * 16384,
      offset: index * 4096,
      bytes: 4096,
    }));
    const notes = new Uint8Array(count % 1000).fill(7);
    const { head, ramOffset } = elfCore({ is64Bit: true, notes, segments });
    assert.ok(head.length <= ramOffset && ramOffset - head.length < 4096, `${head.length} of ${ramOffset}`);
    assert.equal(ramOffset % 4096, 0);
    const { headers, ...read } = readHead(head);
    assert.equal(read.count, 1 + count);
    assert.equal(read.hasSections, count >= 65_534);
    assert.equal(read.sections > 0, count >= 65_534);
    const [note, ...loads] = headers;
    assert.equal(note!.type, 4);
    assert.deepEqual(head.subarray(Number(note!.fields[0])), notes);
    assert.equal(Number(note!.fields[3]), notes.length);
    if (count > 0) {
      const last = loads.at(-1)!;
      assert.equal(last.type, 1);
      const index = BigInt(count - 1);
      assert.deepEqual(last.fields, [
        BigInt(ramOffset) + index * 4096n,
        0xffff_8880_0000_0000n + index * 8192n,
        index * 16384n,
        4096n,
      ]);
    }
  }
});

test('a 32-bit guest is one of i386', () => {
  const machines = [true, false].map((is64Bit) =>
    readHead(elfCore({ is64Bit, notes: new Uint8Array(0), segments: [] }).head),
  );
  assert.deepEqual(
    machines.map(({ machine }) => machine),
    [62, 3],
  );
});
