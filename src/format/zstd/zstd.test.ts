// zstd as it is unpacked where Node does not: frames of the zstd command and frames made by hand.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TEXT_FRAME } from '../../../test/zstd-frame.js';
import { ZstdDecoder } from './decoder.js';
import { Xxh64 } from './xxh64.js';

/** What the zstd command put at the end of frames with so many bytes of `pattern`. */
const CHECKSUMS: readonly (readonly [number, number])[] = [
  [0, 0x51d8_e999],
  [1, 0xbc1f_4bb6],
  [3, 0x52e5_64c9],
  [4, 0x66ee_9fda],
  [7, 0x59ce_60d8],
  [8, 0xc6f9_0092],
  [12, 0x33af_5133],
  [31, 0xcc4a_6119],
  [32, 0xf790_fd97],
  [33, 0xba58_8784],
  [63, 0x31c7_493c],
  [64, 0xf6ee_b01f],
  [71, 0x7001_41a7],
  [100, 0x170f_e531],
  [1000, 0xc8af_9f71],
  [70001, 0x2584_66d7],
];

const pattern = (length: number): Uint8Array =>
  Uint8Array.from({ length }, (_, index) => (index * 7 + (index >> 8) * 31 + 3) & 0xff);

const text = (): Buffer => {
  let lines = '';
  for (let page = 0; lines.length < 60_000; page += 1) {
    lines += `page ${page} of block pc.ram, checked ${(page * page) % 977} times;`;
  }
  return Buffer.from(lines.slice(0, 60_000));
};

const unpacked = (packed: Uint8Array, pieceBytes = packed.length, endsAnywhere = false): Buffer => {
  const decoder = new ZstdDecoder({ endsAnywhere });
  const pieces: Uint8Array[] = [];
  for (let at = 0; at < packed.length; at += pieceBytes) {
    pieces.push(...decoder.push(packed.subarray(at, at + pieceBytes)));
  }
  decoder.finish();
  return Buffer.concat(pieces);
};

const le = (value: number, bytes: number): Buffer => {
  const buffer = Buffer.alloc(bytes);
  buffer.writeUIntLE(value, 0, bytes);
  return buffer;
};

const MAGIC = 0xfd2fb528;

/** A frame with a window of 2^windowLog bytes, of blocks as they are, or of one byte so many times. */
const frame = (blocks: readonly (Uint8Array | readonly [byte: number, count: number])[], windowLog = 17): Buffer =>
  Buffer.concat([
    le(MAGIC, 4),
    Buffer.from([0, (windowLog - 10) << 3]),
    ...blocks.flatMap((block, index) => {
      const isLast = Number(index === blocks.length - 1);
      return block instanceof Uint8Array
        ? [le(block.length * 8 + isLast, 3), block]
        : [le(block[1] * 8 + 2 + isLast, 3), Buffer.from([block[0]])];
    }),
  ]);

test('checksums are those of the zstd command, however the bytes come', () => {
  for (const [length, expected] of CHECKSUMS) {
    for (const pieceBytes of [1, 13, 32, 70_001]) {
      const hash = new Xxh64();
      const bytes = pattern(length);
      for (let at = 0; at < length; at += pieceBytes) {
        hash.update(bytes.subarray(at, at + pieceBytes));
      }
      assert.equal(hash.low32(), expected, `${length} bytes in pieces of ${pieceBytes}`);
    }
  }
});

test('a file of the zstd command is unpacked, in pieces of any size', () => {
  for (const pieceBytes of [TEXT_FRAME.length, 1, 2, 3, 17, 4096]) {
    assert.deepEqual(unpacked(TEXT_FRAME, pieceBytes), text(), `pieces of ${pieceBytes}`);
  }
});

test('frames follow each other, empty ones and ones to be skipped among them', () => {
  const skipped = Buffer.concat([le(0x184d2a53, 4), le(5, 4), Buffer.from('magic')]);
  const empty = frame([new Uint8Array()]);
  const packed = Buffer.concat([skipped, TEXT_FRAME, empty, frame([pattern(1000), [7, 100_000], pattern(9)]), skipped]);
  const expected = Buffer.concat([text(), pattern(1000), Buffer.alloc(100_000, 7), pattern(9)]);
  for (const pieceBytes of [packed.length, 1, 1000]) {
    assert.deepEqual(unpacked(packed, pieceBytes), expected);
  }
});

test('what follows the last frame on a device is no part of it', () => {
  assert.deepEqual(unpacked(Buffer.concat([TEXT_FRAME, Buffer.alloc(5000)]), 700, true), text());
});

const changed = (at: number, value: number): Buffer => {
  const copy = Buffer.from(TEXT_FRAME);
  copy[at < 0 ? copy.length + at : at] = value;
  return copy;
};

for (const [what, packed, message] of [
  ['nothing', Buffer.alloc(0), /end inside a frame/],
  ['a cut frame', TEXT_FRAME.subarray(0, 3000), /end inside a frame/],
  ['a frame without its checksum', TEXT_FRAME.subarray(0, -4), /end inside a frame/],
  ['a wrong checksum', changed(-1, TEXT_FRAME.at(-1)! ^ 1), /has checksum 0x/],
  ['no frame', Buffer.from('not zstd'), /begins with 0x/],
  ['something behind the last frame', Buffer.concat([TEXT_FRAME, Buffer.alloc(9)]), /begins with 0x0/],
  ['a window of 2 GiB', frame([[0, 100]], 31), /window of 2147483648 bytes/],
  ['a block of 2 MiB', frame([[0, 2 ** 21 - 1]], 25), /type 1 and 2097151 bytes/],
  ['a block of a type that is none', Buffer.concat([frame([]), le(7, 3)]), /type 3/],
  ['a dictionary', Buffer.concat([le(MAGIC, 4), Buffer.from([1, 0, 9]), le(1, 3)]), /dictionary/],
  [
    'another length than it says',
    Buffer.concat([le(MAGIC, 4), Buffer.from([0x20, 9]), le(3 * 8 + 1, 3), Buffer.from('abc')]),
    /has 3 bytes and says 9/,
  ],
] as const) {
  test(`refused: ${what}`, () => {
    assert.throws(() => unpacked(packed), { code: 'COMPRESSED_DATA', kind: 'invalid', message });
  });
}

test('no changed byte of a frame with a checksum goes unnoticed', () => {
  for (let at = 0; at < TEXT_FRAME.length; at += 29) {
    assert.throws(
      () => unpacked(changed(at, TEXT_FRAME[at]! ^ (1 << (at % 8)))),
      { code: 'COMPRESSED_DATA' },
      `byte ${at}`,
    );
  }
});

test('a bomb is unpacked a block at a time, and none is kept', () => {
  // 4 bytes become 128 KiB: 8 GiB in all.
  const decoder = new ZstdDecoder();
  const bomb = frame(Array.from({ length: 65_536 }, () => [0, 2 ** 17] as const));
  const before = process.memoryUsage().arrayBuffers;
  let blocks = 0;
  let most = 0;
  for (const _ of decoder.push(bomb)) {
    blocks += 1;
    most = Math.max(most, process.memoryUsage().arrayBuffers - before);
    if (blocks === 2000) {
      break;
    }
  }
  assert.equal(blocks, 2000);
  assert.ok(most < 128 * 2 ** 20, `${most} bytes`);
});
