// The lazy, chunked clearing of the log as the engine uses it, page by page. Schedules: schedules.test.ts.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PAGE, ScriptedGuest } from '../../test/source-kit.js';
import { SendBitmap } from './send-bitmap.js';
import type { Trace } from './trace.js';

const CHUNK = 64;

interface Setup {
  readonly guest: ScriptedGuest;
  readonly send: SendBitmap;
  /** The clears paid, as `block:firstPage+pages`. */
  readonly clears: string[];
}

const setup = (pages: readonly number[], shift: number | 'eager' = 6, segmentBytes?: number): Setup => {
  const guest = new ScriptedGuest(pages, segmentBytes);
  const clears: string[] = [];
  const trace: Trace = {
    migration_bitmap_clear_dirty: (name, start, size) => clears.push(`${name}:${start / PAGE}+${size / PAGE}`),
  };
  const send = new SendBitmap({
    blocks: guest.blocks,
    log: guest.log,
    clearBitmapShift: shift === 'eager' ? undefined : shift,
    trace,
  });
  guest.blocks.dirty.migrationTracking = true;
  guest.log.start();
  send.sync(false);
  return { guest, send, clears };
};

/** Sends everything, `limit` pages a batch; returns the pages in the order sent. */
const sendAll = ({ send }: Setup, limit = 256): string[] => {
  const sent: string[] = [];
  while (send.next(() => limit)) {
    send.payDebts();
    send.take();
    for (const page of send.batch.pages.subarray(0, send.batch.count)) {
      sent.push(`${send.batch.block.name}:${page}`);
    }
  }
  return sent;
};

// PL-6, PL-7, PL-17, PL-19, PL-20
test('the first pass visits every page once, largest block first, and the first sync adds nothing', () => {
  const world = setup([130, 300], 6, 2 ** 18);
  assert.equal(world.send.remaining, 430);
  assert.equal(world.send.sync(false), 0);
  const sent = sendAll(world);
  assert.equal(new Set(sent).size, 430);
  assert.equal(sent.length, 430);
  assert.equal(sent[0], 'block1:0');
  assert.equal(world.send.remaining, 0);
});

// PL-21
test('with no RAM there is nothing to send', () => {
  const world = setup([]);
  assert.equal(world.send.remaining, 0);
  assert.deepEqual(sendAll(world), []);
});

// PL-17: the cursor goes on where it was, and comes round
test('the search goes on behind the last page and wraps', () => {
  const world = setup([128]);
  const { send, guest } = world;
  const [block] = guest.blocks.blocks;
  sendAll(world);
  for (const page of [3, 70]) {
    guest.store(block!, page, 1);
  }
  send.sync(false);
  assert.ok(send.next(() => 1));
  assert.equal(send.batch.pages[0], 3);
  send.payDebts();
  send.take();
  guest.store(block!, 2, 1);
  send.sync(false);
  assert.deepEqual(sendAll(world, 1), ['block0:70', 'block0:2']);
});

// CB-1, CB-5, CB-6, CB-13, CB-14
test('a chunk is cleared once a round, before its first page, and only if a page of it is sent', () => {
  const world = setup([5 * CHUNK]);
  const { guest, send, clears } = world;
  const [block] = guest.blocks.blocks;
  sendAll(world, 7);
  assert.deepEqual(
    clears,
    [0, 1, 2, 3, 4].map((chunk) => `block0:${chunk * CHUNK}+${CHUNK}`),
  );
  clears.length = 0;
  for (const page of [CHUNK, CHUNK + 1, 4 * CHUNK + 63]) {
    guest.store(block!, page, 1);
  }
  send.sync(false);
  assert.deepEqual(sendAll(world, 1), [`block0:${CHUNK}`, `block0:${CHUNK + 1}`, `block0:${4 * CHUNK + 63}`]);
  assert.deepEqual(clears, [`block0:${CHUNK}+${CHUNK}`, `block0:${4 * CHUNK}+${CHUNK}`]);
});

// CB-14, CB-13
test('calls fall as the shift grows; eager clearing clears every block at every sync', () => {
  const calls = [6, 7, 8, 31].map((shift) => {
    const world = setup([512], shift);
    sendAll(world);
    return world.send.logClears.calls;
  });
  assert.deepEqual(calls, [8, 4, 2, 1]);
  const eager = setup([512], 'eager');
  assert.equal(eager.send.logClears.calls, 1);
  eager.send.sync(false);
  assert.equal(eager.send.logClears.calls, 2);
});

