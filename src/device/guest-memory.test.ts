import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { DIMM_START, HIGH_START, LOW_BYTES, markedMemory, testMachine } from '../../test/device-kit.js';
import { guestAddress } from '../memory/index.js';
import { GuestMemory, wholePages } from './guest-memory.js';

describe('GuestMemory', () => {
  const machine = testMachine();

  test('copies across extents and regions that touch, and marks what it stored to and nothing else', () => {
    const { ram } = machine;
    const touching = { guestAddress: guestAddress(LOW_BYTES), block: machine.dimm, offset: 0, bytes: GUEST_PAGE_SIZE };
    const events: string[] = [];
    const memory = new GuestMemory([...machine.regions, touching], {
      beforeStore: (block, page) =>
        events.push(`before ${block.name}:${page} ${block.read(page * GUEST_PAGE_SIZE + 4090, 1)}`),
      markRange: (block, first, count) => {
        events.push(`after ${block.name}:${first}+${count} ${block.read(first * GUEST_PAGE_SIZE + 4090, 1)}`);
      },
    });
    const bytes = new Uint8Array(GUEST_PAGE_SIZE + 6 + 4091).fill(7);
    const start = guestAddress(LOW_BYTES - GUEST_PAGE_SIZE - 6);
    memory.write(start, bytes);
    assert.deepEqual(memory.read(start, bytes.length), bytes);
    assert.deepEqual(ram.read(start, GUEST_PAGE_SIZE + 6), bytes.slice(0, GUEST_PAGE_SIZE + 6));
    // BS-3: asked before the page changes; TS-1, TS-4: marked after its last byte has.
    assert.deepEqual(
      events,
      ['pc.ram:254', 'pc.ram:255', 'dimm0:0'].flatMap((page) => [`before ${page} 0`, `after ${page}+1 7`]),
    );
  });

  test('ranges end at holes and at the used length; access beyond is refused whole', () => {
    const { memory, marks } = markedMemory(machine);
    assert.equal(
      memory.forEachRange(guestAddress(LOW_BYTES - 100), 200, () => {}),
      100,
    );
    assert.equal(
      memory.forEachRange(guestAddress(DIMM_START + LOW_BYTES - 8), 100, () => {}),
      8,
    ); // FH-4
    assert.equal(
      memory.forEachRange(guestAddress(LOW_BYTES), 1, () => assert.fail()),
      0,
    );
    assert.ok(memory.contains(guestAddress(HIGH_START), LOW_BYTES));
    const refused = [
      () => memory.write(guestAddress(LOW_BYTES - 8), new Uint8Array(9)),
      () => memory.read(guestAddress(DIMM_START - 1), 2),
      () => memory.readUint32(guestAddress(DIMM_START + LOW_BYTES)),
      () => memory.readUint64(guestAddress(2 ** 63)),
      () => memory.loadUint16(guestAddress(1)),
      () => memory.read(guestAddress(0), 0xffffffff),
    ];
    for (const access of refused) {
      assert.throws(access, { code: 'GUEST_ADDRESS_INVALID', kind: 'invalid' });
    }
    assert.equal(marks.size, 0);
  });

  test('scalars are little-endian', () => {
    const { memory } = markedMemory(machine);
    memory.writeUint64(guestAddress(64), 0x12_3456_789a);
    assert.deepEqual([...memory.read(guestAddress(64), 8)], [0x9a, 0x78, 0x56, 0x34, 0x12, 0, 0, 0]);
    assert.equal(memory.readUint64(guestAddress(64)), 0x12_3456_789a);
    memory.storeUint16(guestAddress(66), 0xfedc);
    assert.equal(memory.readUint32(guestAddress(64)), 0xfedc_789a);
  });

  test('regions that overlap, leave their block or are not whole pages are refused', () => {
    const region = { guestAddress: guestAddress(0), block: machine.ram, offset: 0, bytes: 2 * GUEST_PAGE_SIZE };
    const bad = [
      [region, { ...region, guestAddress: guestAddress(GUEST_PAGE_SIZE) }],
      [{ ...region, offset: 2 * LOW_BYTES - GUEST_PAGE_SIZE }],
      [{ ...region, bytes: 100 }],
      [{ ...region, bytes: 0 }],
      [{ ...region, guestAddress: guestAddress(8) }],
    ];
    for (const regions of bad) {
      assert.throws(() => new GuestMemory(regions, { markRange: () => {} }), { code: 'GUEST_REGION_INVALID' });
    }
  });

  // FH-19, FH-27
  test('whole pages never reach outside of the bytes', () => {
    fc.assert(
      fc.property(fc.nat(100_000), fc.nat(100_000), (offset, bytes) => {
        const { firstPage, pageCount } = wholePages(offset, bytes);
        assert.ok(pageCount === 0 || firstPage * GUEST_PAGE_SIZE >= offset);
        assert.ok(pageCount === 0 || (firstPage + pageCount) * GUEST_PAGE_SIZE <= offset + bytes);
        assert.ok(bytes - pageCount * GUEST_PAGE_SIZE < 2 * GUEST_PAGE_SIZE);
      }),
    );
  });
});
