// Where a stream ends whose device state looks as if it ended before.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ElementType } from './constants.js';
import { buildDeviceTail } from './device-tail.js';
import { DeviceTailCollector } from './device-tail-collector.js';
import { streamEnd } from './write.js';

/** A VM description behind a byte that is not EOF, as device state may hold it. */
const TEXT = Buffer.from('{"devices": []}');
const LOOK_ALIKE = Buffer.concat([
  Buffer.from([1, ElementType.VMDESCRIPTION, 0, 0, 0, TEXT.length]),
  TEXT,
  Buffer.alloc(8),
]);

const tailOf = (body: Uint8Array): { readonly bytes: Uint8Array; readonly sections: Uint8Array } => {
  const { sections, description } = buildDeviceTail([{ name: 'x', instance: 0, version: 1, body }]);
  return { bytes: Buffer.concat([sections, streamEnd(description)]), sections };
};

test('the end is found wherever the bytes are cut', () => {
  const { bytes, sections } = tailOf(Buffer.alloc(40));
  for (let cut = 1; cut < bytes.length; cut += 1) {
    const collector = new DeviceTailCollector(0);
    assert.equal(collector.append(bytes, 0, cut), cut);
    assert.ok(!collector.complete, `${cut} of ${bytes.length} bytes`);
    collector.append(bytes, cut, bytes.length);
    assert.ok(collector.complete, `cut behind ${cut} of ${bytes.length} bytes`);
    assert.deepEqual(Buffer.from(collector.finish().sections), Buffer.from(sections));
  }
});

test('device state is no end if the byte in front is not EOF', () => {
  const { bytes, sections } = tailOf(LOOK_ALIKE);
  const collector = new DeviceTailCollector(0);
  assert.equal(collector.append(bytes, 0, bytes.length), bytes.length);
  assert.ok(collector.complete);
  assert.deepEqual(Buffer.from(collector.finish().sections), Buffer.from(sections));
});
