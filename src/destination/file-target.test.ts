// Recording a stream into a file: the same stream, less what speaks to a live peer.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { inPieces, ScriptedChannel } from '../../test/scripted-channel.js';
import { patternPage, richStream, StreamBuilder, testDevice } from '../../test/streams.js';
import { ByteWriter } from '../format/byte-writer.js';
import { RamDigest } from '../format/ram-digest.js';
import { Command, ElementType, RecordFlag } from '../format/stream/constants.js';
import { command, pageRecordHead, ping, ramPart } from '../format/stream/write.js';
import type { RamferryError } from '../memory/errors.js';
import { type ByteSink, FileTarget } from './file-target.js';
import { type IncomingState, MigrationDestination } from './migration-destination.js';

const PAGE = 4096;
const MIB = 2 ** 20;

/** A disk in slow motion: writes complete one by one, when the test says so, or by themselves. */
class TestSink implements ByteSink {
  readonly chunks: Buffer[] = [];
  error: Error | undefined;
  waiting: (() => void)[] = [];

  constructor(readonly isManual = false) {}

  write(bytes: Uint8Array, done: (error: Error | undefined) => void): void {
    const complete = (): void => {
      // The memory belongs to the sink until now: what is in it now is what lands on the disk.
      this.chunks.push(Buffer.from(bytes));
      done(this.error);
    };
    if (this.isManual) {
      this.waiting.push(complete);
    } else {
      setImmediate(complete);
    }
  }

  get content(): Buffer {
    return Buffer.concat(this.chunks);
  }
}

const turns = async (count = 20): Promise<void> => {
  for (let turn = 0; turn < count; turn += 1) {
    await new Promise((resolve) => setImmediate(resolve));
  }
};

const record = async (chunks: Iterable<Uint8Array>, sink = new TestSink()): Promise<MigrationDestination> => {
  const channel = new ScriptedChannel().send(chunks);
  const destination = new MigrationDestination({ channel, target: new FileTarget(sink) });
  await destination.run();
  return destination;
};

/** The stream with all elements of these bytes taken out. */
const without = (bytes: Uint8Array, ...elements: Uint8Array[]): Buffer => {
  let text = Buffer.from(bytes).toString('latin1');
  for (const element of elements) {
    text = text.replaceAll(Buffer.from(element).toString('latin1'), '');
  }
  return Buffer.from(text, 'latin1');
};

const advise = command(Command.POSTCOPY_ADVISE, new ByteWriter().be64(PAGE).be64(PAGE).copy());
const switchover = command(Command.SWITCHOVER_START);
const open = command(Command.OPEN_RETURN_PATH);

test('the digest is of the last content of each page, and of none where that is zero', async () => {
  const usedLength = 4 * PAGE;
  const target = new FileTarget(new TestSink(), { digests: true });
  const { bytes } = new StreamBuilder()
    .header()
    .ramStart([{ name: 'ram', usedLength }])
    .part([
      { kind: 'normal', block: 'ram', page: 1, content: patternPage(1) },
      { kind: 'normal', block: 'ram', page: 2, content: patternPage(2) },
      { kind: 'zero', block: 'ram', page: 1 },
    ])
    .end()
    .devices([testDevice('cpu', 300)]);
  await new MigrationDestination({ channel: new ScriptedChannel().send([bytes]), target }).run();
  const expected = new RamDigest([{ name: 'ram', usedLength }]);
  expected.set(0, 2 * PAGE, patternPage(2));
  assert.deepEqual(target.digest!.blocks(), expected.blocks());
});

test('the file is the stream without the commands for a live peer, however its bytes arrive', async () => {
  const { bytes } = richStream();
  const expected = without(bytes, open, ping(1));
  assert.ok(expected.includes(Buffer.from(switchover)));
  await fc.assert(
    fc.asyncProperty(fc.array(fc.integer({ min: 1, max: 9000 }), { minLength: 1, maxLength: 9 }), async (sizes) => {
      const sink = new TestSink();
      const destination = await record(inPieces(bytes, ...sizes), sink);
      assert.equal(destination.error, undefined);
      assert.ok(sink.content.equals(expected));
      const { ram, ramferry } = destination.report();
      assert.deepEqual([ram.normal, ram.duplicate, ramferry.xbzrlePages, ramferry.pings], [6, 3, 2, 1]);
    }),
    { numRuns: 20 },
  );
});

