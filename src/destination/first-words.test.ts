// What a source has to say first, byte by byte, and who else may say it.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { link } from '../../test/linked-channels.js';
import type { ByteChannel } from '../channel/channel.js';
import type { Verdict } from '../channel/incoming-connections.js';
import { tokenPings } from '../format/stream/migration-token.js';
import { askReceivedBitmap, postcopyResume } from '../format/stream/postcopy-commands.js';
import { ping } from '../format/stream/write.js';
import { beginsStream, type KnownSource, recovers } from './first-words.js';

const from = (origin: string | undefined): ByteChannel =>
  Object.assign(Object.create(link().destination) as ByteChannel, { origin });

/** The verdict once all of these bytes are there; before that there must be none. */
const verdict = (source: KnownSource, said: Uint8Array, origin?: string): Verdict => {
  const judge = recovers(source);
  for (let count = 0; count < said.length; count += 1) {
    const early = judge(from(origin), said.subarray(0, count));
    if (early === 'no') {
      return 'no';
    }
    assert.equal(early, 'more', `after ${count} bytes`);
  }
  return judge(from(origin), said);
};

const blockNames = new Set(['pc.ram', 'vga.vram']);
const stock = { token: undefined, origin: 'host 10.0.0.7', blockNames };
const token = Uint8Array.from({ length: 16 }, (_, index) => 16 * index);
const ours = { ...stock, token };

test('a stock QEMU: the recovery protocol, from where the first connection came', () => {
  assert.equal(verdict(stock, askReceivedBitmap('pc.ram'), 'host 10.0.0.7'), 'yes');
  assert.equal(verdict(stock, askReceivedBitmap('pc.ram'), 'host 10.0.0.8'), 'no');
  assert.equal(verdict({ ...stock, origin: 'user 0' }, askReceivedBitmap('pc.ram'), 'user 1000'), 'no');
  // Where the system does not say.
  assert.equal(verdict(stock, askReceivedBitmap('pc.ram')), 'yes');
  assert.equal(verdict(stock, askReceivedBitmap('pc.rom'), 'host 10.0.0.7'), 'no');
  for (const said of [postcopyResume(), ping(1), new TextEncoder().encode('QEVM'), new Uint8Array(9)]) {
    assert.equal(verdict(stock, said, 'host 10.0.0.7'), 'no', Buffer.from(said).toString('hex'));
  }
});

test('one of ours: its token, from anywhere, and nothing else', () => {
  assert.equal(verdict(ours, tokenPings(token), 'host 10.0.0.8'), 'yes');
  assert.equal(verdict(ours, askReceivedBitmap('pc.ram'), 'host 10.0.0.7'), 'no');
  for (let byte = 0; byte < 16; byte += 1) {
    const other = Uint8Array.from(token);
    other[byte]! ^= 1;
    assert.equal(verdict(ours, tokenPings(other), 'host 10.0.0.7'), 'no', `byte ${byte}`);
  }
});

test('the beginning of a stream', () => {
  const judge = (text: string): Verdict => beginsStream(from(undefined), new TextEncoder().encode(text));
  assert.deepEqual(['', 'QE', 'QEVM', 'QEVM and more', 'GET /'].map(judge), ['more', 'more', 'yes', 'yes', 'no']);
});
