// Streams inside other files: packed ones, snapshots in disk images, one in the other; and what only looks like that.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { libvirtHead } from '../../test/libvirt-images.js';
import { withLoopDevice } from '../../test/loop-device.js';
import { qcow2Image } from '../../test/qcow2-images.js';
import { richStream, StreamBuilder } from '../../test/streams.js';
import { pageIndex } from '../memory/units.js';
import { openSnapshotFile } from './open-snapshot-file-node.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-containers-'));
after(() => fs.rmSync(folder, { recursive: true }));

const save = (name: string, ...parts: Uint8Array[]): string => {
  const file = path.join(folder, name);
  fs.writeFileSync(file, Buffer.concat(parts));
  return file;
};

/** A zstd frame of blocks as they are, or of zeros: no tool is needed for it. */
const zstd = (bytes: Uint8Array, zeroBlocks = 0): Buffer => {
  const head = Buffer.from('28b52ffd0058', 'hex');
  const blocks: Buffer[] = [];
  const block = (header: number, content: Uint8Array): void => {
    const start = Buffer.alloc(3);
    start.writeUIntLE(header, 0, 3);
    blocks.push(start, Buffer.from(content));
  };
  for (let at = 0; at < bytes.length; at += 2 ** 17) {
    const piece = bytes.subarray(at, at + 2 ** 17);
    block(piece.length * 8, piece);
  }
  for (let count = 0; count < zeroBlocks; count += 1) {
    block(2 ** 17 * 8 + 2, new Uint8Array(1));
  }
  block(1, new Uint8Array());
  return Buffer.concat([head, ...blocks]);
};

const stream = richStream();

/** A gzip file whose header has all that a header may have. */
const wordyGzip = (bytes: Uint8Array): Buffer => {
  const plain = gzipSync(bytes);
  plain[3] = 0x1e;
  const extra = Buffer.from([4, 0, 1, 2, 3, 0]);
  const head = Buffer.concat([plain.subarray(0, 10), extra, Buffer.from('guest.mig\0saved by hand\0')]);
  return Buffer.concat([head, Buffer.from([0, 0]), plain.subarray(10)]);
};

const disk = qcow2Image([
  { id: '1', tag: 'disk only', vmState: new Uint8Array() },
  { id: '2', tag: 'before', vmState: stream.bytes },
  { id: '3', tag: '2', vmState: gzipSync(stream.bytes) },
]);

const contents = async (
  operand: string,
): Promise<{ memory: Map<string, Uint8Array>; wrappings: readonly string[] }> => {
  const { snapshot, container, close } = await openSnapshotFile(operand);
  const memory = new Map<string, Uint8Array>();
  for (const { index, name, usedLength } of snapshot.setup.blocks) {
    const target = new Uint8Array(usedLength).fill(0xee);
    snapshot.readPages(index, pageIndex(0), usedLength / snapshot.setup.targetPageSize, target);
    memory.set(name, target);
  }
  close();
  return { memory, wrappings: container.wrappings };
};

for (const [name, bytes, wrappings, operand] of [
  ['guest.gz', gzipSync(stream.bytes), ['gzip']],
  [
    'two members.gz',
    Buffer.concat([gzipSync(stream.bytes.subarray(0, 999)), gzipSync(stream.bytes.subarray(999))]),
    ['gzip'],
  ],
  ['zeros behind it, as on a device.gz', Buffer.concat([gzipSync(stream.bytes), Buffer.alloc(2 ** 23)]), ['gzip']],
  ['named and commented.gz', wordyGzip(stream.bytes), ['gzip']],
  ['something else behind it.gz', Buffer.concat([gzipSync(stream.bytes), Buffer.alloc(2 ** 21, 0xee)]), ['gzip']],
  ['guest.zst', zstd(stream.bytes), ['zstd']],
  ['two frames.zst', Buffer.concat([zstd(stream.bytes.subarray(0, 999)), zstd(stream.bytes.subarray(999))]), ['zstd']],
  ['at an offset.gz', Buffer.concat([Buffer.alloc(77), gzipSync(stream.bytes)]), ['gzip'], 'file:FILE,offset=77'],
  ['guest.save.gz', gzipSync(Buffer.concat([libvirtHead({ format: 0 }), stream.bytes])), ['gzip', 'libvirt']],
  ['guest.gz.zst', zstd(gzipSync(stream.bytes)), ['zstd', 'gzip']],
  ['disk.qcow2', disk, ['qcow2'], 'file:FILE,snapshot=before'],
  ['by tag first.qcow2', disk, ['qcow2', 'gzip'], 'file:FILE,snapshot=2'],
  ['by id.qcow2', disk, ['qcow2', 'gzip'], 'file:FILE,snapshot=3'],
  ['disk.qcow2.gz', gzipSync(disk), ['gzip', 'qcow2'], 'file:FILE,snapshot=before'],
] as const) {
  test(`the stream in ${name} is opened`, async () => {
    const file = save(name, bytes);
    const opened = await contents((operand ?? 'FILE').replace('FILE', file));
    assert.deepEqual(opened, { memory: stream.memory, wrappings });
  });
}

