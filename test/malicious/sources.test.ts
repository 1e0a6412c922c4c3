// Every malicious source against the reader: it refuses with the right code, or goes on in bounded memory.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LONGEST_UNIT_BYTES, StreamReader } from '../../src/format/stream/read.js';
import type { StreamHandler } from '../../src/format/stream/stream-handler.js';
import { RamferryError } from '../../src/memory/errors.js';
import { type MaliciousSource, maliciousSources } from './sources.js';

/** An endless source is believed after this much. */
const ENOUGH_BYTES = 8 * 1024 * 1024;

const DEVICE_TAIL_LIMIT = 1024 * 1024;

const ignoreAll: StreamHandler = { ramSetup() {}, zeroPage() {}, page() {}, xbzrlePage() {}, end() {} };

/** Feeds a reader through a receive buffer of fixed size, as an engine does; returns the reader and its error. */
const drive = (source: MaliciousSource): { reader: StreamReader; error: unknown } => {
  const reader = new StreamReader(ignoreAll, { deviceTailLimit: DEVICE_TAIL_LIMIT });
  const buffer = new Uint8Array(LONGEST_UNIT_BYTES);
  let held = 0;
  try {
    for (const chunk of source.chunks()) {
      for (let at = 0; at < chunk.length; ) {
        const taken = Math.min(chunk.length - at, buffer.length - held);
        assert.ok(taken > 0, 'the reader waits for more than LONGEST_UNIT_BYTES');
        buffer.set(chunk.subarray(at, at + taken), held);
        at += taken;
        held += taken;
        const consumed = reader.push(buffer, 0, held);
        buffer.copyWithin(0, consumed, held);
        held -= consumed;
        assert.ok(reader.heldBytes <= DEVICE_TAIL_LIMIT);
      }
      if (reader.position > ENOUGH_BYTES) {
        break;
      }
    }
    return { reader, error: undefined };
  } catch (error) {
    return { reader, error };
  }
};

for (const source of maliciousSources) {
  test(source.name, () => {
    const { reader, error } = drive(source);
    const { outcome } = source;
    if ('code' in outcome) {
      assert.ok(error instanceof RamferryError, `${error}`);
      assert.equal(error.code, outcome.code);
      assert.equal(error.kind, 'invalid');
      // The sentence names the offset, and the offset is one that was reached.
      assert.match(error.message, new RegExp(`byte ${error.offset}\\b`));
      assert.ok(error.offset! <= reader.position + LONGEST_UNIT_BYTES);
      // A reader that failed stays failed.
      assert.throws(() => reader.push(new Uint8Array(1)), error);
      return;
    }
    assert.equal(error, undefined);
    assert.equal(reader.done, 'loads' in outcome);
    if ('endless' in outcome) {
      assert.ok(reader.position > ENOUGH_BYTES);
    }
    if (!reader.done) {
      assert.throws(() => reader.end(), { kind: 'invalid', code: 'STREAM_INCOMPLETE' });
    }
  });
}
