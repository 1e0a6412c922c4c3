// The stream sink against the reader of the format: what the engine sends is what the guest has. (QEMU as the other
// end: test/interop.)

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GatheringChannel, MemoryChannel, PAGE, ScriptedGuest } from '../../test/source-kit.js';
import { until } from '../../test/until.js';
import type { ByteChannel } from '../channel/channel.js';
import { StreamReader } from '../format/stream/read.js';
import { pong, requestPages, shut } from '../format/stream/return-path.js';
import { MigrationSource } from './migration-source.js';
import { defaultParameters } from './parameters.js';
import type { MigrationReport } from './statistics.js';
import { StreamSink } from './stream-sink.js';

const run = (guest: ScriptedGuest, channel: ByteChannel, returnPath: boolean): Promise<MigrationReport> =>
  new MigrationSource({
    guest,
    sink: new StreamSink(channel, { returnPath }),
    parameters: defaultParameters,
  }).run();

/** Has sent all of the guest, and waits for the destination's last word. */
const runUntilShut = async (
  guest: ScriptedGuest,
  channel: ByteChannel,
): Promise<{ ended: Promise<MigrationReport> }> => {
  const sink = new StreamSink(channel, { returnPath: true });
  const ended = new MigrationSource({ guest, sink, parameters: defaultParameters }).run();
  await until(() => sink.isUndecided);
  return { ended };
};

for (const channel of [new MemoryChannel(), new GatheringChannel()]) {
  test(`the stream read back is the guest: blocks over several segments, zero and normal pages (${channel.constructor.name})`, async () => {
    const guest = new ScriptedGuest([900, 200, 3], 2 ** 20);
    for (const block of guest.blocks.blocks) {
      for (let page = 0; page < block.usedPages; page += 3) {
        guest.store(block, page, (page % 255) + 1);
      }
    }
    const report = await run(guest, channel, false);
    assert.equal(report.status, 'completed');
    assert.ok(channel.ended);
    assert.ok(channel instanceof GatheringChannel === (channel as GatheringChannel).vectors > 0);
    const bytes = Buffer.concat(channel.chunks);
    assert.equal(bytes.length, report.ram.transferred);
    const seen = new Map<string, number>();
    let ended = false;
    const reader = new StreamReader({
      ramSetup: ({ blocks, totalBytes }) => {
        assert.deepEqual(
          blocks.map(({ name, usedLength }) => [name, usedLength]),
          guest.blocks.blocks.map(({ name, usedLength }) => [name, usedLength]),
        );
        assert.equal(totalBytes, 1103 * PAGE);
      },
      zeroPage: (block, page) => seen.set(`${block.name}:${page}`, 0),
      page: (block, page, data, at) => seen.set(`${block.name}:${page}`, data[at]!),
      xbzrlePage: () => assert.fail('no delta was sent'),
      end: () => {
        ended = true;
      },
    });
    assert.equal(reader.push(bytes), bytes.length);
    assert.ok(ended);
    for (const block of guest.blocks.blocks) {
      for (let page = 0; page < block.usedPages; page += 1) {
        assert.equal(seen.get(`${block.name}:${page}`), guest.load(block, page));
      }
    }
  });
}

test('pages that are only lent are copied before the guest can take them back', async () => {
  const guest = new ScriptedGuest([900]);
  const [block] = guest.blocks.blocks;
  const extent = block!.extents[0]!;
  for (let page = 0; page < 900; page += 1) {
    guest.store(block!, page, (page % 255) + 1);
  }
  // The window of an opened snapshot: what was lent before holds something else as soon as the next is asked for.
  const { bytes } = extent.segment;
  const content = bytes.slice(extent.address, extent.address + 900 * PAGE);
  const lender = Object.assign(guest, {
    extentAt: (_: unknown, page: number) => {
      const pageCount = Math.min(32, 900 - page);
      bytes.fill(0xee, extent.address, extent.address + 900 * PAGE);
      bytes.set(content.subarray(page * PAGE, (page + pageCount) * PAGE), extent.address);
      return { ...extent, firstPage: page, pageCount };
    },
  });
  const channel = new GatheringChannel();
  assert.equal((await run(lender, channel, false)).status, 'completed');
  assert.equal(channel.vectors, 0);
  let pages = 0;
  const reader = new StreamReader({
    zeroPage: () => assert.fail('no page is zero'),
    page: (_, page, data, at) => {
      assert.equal(data[at], (page % 255) + 1);
      pages += 1;
    },
    xbzrlePage: () => assert.fail('no delta was sent'),
    ramSetup: () => {},
    end: () => {},
  });
  reader.push(Buffer.concat(channel.chunks));
  assert.equal(pages, 900);
});

test('with the return path the migration waits for SHUT, byte by byte', async () => {
  const guest = new ScriptedGuest([10]);
  const channel = new MemoryChannel();
  const { ended } = await runUntilShut(guest, channel);
  channel.answer(pong(1));
  assert.equal(channel.ended, false);
  channel.answer(shut(0));
  assert.equal((await ended).status, 'completed');
});

for (const [name, act, message] of [
  ['SHUT with an error', (channel: MemoryChannel) => channel.answer(shut(1)), /loading failed \(SHUT 1\)/],
  ['the peer closing before SHUT', (channel: MemoryChannel) => channel.reader!.ended(), /closed the return path/],
  [
    'a page request in precopy',
    (channel: MemoryChannel) => channel.answer(requestPages(0, PAGE, 'block0')),
    /requested pages in precopy/,
  ],
  ['garbage', (channel: MemoryChannel) => channel.answer(new Uint8Array(64).fill(0xee)), /unexpected type/],
] as const) {
  // PL-36
  test(`${name} fails the migration and leaves the guest running`, async () => {
    const guest = new ScriptedGuest([10]);
    const channel = new MemoryChannel();
    const { ended } = await runUntilShut(guest, channel);
    act(channel);
    const report = await ended;
    assert.equal(report.status, 'failed');
    assert.match(report['error-desc']!, message);
    assert.ok(guest.running);
    assert.ok(channel.destroyed);
  });
}

// spec/algorithms.md 15.4: a channel error at every byte class
test('a channel that breaks at any byte fails the migration and leaves the guest running', async () => {
  for (let capacity = 0; ; capacity += 97) {
    const guest = new ScriptedGuest([600]);
    const channel = new MemoryChannel();
    channel.capacity = capacity;
    const report = await run(guest, channel, false);
    if (report.status === 'completed') {
      assert.ok(report.ram.transferred <= capacity);
      break;
    }
    assert.equal(report.status, 'failed');
    assert.equal(report['error-desc'], 'broken pipe');
    assert.ok(guest.running);
  }
});