for (const [name, bytes, wrappings, operand] of [
  ['gzip', gzipSync(stream.bytes), ['gzip']],
  ['zstd', zstd(stream.bytes), ['zstd']],
  [
    'an image of libvirt, packed',
    gzipSync(Buffer.concat([libvirtHead({ format: 0 }), stream.bytes])),
    ['gzip', 'libvirt'],
  ],
  ['an image of libvirt', Buffer.concat([libvirtHead({ format: 0 }), stream.bytes]), ['libvirt']],
  ['an image of libvirt, of zstd', Buffer.concat([libvirtHead({ format: 5 }), zstd(stream.bytes)]), ['libvirt']],
  ['a disk image', disk, ['qcow2'], 'file:FILE,snapshot=before'],
] as const) {
  for (const [rest, byte] of [
    ['zeros', 0],
    ['what was there before', 0xee],
  ] as const) {
    test(`the stream in ${name} on a block device is opened, with ${rest} behind it`, async (context) => {
      const file = save('disk', bytes, Buffer.alloc(2 ** 21 - (bytes.length % 2 ** 20), byte));
      await withLoopDevice(context, file, async (device) => {
        const opened = await contents((operand ?? 'FILE').replace('FILE', device));
        assert.deepEqual(opened, { memory: stream.memory, wrappings });
      });
    });
  }
}

const tar = Buffer.alloc(1024);
tar.write('guest.mig');
tar.write('ustar', 257);

/** A byte of it is another one. */
const changed = (bytes: Buffer, index: number): Buffer => {
  bytes[bytes.length + index]! ^= 0x10;
  return bytes;
};

const nested = (times: number): Uint8Array => {
  let bytes: Uint8Array = stream.bytes;
  for (let count = 0; count < times; count += 1) {
    bytes = gzipSync(bytes);
  }
  return bytes;
};

for (const [name, bytes, code, message, operand] of [
  ['cut.gz', gzipSync(stream.bytes).subarray(0, 5000), 'COMPRESSED_DATA', /cut\.gz are damaged or cut/],
  ['cut in its end.gz', gzipSync(stream.bytes).subarray(0, -3), 'COMPRESSED_DATA', /end\.gz are damaged or cut/],
  ['wrong.gz', changed(gzipSync(stream.bytes), -6), 'COMPRESSED_DATA', /wrong\.gz .*: incorrect data check\./],
  ['longer.gz', changed(gzipSync(stream.bytes), -2), 'COMPRESSED_DATA', /longer\.gz .*: incorrect data check\./],
  ['head.gz', gzipSync(stream.bytes).subarray(0, 9), 'COMPRESSED_DATA', /head\.gz .*: its header is not/],
  ['cut.zst', zstd(stream.bytes).subarray(0, 5000), 'COMPRESSED_DATA', /cut\.zst are damaged or cut/],
  ['guest.tar.gz', gzipSync(tar), 'TAR_FILE', /guest\.tar\.gz, unpacked, is a tar archive/],
  ['noise.gz', gzipSync(Buffer.alloc(9000, 'noise\0\xff')), 'NOT_A_STREAM', /noise\.gz, unpacked, is no migration/],
  ['nothing.gz', gzipSync(''), 'EMPTY_FILE', /nothing\.gz, unpacked, is empty/],
  ['five.gz', nested(5), 'COMPRESSED_DATA', /five\.gz is packed more than 4 times/],
  ['plain.qcow2', disk, 'DISK_IMAGE', /plain\.qcow2 is a qcow2 disk image/],
  ['other.qcow2', disk, 'NO_SNAPSHOT', /no snapshot after in .*other\.qcow2/, 'file:FILE,snapshot=after'],
  ['alone.qcow2', disk, 'NO_SNAPSHOT', /disk only is of the disk alone, in/, 'file:FILE,snapshot=disk only'],
  ['stream.mig', stream.bytes, 'NOT_A_DISK', /stream\.mig is no qcow2 disk image/, 'file:FILE,snapshot=before'],
] as const) {
  test(`refused, with its name: ${name}`, async () => {
    const file = save(name, bytes);
    await assert.rejects(openSnapshotFile((operand ?? 'FILE').replace('FILE', file)), { code, message, file });
  });
}

test('bombs are refused by their first bytes, or where they outgrow the memory that they announce', async () => {
  const small = new StreamBuilder().header().ramStart([{ name: 'pc.ram', usedLength: 16 * 4096 }]).bytes;
  for (const [name, bytes, code] of [
    // 1 GiB of zeros in a megabyte, 64 GiB in two.
    ['zeros.gz', gzipSync(Buffer.alloc(2 ** 28)), 'RAW_MEMORY'],
    ['zeros.zst', zstd(new Uint8Array(), 2 ** 19), 'RAW_MEMORY'],
    ['behind a head.zst', zstd(small, 2 ** 19), 'UNPACKED_SIZE'],
  ] as const) {
    const file = save(name, bytes);
    const before = process.memoryUsage().arrayBuffers;
    await assert.rejects(openSnapshotFile(file), { code, kind: 'invalid' });
    assert.ok(process.memoryUsage().arrayBuffers - before < 256 * 2 ** 20);
  }
});
