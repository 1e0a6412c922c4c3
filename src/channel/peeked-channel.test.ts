import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import type { ByteChannel, ChannelReader } from './channel.js';
import { PeekedChannel } from './peeked-channel.js';

test('a reader that pauses and resumes before its first bytes come gets them once, and stays the reader', async () => {
  const readers: (ChannelReader | undefined)[] = [];
  const channel: ByteChannel = {
    peer: 'a',
    closed: new Promise(() => {}),
    write: () => {},
    read: (reader) => readers.push(reader),
    pause: () => {},
    resume: () => {},
    end: async () => {},
    destroy: () => {},
  };
  const peeked = new PeekedChannel(channel);
  peeked.peek(() => {});
  readers[0]!.buffer().set([1, 2, 3]);
  readers[0]!.received(3);
  peeked.hold();
  const space = new Uint8Array(8);
  const received: number[][] = [];
  const reader: ChannelReader = {
    buffer: () => space,
    received: (byteCount) => received.push([...space.subarray(0, byteCount)]),
    ended: () => {},
    failed: () => {},
  };
  peeked.read(reader);
  for (let round = 0; round < 2; round += 1) {
    peeked.pause();
    peeked.resume();
  }
  await turn();
  assert.deepEqual(received, [[1, 2, 3]]);
  assert.deepEqual(readers.slice(1), [reader]);
});
