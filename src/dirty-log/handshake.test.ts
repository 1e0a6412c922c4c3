import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { withAtomicSteps } from '../../test/atomic-steps.js';
import { allocateHandshake, Handshake, HandshakeWriter } from './handshake.js';

const everything = { firstPage: 0, pageCount: Number.POSITIVE_INFINITY };
const notice = ({ firstPage, pageCount }: HandshakeWriter) => ({ firstPage, pageCount });

/** An engine's end whose waits run `answer`, as if the writers got the processor just then. */
const scheduled = (writerCount: number, answer: (writer: number) => void) => {
  const shared = allocateHandshake(writerCount);
  const waits: number[] = [];
  const engine = new Handshake(shared, 1000, (_words, index) => {
    const writer = index / 16 - 1;
    waits.push(writer);
    assert.ok(waits.length < 100, 'the engine waits for ever');
    answer(writer);
  });
  const writers = Array.from({ length: writerCount }, (_, i) => new HandshakeWriter(shared, i));
  return { shared, engine, writers, waits };
};

describe('Handshake', () => {
  // TS-14
  test('returns only after every running writer has acknowledged, and hands each the range', () => {
    const { engine, writers, waits } = scheduled(3, (writer) => {
      assert.equal(writers[writer]!.poll(), true);
    });
    for (const writer of writers) {
      writer.unpark();
      assert.equal(writer.poll(), false);
    }
    engine.advance(0, 1); // the first one after construction is for everything, whatever was asked
    engine.advance(640, 64);
    assert.deepEqual(waits, [0, 1, 2, 0, 1, 2]);
    assert.deepEqual(writers.map(notice), Array(3).fill({ firstPage: 640, pageCount: 64 }));
    assert.equal(writers[0]!.poll(), false);
  });

  test('does not wait for parked writers, which forget everything when they return', () => {
    const { engine, writers, waits } = scheduled(2, () => {});
    engine.advance(0, 64);
    engine.advance(64, 64);
    assert.deepEqual(waits, []);
    assert.equal(writers[1]!.unpark(), true);
    assert.deepEqual(notice(writers[1]!), everything);
    writers[1]!.park();
    engine.advance(0, 64);
    assert.equal(writers[1]!.unpark(), true);
    assert.deepEqual(notice(writers[1]!), everything);
    writers[1]!.park();
    assert.equal(writers[1]!.unpark(), false, 'nothing happened meanwhile');
  });

  // TS-14, TS-15: the engine publishes first and looks second, and so does the writer
  test('a writer that leaves while the engine advances forgets, or is waited for, wherever the engine comes between', () => {
    let schedules = 0;
    for (let at = 0; at < 20; at += 1) {
      const shared = allocateHandshake(1);
      // The writer cannot go on while it is waited for, since both run in this thread: the wait ends the attempt.
      const engine = new Handshake(shared, 1000, () => {
        throw new Error('the engine waits');
      });
      engine.advance(0, 64);
      const writer = new HandshakeWriter(shared, 0);
      writer.unpark();
      writer.park();
      let step = 0;
      let hasAdvanced = false;
      const advance = (): void => {
        if (step === at) {
          try {
            engine.advance(64, 64);
            hasAdvanced = true;
          } catch (error) {
            assert.match((error as Error).message, /the engine waits/);
          }
        }
        step += 1;
      };
      let forgets = false;
      withAtomicSteps([shared.buffer], advance, () => {
        forgets = writer.unpark();
      });
      if (step <= at) {
        break;
      }
      schedules += 1;
      assert.ok(forgets || !hasAdvanced, `the engine went on before step ${at} of the writer, who knows nothing of it`);
      // Whoever was not seen to acknowledge learns of it at the next safepoint.
      assert.ok(forgets || writer.poll(), `the writer never hears of what was announced before its step ${at}`);
    }
    assert.ok(schedules >= 3, `${schedules} schedules`);
  });

  test('counts a writer that parks instead of acknowledging', () => {
    const { engine, writers } = scheduled(1, () => writers[0]!.park());
    writers[0]!.unpark();
    engine.advance(0, 64);
    engine.awaitParked();
  });

  // A writer may still be reading the range of an announcement that nobody waited for.
  test('after an unconfirmed announcement the next range is everything', () => {
    const { engine, writers } = scheduled(1, () => writers[0]!.poll());
    writers[0]!.unpark();
    engine.advance(0, 64);
    engine.announce(0, 64);
    writers[0]!.poll();
    assert.deepEqual(notice(writers[0]!), { firstPage: 0, pageCount: 64 });
    engine.advance(128, 64);
    assert.deepEqual(notice(writers[0]!), everything);
    engine.advance(128, 64);
    assert.deepEqual(notice(writers[0]!), { firstPage: 128, pageCount: 64 });
  });

  // TS-15
  test('names the writer that does not answer, and recovers when it does', () => {
    const shared = allocateHandshake(2);
    const engine = new Handshake(shared, 20);
    const writers = [new HandshakeWriter(shared, 0), new HandshakeWriter(shared, 1)];
    writers[1]!.unpark();
    const before = performance.now();
    assert.throws(() => engine.advance(0, 64), {
      code: 'GUEST_NOT_RESPONDING',
      value: 1,
      message: /thread 1 .* 20 ms/,
    });
    assert.throws(() => engine.awaitParked(), { code: 'GUEST_NOT_RESPONDING', value: 1 });
    assert.ok(performance.now() - before >= 40);
    assert.equal(writers[1]!.poll(), true);
    writers[1]!.park();
    engine.advance(0, 64);
    engine.awaitParked();
  });

  test('survives the wrap of the epoch', () => {
    const { shared, engine, writers } = scheduled(1, () => writers[0]!.poll());
    new Int32Array(shared.buffer)[0] = 2 ** 31 - 3;
    writers[0]!.unpark();
    engine.advance(0, 64);
    for (let i = 0; i < 4; i += 1) {
      engine.advance(i, 64);
      assert.deepEqual(notice(writers[0]!), { firstPage: i, pageCount: 64 });
      assert.ok(new Int32Array(shared.buffer)[0]! > 0);
    }
  });
});
