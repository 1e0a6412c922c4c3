import assert from 'node:assert/strict';
import { test } from 'node:test';
import { richMappedRamFile } from '../../test/mapped-ram-builder.js';
import { MemoryChannel, PAGE, ScriptedGuest } from '../../test/source-kit.js';
import { openSnapshot, type ReadAt, type Snapshot } from '../format/index.js';
import { pageIndex } from '../memory/units.js';
import type { SourceGuest } from '../source/guest.js';
import { MigrationSource } from '../source/migration-source.js';
import { defaultParameters } from '../source/parameters.js';
import { StreamSink } from '../source/stream-sink.js';
import { SnapshotGuest } from './snapshot-guest.js';

const save = async (guest: SourceGuest): Promise<Snapshot> => {
  const channel = new MemoryChannel();
  const sink = new StreamSink(channel, { returnPath: false });
  const report = await new MigrationSource({ guest, sink, parameters: defaultParameters }).run();
  assert.equal(report.status, 'completed', report['error-desc']);
  const bytes = Buffer.concat(channel.chunks);
  return openSnapshot(
    (position, target) => target.set(bytes.subarray(position, position + target.length)),
    bytes.length,
  );
};

test('a snapshot sent on has the same machine, devices and memory', async () => {
  const guest = new ScriptedGuest([1000, 70], 2 ** 20);
  for (const block of guest.blocks.blocks) {
    for (let page = 0; page < block.usedPages; page += page % 5 === 0 ? 1 : 7) {
      guest.store(block, page, (page % 255) + 1);
    }
  }
  const first = await save(guest);
  const second = await save(new SnapshotGuest(first));
  assert.deepEqual(second.configuration, first.configuration);
  assert.deepEqual(second.summary.tail, first.summary.tail);
  for (const { index, name, usedLength } of first.setup.blocks) {
    assert.equal(second.setup.blocks[index]!.name, name);
    const content = [first, second].map((snapshot) => {
      const bytes = new Uint8Array(usedLength);
      snapshot.readPages(index, pageIndex(0), usedLength / PAGE, bytes);
      return Buffer.from(bytes);
    });
    assert.ok(content[0]!.equals(content[1]!), name);
    assert.deepEqual(second.counts(index), first.counts(index));
  }
});

// RD-1, RD-19: in every step from file to file
test('what was discarded when a guest was saved leaves no mark in what is made from the file', async () => {
  const guest = new ScriptedGuest([100]);
  const vmem = guest.blocks.add({ name: 'vmem', usedLength: 1000 * PAGE, discardGranularity: PAGE });
  for (const [first, count] of [
    [0, 3],
    [511, 3],
    [700, 200],
  ] as const) {
    vmem.discardManager!.populate(first * PAGE, count * PAGE);
  }
  guest.store(vmem, 512, 5);
  const first = await save(guest);
  const index = first.setup.blocks.find(({ name }) => name === 'vmem')!.index;
  const discarded: [number, number][] = [];
  first.forEachDiscarded(index, (page, count) => discarded.push([page, count]));
  assert.deepEqual(discarded, [
    [3, 508],
    [514, 186],
    [900, 100],
  ]);
  const second = await save(new SnapshotGuest(first));
  assert.deepEqual(second.counts(index), { presentPages: 1, zeroPages: 205, absentPages: 794 });
});

test('a mapped-ram file is sent as a stream', async () => {
  const { bytes, memory } = richMappedRamFile();
  const readAt: ReadAt = (at, target) => target.set(bytes.subarray(at, at + target.length));
  const sent = await save(new SnapshotGuest(openSnapshot(readAt, bytes.length)));
  assert.deepEqual(sent.configuration.capabilities, []);
  for (const { index, name, usedLength } of sent.setup.blocks) {
    const content = new Uint8Array(usedLength);
    sent.readPages(index, pageIndex(0), usedLength / PAGE, content);
    assert.deepEqual(content, memory.get(name));
  }
});
