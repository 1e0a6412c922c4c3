// Snapshots inside qcow2 images, made by hand; those of QEMU are in test/interop/containers.test.ts.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Qcow2Options, qcow2Image } from '../../../test/qcow2-images.js';
import { richStream } from '../../../test/streams.js';
import type { ReadAt } from '../snapshot.js';
import { readQcow2Disk, VmState } from './index.js';

const readerOf =
  (bytes: Uint8Array, onRead: (length: number) => void = () => {}): ReadAt =>
  (position, target) => {
    onRead(target.length);
    assert.ok(position >= 0 && position + target.length <= bytes.length, `read of ${target.length} at ${position}`);
    target.set(bytes.subarray(position, position + target.length));
  };

const stateOf = (image: Uint8Array, index = 0): Uint8Array => {
  const disk = readQcow2Disk(readerOf(image), image.length);
  const state = new VmState(readerOf(image), image.length, disk, disk.snapshots[index]!);
  const bytes = new Uint8Array(state.sizeBytes).fill(0xee);
  // In pieces that fit neither clusters nor pages.
  for (let at = 0; at < bytes.length; at += 30_001) {
    state.readAt(at, bytes.subarray(at, Math.min(at + 30_001, bytes.length)));
  }
  return bytes;
};

const { bytes: stream } = richStream();
/** With zeros in it that are not in the file. */
const withHoles = Buffer.concat([stream, Buffer.alloc(50_000), stream]);

const layouts: readonly (readonly [string, Qcow2Options])[] = [
  ['version 2', { version: 2 }],
  ['clusters of 512 bytes', { clusterBits: 9, diskBytes: 200_000 }],
  ['clusters of 64 KiB', { clusterBits: 16 }],
  ['a disk of no bytes', { diskBytes: 0 }],
  ['a disk that ends where a table does', { diskBytes: 2 ** 21 }],
  ['clusters in the wrong order', { backwards: true }],
  ['subclusters', { features: 16n, clusterBits: 14 }],
  ['a dirty image', { features: 1n }],
];
for (const [what, options] of layouts) {
  test(`the stream of a snapshot is read: ${what}`, () => {
    const image = qcow2Image(
      [
        { id: '1', tag: 'disk only', vmState: new Uint8Array() },
        { id: '2', tag: 'before', vmState: withHoles },
        { id: '3', tag: 'später', vmState: stream },
      ],
      options,
    );
    const { snapshots } = readQcow2Disk(readerOf(image), image.length);
    assert.deepEqual(
      snapshots.map(({ id, tag, vmStateBytes, seconds, clockMs }) => [id, tag, vmStateBytes, seconds, clockMs]),
      [
        ['1', 'disk only', 0, 1_700_000_000, 12_000],
        ['2', 'before', withHoles.length, 1_700_000_000, 12_000],
        ['3', 'später', stream.length, 1_700_000_000, 12_000],
      ],
    );
    assert.deepEqual(Buffer.from(stateOf(image, 1)), withHoles);
    assert.deepEqual(Buffer.from(stateOf(image, 2)), Buffer.from(stream));
  });
}

const damagedBy = (change: (image: Buffer, l1: number, l2: number) => void, options: Qcow2Options = {}): Buffer => {
  const image = qcow2Image([{ id: '1', tag: 'before', vmState: stream }], options);
  const l1 = Number(image.readBigUInt64BE(Number(image.readBigUInt64BE(64))));
  // The first entry behind the disk: a table of clusters of 4 KiB stands for 2 MiB.
  const l2 = Number(image.readBigUInt64BE(l1 + 16) & 0x00ff_ffff_ffff_fe00n);
  change(image, l1, l2);
  return image;
};

for (const [what, code, image] of [
  ['encrypted', 'QCOW2_ENCRYPTED', damagedBy((b) => b.writeUInt32BE(2, 32))],
  ['with an external data file', 'QCOW2_DATA_FILE', damagedBy((b) => b.writeBigUInt64BE(4n, 72))],
  ['with an unknown feature', 'QCOW2_FEATURE', damagedBy((b) => b.writeBigUInt64BE(64n, 72))],
  ['of version 4', 'QCOW2_HEADER', damagedBy((b) => b.writeUInt32BE(4, 4))],
  ['with clusters of 2^40 bytes', 'QCOW2_HEADER', damagedBy((b) => b.writeUInt32BE(40, 20))],
  ['cut in its header', 'QCOW2_HEADER', damagedBy(() => {}).subarray(0, 50)],
  ['with 2^32 - 1 snapshots', 'QCOW2_SNAPSHOTS', damagedBy((b) => b.writeUInt32BE(0xffff_ffff, 60))],
  ['with more snapshots than there are', 'QCOW2_SNAPSHOTS', damagedBy((b) => b.writeUInt32BE(60_000, 60))],
  ['with snapshots outside', 'QCOW2_SNAPSHOTS', damagedBy((b) => b.writeBigUInt64BE(2n ** 63n, 64))],
  ['with a table outside', 'QCOW2_TABLE', damagedBy((b, l1) => b.writeBigUInt64BE(2n ** 40n, l1 + 16))],
  ['with a table off its place', 'QCOW2_TABLE', damagedBy((b, l1) => b.writeBigUInt64BE(512n, l1 + 16))],
  ['with a cluster outside', 'QCOW2_TABLE', damagedBy((b, _, l2) => b.writeBigUInt64BE(2n ** 40n, l2))],
  ['with a compressed cluster', 'QCOW2_COMPRESSED', damagedBy((b, _, l2) => b.writeBigUInt64BE(2n ** 62n, l2))],
  ['with a table too short', 'QCOW2_TABLE', damagedBy((b) => b.writeUInt32BE(2, Number(b.readBigUInt64BE(64)) + 8))],
  [
    'with memory of 2^62 bytes',
    'QCOW2_TABLE',
    damagedBy((b) => b.writeBigUInt64BE(2n ** 62n, Number(b.readBigUInt64BE(64)) + 40)),
  ],
] as const) {
  test(`an image ${what} is refused by name`, () => {
    assert.throws(() => stateOf(image), { code, kind: 'invalid' });
  });
}

test('tables that point to each other and to themselves end', () => {
  for (const target of ['l1', 'l2'] as const) {
    const image = damagedBy((b, l1, l2) => {
      const entry = BigInt(target === 'l1' ? Math.floor(l1 / 4096) * 4096 : l2) | (1n << 63n);
      b.writeBigUInt64BE(BigInt(l2), l1 + 16);
      for (let at = 0; at < 4096; at += 8) {
        b.writeBigUInt64BE(entry, l2 + at);
      }
    });
    assert.equal(stateOf(image).length, stream.length);
  }
});
