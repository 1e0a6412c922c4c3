import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { BitmapMemory } from './bitmap-memory.js';
import { RamBlockList } from './ram-block-list.js';
import { RamDiscardGate } from './ram-discard-gate.js';

const kinds = ['disable', 'disableUncoordinated', 'require', 'requireCoordinated'] as const;

// RD-24
test('required and disabled exclude each other, but for coordinated discards beside a ban on others', () => {
  fc.assert(
    fc.property(fc.array(fc.record({ kind: fc.nat(3), release: fc.nat(9) }), { maxLength: 30 }), (steps) => {
      const gate = new RamDiscardGate();
      const held: { readonly kind: number; readonly release: () => void }[] = [];
      for (const { kind, release } of steps) {
        const holds = (other: number): boolean => held.some((holder) => holder.kind === other);
        const refused = [holds(2) || holds(3), holds(2), holds(0) || holds(1), holds(0)][kind]!;
        if (refused) {
          assert.throws(() => gate[kinds[kind]!]('somebody'), { code: /^RAM_DISCARD_(REQUIRED|DISABLED)$/ });
        } else {
          held.push({ kind, release: gate[kinds[kind]!]('somebody') });
        }
        const [gone] = held.splice(release, 1);
        // A second call must not release what another one holds.
        gone?.release();
        gone?.release();
      }
    }),
  );
});

// CO-4, spec/algorithms.md 12.2
test('a block with a RamDiscardManager inhibits what cannot honour it, and the other way round, by name', () => {
  const list = RamBlockList.create({ bitmaps: BitmapMemory.create(2 ** 22), segmentBytes: 2 ** 21 });
  const add = () => list.add({ name: 'vmem0', usedLength: 2 ** 20, discardGranularity: 4096 });
  const block = add();
  const checkpoints = () => list.discardGate.disable('The continuous checkpoints of COLO');
  assert.throws(checkpoints, {
    code: 'RAM_DISCARD_REQUIRED',
    message: 'The continuous checkpoints of COLO cannot honour discarded memory, which RAM block vmem0 has.',
  });
  list.remove(block);
  const enable = checkpoints();
  assert.throws(add, {
    code: 'RAM_DISCARD_DISABLED',
    message: /RAM block vmem0 .* The continuous checkpoints of COLO/,
  });
  assert.equal(list.blocks.length, 0);
  list.add({ name: 'pc.ram', usedLength: 2 ** 20 });
  enable();
  add();
});
