import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { ReaderFeed } from './reader-feed.js';

/** Plays the socket: fills whatever buffer the feed lends with the next bytes. */
const arrive = (feed: ReaderFeed, lent: Uint8Array, bytes: readonly number[]): Uint8Array => {
  lent.set(bytes);
  feed.onread.callback(bytes.length);
  return feed.onread.buffer();
};

test('bytes land in the buffer of a reader that is ready, and in order whenever it pauses', () => {
  const steps = fc.array(fc.record({ bytes: fc.nat(30), pauseAfter: fc.nat(40) }), { maxLength: 40 });
  fc.assert(
    fc.property(steps, fc.integer({ min: 1, max: 16 }), (arrivals, spaceBytes) => {
      const feed = new ReaderFeed();
      const taken: number[] = [];
      let paused = false;
      let pauseAt = Number.POSITIVE_INFINITY;
      let space = new Uint8Array(0);
      feed.start({
        buffer: () => {
          assert.ok(!paused, 'asked while paused');
          space = new Uint8Array(spaceBytes);
          return space;
        },
        received: (byteCount) => {
          taken.push(...space.subarray(0, byteCount));
          if (taken.length >= pauseAt) {
            paused = true;
            feed.pause();
          }
        },
        ended: () => {},
        failed: () => {},
      });
      feed.onFault = (error) => assert.fail(String(error));
      const resume = (): void => {
        do {
          paused = false;
          pauseAt = Number.POSITIVE_INFINITY;
        } while (!feed.resume());
      };
      let lent = feed.onread.buffer();
      resume();
      let next = 0;
      for (const { bytes, pauseAfter } of arrivals) {
        pauseAt = taken.length + pauseAfter;
        const byteCount = Math.min(bytes, lent.length);
        if (byteCount > 0) {
          lent = arrive(
            feed,
            lent,
            Array.from({ length: byteCount }, () => next++ % 251),
          );
        }
        resume();
      }
      assert.deepEqual(
        taken,
        Array.from({ length: next }, (_, index) => index % 251),
      );
    }),
  );
});

test('an empty buffer is a fault of the reader', () => {
  const feed = new ReaderFeed();
  let fault: unknown;
  feed.onFault = (error) => {
    fault = error;
  };
  feed.start({ buffer: () => new Uint8Array(0), received: () => {}, ended: () => {}, failed: () => {} });
  arrive(feed, feed.onread.buffer(), [1]);
  feed.resume();
  assert.ok(fault instanceof RangeError);
});