// CB-3: what the clear forgets, the read has
test('a page written between the sync and the clear of its chunk travels once', () => {
  const world = setup([CHUNK]);
  const { guest, send } = world;
  const [block] = guest.blocks.blocks;
  sendAll(world);
  guest.store(block!, 5, 1);
  send.sync(false);
  guest.store(block!, 5, 2);
  assert.deepEqual(sendAll(world), ['block0:5']);
  assert.equal(send.sync(false), 0);
  assert.deepEqual(sendAll(world), []);
});

// CB-16: with eager clearing it travels twice
test('with eager clearing the same page travels twice', () => {
  const world = setup([CHUNK], 'eager');
  const { guest, send } = world;
  const [block] = guest.blocks.blocks;
  sendAll(world);
  guest.store(block!, 5, 1);
  send.sync(false);
  guest.store(block!, 5, 2);
  assert.deepEqual(sendAll(world), ['block0:5']);
  assert.equal(send.sync(false), 1);
});

// CB-2
test('a page written after the clear of its chunk travels again', () => {
  const world = setup([CHUNK]);
  const { guest, send } = world;
  const [block] = guest.blocks.blocks;
  sendAll(world);
  guest.store(block!, 5, 1);
  send.sync(false);
  assert.ok(send.next(() => 256));
  send.payDebts();
  guest.store(block!, 5, 2);
  send.take();
  assert.equal(send.sync(false), 1);
  assert.deepEqual(sendAll(world), ['block0:5']);
});

// CB-4, G-5: the clear is masked by what the sync saw
test('a page that was clean at the sync and is written before the clear of its chunk is not forgotten', () => {
  const world = setup([CHUNK]);
  const { guest, send } = world;
  const [block] = guest.blocks.blocks;
  sendAll(world);
  guest.store(block!, 5, 1);
  send.sync(false);
  guest.store(block!, 6, 1);
  assert.deepEqual(sendAll(world), ['block0:5']);
  assert.equal(send.sync(false), 1);
  assert.deepEqual(sendAll(world), ['block0:6']);
});

// G-2, CB-22, FH-1: only bits that were set count, and the log does not bring the pages back
test('excluded pages are not sent, count once, and do not come back', () => {
  const world = setup([2 * CHUNK]);
  const { guest, send, clears } = world;
  const [block] = guest.blocks.blocks;
  for (let page = 0; page < 2 * CHUNK; page += 1) {
    guest.store(block!, page, 1);
  }
  send.sync(false);
  assert.equal(send.exclude(block!, 10, 100), 100);
  assert.equal(send.exclude(block!, 10, 10), 0);
  assert.equal(clears.length, 0, 'paid by exclude, not by a page');
  assert.equal(send.remaining, 28);
  assert.equal(sendAll(world).length, 28);
  assert.equal(send.sync(false), 0);
});

// spec/algorithms.md 16, number 17
test('with the guest stopped nothing is cleared any more', () => {
  const world = setup([2 * CHUNK]);
  const { guest, send } = world;
  const [block] = guest.blocks.blocks;
  sendAll(world);
  guest.store(block!, 5, 1);
  send.sync(false);
  guest.store(block!, CHUNK + 5, 1);
  send.sync(true);
  const { calls } = send.logClears;
  assert.deepEqual(sendAll(world), ['block0:5', `block0:${CHUNK + 5}`]);
  assert.equal(send.logClears.calls, calls);
});

// G-10
test('nothing is left in the send bitmap after a release', () => {
  const { guest, send } = setup([100]);
  const [block] = guest.blocks.blocks;
  send.release();
  assert.equal(guest.blocks.bitmaps.kernels.countRange(block!.bitmaps.send, 0, block!.maxPages), 0);
});

// RC-1, RC-2
test('what was not received is to be sent: over the used length, nothing behind it, and the counter says how much', () => {
  const { guest, send } = setup([100, 30]);
  const [block] = guest.blocks.blocks;
  const { kernels, words } = guest.blocks.bitmaps;
  send.exclude(block!, 0, 100);
  // A destination may set bits behind the last page, or not.
  kernels.setRange(block!.bitmaps.received, 10, 50);
  send.replaceByMissing(block!);
  const bits = Array.from({ length: 128 }, (_, page) => (words[block!.bitmaps.send / 4 + (page >>> 5)]! >>> page) & 1);
  assert.deepEqual(
    bits,
    bits.map((_, page) => (page < 100 && (page < 10 || page >= 60) ? 1 : 0)),
  );
  assert.equal(send.remaining, 50 + 30);
});