/** Several buffers full: 2000 pages with a PING after every hundredth. */
const longStream = (): { bytes: Uint8Array; expected: Buffer } => {
  const builder = new StreamBuilder()
    .header()
    .raw(advise)
    .raw(open)
    .ramStart([{ name: 'pc.ram', usedLength: 2000 * PAGE }]);
  for (let first = 0; first < 2000; first += 100) {
    const pages = Array.from({ length: 100 }, (_, index) => first + index);
    builder.part(pages.map((page) => ({ block: 'pc.ram', page, kind: 'normal', content: patternPage(page) })));
    builder.raw(ping(7)).raw(first % 300 === 0 ? switchover : ping(7));
  }
  const { bytes } = builder.end().devices([testDevice('cpu', 1000)]);
  return { bytes, expected: without(bytes, open, advise, ping(7)) };
};

test('bytes leave in large writes, and a recorded file records as itself', async () => {
  const { bytes, expected } = longStream();
  const sink = new TestSink();
  assert.equal((await record(inPieces(bytes, 100_000, 65_536), sink)).error, undefined);
  assert.ok(sink.content.equals(expected));
  assert.ok(sink.chunks.slice(0, -1).every((chunk) => chunk.length >= MIB - 70_000));
  const again = new TestSink();
  assert.equal((await record(inPieces(expected, 3 * MIB), again)).error, undefined);
  assert.ok(again.content.equals(expected));
});

test('a slow disk pauses the source; buffers are bounded; the end waits for the last write', async () => {
  const { bytes, expected } = longStream();
  const sink = new TestSink(true);
  const channel = new ScriptedChannel().send(inPieces(bytes, 65_536));
  let committed: IncomingState | undefined;
  const destination = new MigrationDestination({
    channel,
    target: new FileTarget(sink),
    commit: async (state) => {
      committed = state;
    },
  });
  const ended = destination.run();
  await turns();
  assert.ok(channel.isPaused);
  assert.equal(sink.waiting.length, 3);
  assert.ok(destination.report().ram.transferred < 4 * MIB);
  while (destination.report().status !== 'completed') {
    assert.ok(sink.waiting.length <= 3);
    assert.equal(committed, undefined);
    sink.waiting.shift()?.();
    await turns();
  }
  await ended;
  assert.ok(channel.pauses >= 2);
  assert.ok(sink.content.equals(expected));
  assert.equal(committed?.summary.bytes, bytes.length);
});

test('a disk that fails fails the migration, whether the source is paused, sending or done', async () => {
  const { bytes } = longStream();
  for (const isManual of [false, true]) {
    const sink = new TestSink(isManual);
    sink.error = new Error('no space left');
    const channel = new ScriptedChannel().send(inPieces(bytes, isManual ? 65_536 : bytes.length));
    const destination = new MigrationDestination({ channel, target: new FileTarget(sink) });
    const ended = destination.run();
    await turns();
    sink.waiting[0]?.();
    assert.equal((await ended).status, 'failed');
    assert.equal(destination.error, sink.error);
  }
  const sink = new TestSink();
  sink.error = new Error('no space left');
  assert.equal((await record([richStream().bytes], sink)).error, sink.error);
});

test('pages are checked although they only pass', async () => {
  const bad = new ByteWriter();
  pageRecordHead(bad, 0, RecordFlag.XBZRLE, 'pc.ram').u8(1).be16(3).u8(0).u8(0).u8(1);
  const start = new StreamBuilder().header().ramStart([{ name: 'pc.ram', usedLength: PAGE }]);
  const { bytes } = start.raw(ramPart(ElementType.SECTION_PART, 1)).raw(bad.copy());
  const { error } = await record([bytes]);
  assert.equal((error as RamferryError).code, 'XBZRLE');
});

test('a page size of 64 KiB is no obstacle', async () => {
  const content = patternPage(1, 65536);
  const { bytes } = new StreamBuilder(1, 65536)
    .header({ targetPageBits: 16 })
    .ramStart([{ name: 'mach-virt.ram', usedLength: 2 * 65536 }])
    .part([{ block: 'mach-virt.ram', page: 1, kind: 'normal', content }])
    .end()
    .devices([]);
  const sink = new TestSink();
  const destination = await record(inPieces(bytes, 1000), sink);
  assert.equal(destination.error, undefined);
  assert.ok(sink.content.equals(bytes));
  assert.equal(destination.report().ram['normal-bytes'], 65536);
});
