// The two engines against each other over real sockets. (Stock QEMU as either end: test/interop.)

import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { type ByteChannel, listen, openChannel } from '../src/channel/index.js';
import {
  FileTarget,
  type IncomingReport,
  MemoryTarget,
  MigrationDestination,
  type MigrationDestinationOptions,
} from '../src/destination/index.js';
import { RamBlockList } from '../src/memory/index.js';
import { MigrationSource } from '../src/source/migration-source.js';
import { defaultParameters } from '../src/source/parameters.js';
import type { MigrationReport } from '../src/source/statistics.js';
import { StreamSink } from '../src/source/stream-sink.js';
import { ScriptedChannel } from './scripted-channel.js';
import { PAGE, ScriptedGuest } from './source-kit.js';

const SEGMENT_BYTES = 2 ** 22;

/** A pair of connected channels at `uri`: the source's end and the destination's. */
const connect = async (uri: string): Promise<[ByteChannel, ByteChannel]> => {
  const listener = await listen(uri);
  const pair = await Promise.all([openChannel(listener.uri, { direction: 'write' }), listener.accept()]);
  await listener.close();
  return pair;
};

/** A guest with blocks over several segments, one page in three not zero, that stores while it migrates. */
const busyGuest = (): { guest: ScriptedGuest; step: () => void } => {
  const guest = new ScriptedGuest([2500, 300, 1], SEGMENT_BYTES);
  let value = 0;
  const step = (): void => {
    for (const block of guest.blocks.blocks) {
      for (let page = value % 3; page < block.usedPages; page += 3) {
        guest.store(block, page, 1 + (value % 255));
      }
    }
    value += 1;
  };
  step();
  return { guest, step };
};

interface Ended {
  readonly source: MigrationReport;
  readonly destination: IncomingReport;
  readonly guest: ScriptedGuest;
}

const migrate = async (
  uri: string,
  returnPath: boolean,
  options: Pick<MigrationDestinationOptions, 'target' | 'commit'>,
): Promise<Ended> => {
  const [sending, receiving] = await connect(uri);
  const { guest, step } = busyGuest();
  let stepsLeft = 3;
  guest.beforeStop = step;
  const source = new MigrationSource({
    guest,
    sink: new StreamSink(sending, { returnPath }),
    parameters: defaultParameters,
    onPass: () => {
      if (stepsLeft-- > 0) {
        step();
      }
    },
  });
  const destination = new MigrationDestination({ channel: receiving, ...options });
  const [outgoing, incoming] = await Promise.all([source.run(), destination.run()]);
  await Promise.all([sending.closed, receiving.closed]);
  return { source: outgoing, destination: incoming, guest };
};

const assertSameMemory = (found: RamBlockList, expected: RamBlockList): void => {
  assert.equal(found.blocks.length, expected.blocks.length);
  for (const block of expected.blocks) {
    const copy = found.find(block.name)!;
    for (let page = 0; page < block.usedPages; page += 1) {
      const content = Buffer.from(block.read(page * PAGE, PAGE));
      assert.ok(content.equals(copy.read(page * PAGE, PAGE)), `page ${page} of ${block.name}`);
    }
  }
};

test('a guest migrates over a socket, through a file, and back into memory', async (context) => {
  const folder = await mkdtemp(join(tmpdir(), 'ramferry-'));
  context.after(() => rm(folder, { recursive: true }));
  for (const uri of ['tcp:127.0.0.1:0', `unix:${join(folder, 'socket')}`]) {
    for (const returnPath of [false, true]) {
      const blocks = RamBlockList.create({ segmentBytes: SEGMENT_BYTES });
      const target = new MemoryTarget({ blocks, memoryLimit: 2 ** 30 });
      const { source, destination, guest } = await migrate(uri, returnPath, { target });
      assert.deepEqual([source.status, destination.status], ['completed', 'completed']);
      assert.equal(destination.ram.transferred, source.ram.transferred);
      assert.equal(destination.ramferry.returnPath, returnPath);
      assert.equal(guest.resumes, 0);
      assertSameMemory(blocks, guest.blocks);
    }
  }

  const file: Uint8Array[] = [];
  const target = new FileTarget({
    write: (bytes, done) => {
      file.push(bytes.slice());
      setImmediate(done, undefined);
    },
  });
  const { source, destination, guest } = await migrate('tcp:127.0.0.1:0', true, { target });
  assert.deepEqual([source.status, destination.status], ['completed', 'completed']);
  const blocks = RamBlockList.create({ segmentBytes: SEGMENT_BYTES });
  const loaded = await new MigrationDestination({
    channel: new ScriptedChannel().sendAndEnd(file),
    target: new MemoryTarget({ blocks, memoryLimit: 2 ** 30 }),
  }).run();
  assert.equal(loaded.status, 'completed');
  assert.equal(loaded.ramferry.returnPath, false);
  assertSameMemory(blocks, guest.blocks);
});

test('a destination that fails at the last moment, or at the first: the guest runs on at the source', async () => {
  const atTheEnd = {
    target: new MemoryTarget({ blocks: RamBlockList.create(), memoryLimit: 2 ** 30 }),
    commit: async (): Promise<void> => {
      throw new Error('the guest does not start');
    },
  };
  const atTheStart = { target: new MemoryTarget({ blocks: RamBlockList.create(), memoryLimit: PAGE }) };
  for (const options of [atTheEnd, atTheStart]) {
    const { source, destination, guest } = await migrate('tcp:127.0.0.1:0', true, options);
    assert.deepEqual([source.status, destination.status], ['failed', 'failed']);
    assert.ok(guest.running);
  }
});
