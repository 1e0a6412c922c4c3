// Return path messages against the vectors of spec/qemu-wire-format.md 9 and the checks of 5.5.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  pong,
  ReturnPathReader,
  receivedBitmap,
  receivedBitmapBytes,
  requestPages,
  resumeAck,
  shut,
  switchoverAck,
} from './return-path.js';

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const unhex = (text: string): Uint8Array => Buffer.from(text.replaceAll(' ', ''), 'hex');

/** Reads messages in pieces of `pieceBytes` and says what was read. */
const read = (bytes: Uint8Array, pieceBytes = bytes.length, recovers = false): string[] => {
  const seen: string[] = [];
  const target = new Uint8Array(16);
  const reader = new ReturnPathReader({
    pong: (value) => seen.push(`pong ${value}`),
    shut: (error) => seen.push(`shut ${error}`),
    requestPages: (name, start, length) => seen.push(`request ${name} ${start} ${length}`),
    switchoverAck: () => seen.push('switchover-ack'),
    ...(recovers && {
      recovery: {
        bitmapTarget: () => target,
        bitmapReceived: (name) => seen.push(`bitmap ${name} ${hex(target)}`),
        resumeAck: (value) => seen.push(`resume-ack ${value}`),
      },
    }),
  });
  let start = 0;
  for (let end = 0; end < bytes.length; ) {
    end = Math.min(end + pieceBytes, bytes.length);
    start += reader.push(bytes, start, end);
  }
  assert.equal(start, bytes.length);
  return seen;
};

test('messages are the bytes that QEMU sends', () => {
  assert.equal(hex(shut(0)), '0001000400000000');
  assert.equal(hex(pong(1)), '0002000400000001');
  assert.equal(
    hex(requestPages(0xca000, 0x1000, 'pc.ram')),
    hex(unhex('0003 0013 00000000000ca000 00001000 06 70632e72616d')),
  );
  assert.equal(hex(requestPages(0xcb000, 0x1000)), hex(unhex('0004 000c 00000000000cb000 00001000')));
  assert.equal(hex(resumeAck()), '0006000400000001');
  assert.equal(hex(switchoverAck()), '00070000');
});

// RC-12: 5.6
test('a received bitmap is whole words of 64 bits, pages from the lowest bit up, and an end mark', () => {
  assert.deepEqual([1, 64, 65, 2 ** 20].map(receivedBitmapBytes), [8, 8, 16, 2 ** 17]);
  const bitmap = unhex('0180000000000000 0100000000000000');
  assert.equal(
    hex(receivedBitmap('p', bitmap)),
    hex(unhex('0005 0002 01 70 0000000000000010 0180000000000000 0100000000000000 0123456789abcdef')),
  );
});

test('what is written is read back, however it is cut', () => {
  const bytes = Buffer.concat([
    pong(7),
    requestPages(4096, 4096, 'pc.ram'),
    requestPages(2 ** 40, 4096),
    switchoverAck(),
    shut(3),
  ]);
  const expected = ['pong 7', 'request pc.ram 4096 4096', `request pc.ram ${2 ** 40} 4096`, 'switchover-ack', 'shut 3'];
  for (const pieceBytes of [bytes.length, 1, 5]) {
    assert.deepEqual(read(bytes, pieceBytes), expected);
  }
});

test('what is said in a recovery too', () => {
  const bitmap = unhex('0180000000000000 0100000000000000');
  const bytes = Buffer.concat([receivedBitmap('p', bitmap), pong(7), receivedBitmap('q', bitmap), resumeAck()]);
  const expected = [`bitmap p ${hex(bitmap)}`, 'pong 7', `bitmap q ${hex(bitmap)}`, 'resume-ack 1'];
  for (const pieceBytes of [bytes.length, 1, 5]) {
    assert.deepEqual(read(bytes, pieceBytes, true), expected);
  }
});

test('a received bitmap that is none is refused', () => {
  const refused: [string, string, string][] = [
    ['another size', '0005 0002 01 70 0000000000000018', 'RECEIVED_BITMAP_SIZE'],
    ['2^63 bytes', '0005 0002 01 70 8000000000000000', 'RECEIVED_BITMAP_SIZE'],
    ['another end mark', `0005 0002 01 70 0000000000000010 ${'00'.repeat(16)} 0123456789abcdee`, 'RECEIVED_BITMAP_END'],
    ['a name longer than its message', '0005 0002 02 70', 'RETURN_PATH_LENGTH'],
    ['no name', '0005 0001 00', 'RETURN_PATH_LENGTH'],
    ['an acknowledgement of 5 bytes', '0006 0005', 'RETURN_PATH_LENGTH'],
  ];
  for (const [what, bytes, code] of refused) {
    assert.throws(() => read(unhex(bytes), undefined, true), { kind: 'invalid', code }, what);
  }
});

test('what breaks the protocol is refused, before its payload arrives', () => {
  const refused: [string, string, string][] = [
    ['type 0', '0000 0000', 'RETURN_PATH_MESSAGE'],
    ['type 8', '0008 0000', 'RETURN_PATH_MESSAGE'],
    ['PONG of 5 bytes', '0002 0005', 'RETURN_PATH_LENGTH'],
    ['request of 513 bytes', '0003 0201', 'RETURN_PATH_LENGTH'],
    ['request without name', '0004 000c 0000000000001000 00001000', 'PAGE_REQUEST'],
    ['request whose name is longer than it', '0003 000e 0000000000001000 00001000 02 70', 'RETURN_PATH_LENGTH'],
    ['request at 2^63', '0003 000e 8000000000000000 00001000 01 70', 'PAGE_REQUEST'],
    ['bitmap outside recovery', '0005 0002 0170', 'RETURN_PATH_MESSAGE'],
    ['message after SHUT', '0001 0004 00000000 0002 0004 00000001', 'RETURN_PATH_MESSAGE'],
  ];
  for (const [what, bytes, code] of refused) {
    assert.throws(() => read(unhex(bytes)), { kind: 'invalid', code }, what);
  }
});
